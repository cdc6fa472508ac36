"""What pods and their events say of probes. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from harness.kubernetes.events import Happened
from harness.kubernetes.kserve import is_pod_ready
from harness.kubernetes.podwatch import PodChange

Object = dict[str, Any]
SHOWN = 3
PERIOD_S, TIMEOUT_S, FAILURES = 10.0, 1.0, 3
"""Kubernetes' defaults of a probe."""


def http_port(pod: Object) -> int:
    """Where the model server speaks HTTP: KServe's convention, unless the container names another port."""
    named = {item.get("name"): item["containerPort"] for item in pod["spec"]["containers"][0].get("ports") or []}
    return int(next((named[name] for name in ("http1", "http", "user-port") if name in named), 8080))


def has_address(pod: Object) -> bool:
    """Whether it can be asked: that is so before Kubernetes says that its process runs."""
    return bool((pod.get("status") or {}).get("podIP"))


def readiness_changes(changes: Sequence[PodChange], since_s: float) -> list[str]:
    """Pods that were ready, then not, without being deleted; once for each time."""
    state: dict[str, bool] = {}
    found = []
    for change in changes:
        leaving = bool(change.pod["metadata"].get("deletionTimestamp")) or change.type == "DELETED"
        ready = is_pod_ready(change.pod)
        if state.get(change.name) and not ready and not leaving and change.at_s >= since_s:
            found.append(change.name)
        state[change.name] = ready
    return found


def _restarts(pod: Object) -> dict[str, int]:
    """By container, sidecars that start as initial ones included."""
    status = pod.get("status") or {}
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return {str(item["name"]): int(item.get("restartCount", 0)) for item in statuses}


def restarts(changes: Sequence[PodChange], since_s: float) -> dict[str, int]:
    """How often each container was restarted from ``since_s`` on, as ``pod/container``; those that were not are left
    out. A pod that went away meanwhile counts, too."""
    before: dict[str, int] = {}
    most: dict[str, int] = {}
    for change in changes:
        for container, count in _restarts(change.pod).items():
            name = f"{change.name}/{container}"
            if change.at_s < since_s:
                before[name] = count
            most[name] = max(most.get(name, 0), count)
    return {name: more for name, count in most.items() if (more := count - before.get(name, 0)) > 0}


def of_service(happened: Sequence[Happened], service: str, kind: str) -> list[Happened]:
    """Failed probes of a kind (``Liveness``, ``Readiness``) of a service's pods."""
    return [item for item in happened if item.about.startswith(f"{service}-") and f"{kind} probe" in item.message]


def told(happened: Sequence[Happened]) -> str:
    """In words, the first few; empty where there is nothing."""
    texts = [f"{item.about}: {item.message}{f' (×{item.times})' * (item.times > 1)}" for item in happened]
    more = [f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return "; ".join([*texts[:SHOWN], *more])


def needed_s(pods: Sequence[Object], kind: str, failures: int | None, now_s: float) -> float | None:
    """How long a load from now on has to last, until each pod was asked by its probes of a kind (``livenessProbe``,
    ``readinessProbe``) as often as ``failures`` says; None as often as the probe has to fail before it counts.
    ``now_s`` is of the cluster's clock. None where no container has such a probe."""
    found = []
    for pod in pods:
        started = {
            item["name"]: (item.get("state") or {}).get("running", {}).get("startedAt")
            for item in (pod.get("status") or {}).get("containerStatuses") or []
        }
        for container in pod["spec"]["containers"]:
            probe = container.get(kind)
            if probe is None:
                continue
            stamp = started.get(container["name"])
            since_s = now_s if stamp is None else datetime.fromisoformat(stamp).timestamp()
            waits_s = max(0.0, since_s + float(probe.get("initialDelaySeconds") or 0) - now_s)
            times = int(probe.get("failureThreshold") or FAILURES) if failures is None else failures
            period_s = float(probe.get("periodSeconds") or PERIOD_S)
            found.append(waits_s + times * period_s + float(probe.get("timeoutSeconds") or TIMEOUT_S))
    return max(found, default=None)
