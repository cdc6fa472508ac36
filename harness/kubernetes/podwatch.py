"""Follows the pods of a service, and the events about pods, by Kubernetes watches, and notes on this machine's clock
when each change arrived."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from harness.base.errors import ClusterError

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


@dataclass(frozen=True)
class EventChange:
    """An event that is new, or has happened once more. Times as of ``PodChange``."""

    at_s: float
    wall_s: float
    type: str
    event: Object

    @property
    def pod(self) -> str:
        """The name of the pod that it is about; empty where it is about something else."""
        about = self.event.get("involvedObject") or {}
        return str(about.get("name", "")) if about.get("kind") == "Pod" else ""

    @property
    def reason(self) -> str:
        return str(self.event.get("reason") or "")

    @property
    def message(self) -> str:
        return str(self.event.get("message") or "")


Change = TypeVar("Change")


class Watch(Generic[Change]):
    """``changes`` grows while it is open. Raises ClusterError on entering where it could not be opened, and on leaving
    where it broke."""

    def __init__(
        self,
        core: Any,
        what: str,
        listing: Callable[..., Any],
        options: dict[str, str],
        make: Callable[[float, float, str, Object], Change],
        patience_s: float = 0.0,
    ) -> None:
        """``listing`` is a method of the client that lists, and watches. ``patience_s`` is for how long the API may not
        answer before the watch counts as broken."""
        self._core = core
        self._what = what
        self._listing = listing
        self._options = options
        self._make = make
        self._patience_s = patience_s
        self._stop = threading.Event()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"watch on {what}", daemon=True)
        self._error: Exception | None = None
        self._watch: Any = None
        self._there: dict[str, Object] = {}
        """The last of each object that is there, by its uid."""
        self.changes: list[Change] = []

    async def __aenter__(self) -> Self:
        self._thread.start()
        opened = await asyncio.to_thread(self._opened.wait, READY_S)
        self.check()
        if not opened:
            self._stop.set()
            raise ClusterError(f"the watch on {self._what} did not begin within {READY_S:g} s")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        if self._watch is not None:
            self._watch.stop()
        await asyncio.to_thread(self._thread.join, 2.0)  # a watch that hears nothing ends by itself, later
        if exc[0] is None:
            self.check()

    def check(self) -> None:
        """Raises ClusterError where the watch has broken."""
        if self._error is not None:
            raise ClusterError(f"the watch on {self._what} broke: {self._error}") from self._error

    async def until(self, condition: Callable[[Change], bool], within_s: float, since: int = 0) -> Change | None:
        """The first change from number ``since`` on that fits; None when none came in time."""
        deadline = time.monotonic() + within_s
        while True:
            for change in self.changes[since:]:
                if condition(change):
                    return change
            self.check()
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.005)

    def _follow(self) -> None:
        from kubernetes import client, watch

        try:
            version: str | None = self._list()
            self._opened.set()
            heard_s = time.monotonic()
            while not self._stop.is_set():
                self._watch = watch.Watch()  # type: ignore[no-untyped-call]
                try:
                    if version is None:
                        version = self._list()
                    for event in self._watch.stream(
                        self._listing,
                        **self._options,
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
                    version = None  # too old: what is there now tells what was missed
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

    def _list(self) -> str:
        """Notes what differs from what was known, deletions included; the version to watch from."""
        listed = self._listing(**self._options, _request_timeout=READY_S)
        here = {item.metadata.uid: item for item in listed.items}
        for uid, known in list(self._there.items()):
            if uid not in here:
                self._note("DELETED", known)
        for uid, item in here.items():
            before = self._there.get(uid)
            if before is None or before["metadata"].get("resourceVersion") != item.metadata.resource_version:
                self._note("ADDED" if before is None else "MODIFIED", item)
        return str(listed.metadata.resource_version)

    def _note(self, kind: str, item: Any) -> None:
        found = item if isinstance(item, dict) else self._core.api_client.sanitize_for_serialization(item)
        uid = str(found["metadata"].get("uid", found["metadata"]["name"]))
        if kind == "DELETED":
            self._there.pop(uid, None)
        else:
            self._there[uid] = found
        self.changes.append(self._make(time.monotonic(), time.time(), kind, found))


class PodWatch(Watch[PodChange]):
    """Of the pods that a selector of labels picks."""

    def __init__(self, core: Any, namespace: str, selector: str, patience_s: float = 0.0) -> None:
        options = {"namespace": namespace, "label_selector": selector}
        super().__init__(core, f"pods {selector}", core.list_namespaced_pod, options, PodChange, patience_s)


class EventWatch(Watch[EventChange]):
    """Of a namespace's events about pods."""

    def __init__(self, core: Any, namespace: str, patience_s: float = 0.0) -> None:
        options = {"namespace": namespace, "field_selector": "involvedObject.kind=Pod"}
        super().__init__(core, f"events in {namespace}", core.list_namespaced_event, options, EventChange, patience_s)
