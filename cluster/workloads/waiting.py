"""Waiting for pods of our own, and saying what they wait for."""

from __future__ import annotations

import threading
import time
from typing import Any

from cluster.commands import Progress
from harness.base.errors import ClusterError
from harness.kubernetes.kserve import is_pod_ready, unschedulable
from harness.kubernetes.kube import Kube

Object = dict[str, Any]
POLL_S = 0.5
_HOPELESS = (
    "CrashLoop", "ErrImage", "ImagePull", "InvalidImageName", "CreateContainerConfigError", "Failed", "Succeeded"
)  # fmt: skip


def waits_for(pod: Object) -> str:
    """What a pod still waits for, empty where it is ready; it begins with Kubernetes' own word."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Failed", "Succeeded"):
        return f"{status['phase']}: {status.get('message') or 'it ended before it was of use'}"
    if is_pod_ready(pod):
        return ""
    if why := unschedulable(pod):
        return f"Unschedulable: {why}"
    for item in status.get("containerStatuses") or []:
        waiting = (item.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return f"{waiting['reason']}: {waiting.get('message') or item.get('image', '')}"
    return str(status.get("phase") or "Pending")


def await_pods(
    kube: Kube,
    namespace: str,
    selector: str,
    count: int,
    what: str,
    *,
    within_s: float,
    stop: threading.Event,
    progress: Progress = lambda line: None,
) -> None:
    """Returns when ``count`` pods are ready. Raises ClusterError: at once for a pod that ended or whose image cannot be
    pulled, after ``within_s`` for one that no node has room for (a cluster may grow), and where ``stop`` is set."""
    deadline = time.monotonic() + within_s
    while True:
        listed = kube.list("v1", "pods", namespace, selector)
        pods = [pod for pod in listed if not pod["metadata"].get("deletionTimestamp")]
        waits = {pod["metadata"]["name"]: state for pod in pods if (state := waits_for(pod))}
        if len(pods) >= count and not waits:
            return
        for name, state in waits.items():
            if state.startswith(_HOPELESS):
                raise ClusterError(f"{what}: pod {namespace}/{name}: {state}")
        progress(f"{what}: {len(pods) - len(waits)} of {count} ready")
        if time.monotonic() > deadline:
            why = "; ".join(f"{name}: {state}" for name, state in waits.items()) or f"{len(pods)} pods were created"
            raise ClusterError(f"{what}: {count} were not ready within {within_s:g} s: {why}")
        if stop.wait(POLL_S):
            raise ClusterError(f"{what}: stopped while they were waited for")
