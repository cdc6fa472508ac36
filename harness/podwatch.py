"""Follows the pods of a service by a Kubernetes watch, and notes on this machine's clock when each change arrived."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.errors import ClusterError

Object = dict[str, Any]
WATCH_S = 60
"""A watch is renewed so often; nothing is lost in between."""
READY_S = 15.0
RETRY_S = 1.0


@dataclass(frozen=True)
class PodChange:
    """``at_s`` is ``time.monotonic`` when the change arrived; ``type`` ADDED, MODIFIED or DELETED."""

    at_s: float
    wall_s: float
    type: str
    pod: Object

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])


class PodWatch:
    """``changes`` grows while it is open. Raises ClusterError on leaving where the watch broke."""

    def __init__(self, core: Any, namespace: str, selector: str, patience_s: float = 0.0) -> None:
        """``patience_s`` is for how long the API may not answer before the watch counts as broken."""
        self._core = core
        self._namespace = namespace
        self._selector = selector
        self._patience_s = patience_s
        self._stop = threading.Event()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pod watch", daemon=True)
        self._error: Exception | None = None
        self._watch: Any = None
        self.changes: list[PodChange] = []

    async def __aenter__(self) -> PodWatch:
        self._thread.start()
        await asyncio.to_thread(self._opened.wait, READY_S)
        self._check()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        if self._watch is not None:
            self._watch.stop()
        await asyncio.to_thread(self._thread.join, 2.0)  # a watch that hears nothing ends by itself, later
        if exc[0] is None:
            self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise ClusterError(f"the watch on pods {self._selector} broke: {self._error}") from self._error

    async def until(self, condition: Callable[[PodChange], bool], within_s: float, since: int = 0) -> PodChange | None:
        """The first change from number ``since`` on that fits; None when none came in time."""
        deadline = time.monotonic() + within_s
        while True:
            for change in self.changes[since:]:
                if condition(change):
                    return change
            self._check()
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.005)

    def _follow(self) -> None:
        from kubernetes import client, watch

        try:
            listed = self._core.list_namespaced_pod(
                self._namespace, label_selector=self._selector, _request_timeout=READY_S
            )
            for item in listed.items:
                self._note("ADDED", item)
            version = listed.metadata.resource_version
            self._opened.set()
            heard_s = time.monotonic()
            while not self._stop.is_set():
                self._watch = watch.Watch()  # type: ignore[no-untyped-call]
                try:
                    for event in self._watch.stream(
                        self._core.list_namespaced_pod,
                        self._namespace,
                        label_selector=self._selector,
                        resource_version=version,
                        timeout_seconds=WATCH_S,
                        _request_timeout=WATCH_S + 15,
                    ):
                        heard_s = time.monotonic()
                        version = event["object"].metadata.resource_version
                        self._note(event["type"], event["object"])
                        if self._stop.is_set():
                            return
                except client.ApiException as error:
                    if error.status != 410:
                        raise
                    version = None  # too old: from what is there now on
                except Exception:  # urllib3 raises many kinds
                    if time.monotonic() - heard_s > WATCH_S + self._patience_s or not self._patience_s:
                        raise
                    self._stop.wait(RETRY_S)
                else:
                    heard_s = time.monotonic()
        except Exception as error:  # urllib3 raises many kinds
            if not self._stop.is_set():
                self._error = error
        finally:
            self._opened.set()

    def _note(self, kind: str, item: Any) -> None:
        pod = self._core.api_client.sanitize_for_serialization(item)
        self.changes.append(PodChange(time.monotonic(), time.time(), kind, pod))
