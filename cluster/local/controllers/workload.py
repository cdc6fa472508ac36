"""What the controllers of both deployment modes share: pods, the service in front of them, and KServe's statuses."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cluster.local.api.podmarks import MODEL_LABEL, PODS, PORTS_ANNOTATION
from cluster.local.api.resources import BY_KIND, Object, condition, path
from cluster.local.api.store import Recorder, Store, now, owner_reference
from cluster.local.controllers.podtemplate import InvalidSpec
from cluster.local.ingress.routes import Backend

SERVICE = BY_KIND["Service"]
_FATAL_WAITING = {"CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff"}


def is_ready(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and (condition(pod, "Ready") or {}).get("status") == "True"


def backend_of(pod: Object, revision: str) -> Backend:
    ports = json.loads(pod["metadata"]["annotations"][PORTS_ANNOTATION])
    return Backend(pod["metadata"]["name"], revision, pod["status"]["podIP"], ports["http"], ports.get("grpc"))


def keep_order(pod: Object) -> tuple[bool, str, str]:
    """Which pods stay when some go: not the ones that are not ready, then not the youngest, as in a ReplicaSet."""
    metadata = pod["metadata"]
    return not is_ready(pod), metadata["creationTimestamp"], metadata["name"]


def create_pod(store: Store, owner: Object, labels: Object, annotations: Object, spec: Object) -> None:
    metadata = owner["metadata"]
    digest = hashlib.sha256(metadata["uid"].encode()).hexdigest()[:10]
    name = metadata["name"] if owner["kind"] == "Deployment" else f"{metadata['name']}-deployment"
    store.create(
        PODS,
        {
            "metadata": {
                "generateName": f"{name}-{digest}-",
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [owner_reference(owner)],
            },
            "spec": spec,
        },
    )


def ensure_service(store: Store, isvc: Object, name: str, selector: Object) -> None:
    metadata = isvc["metadata"]
    if store.find("Service", metadata["namespace"], name) is None:
        store.create(
            SERVICE,
            {
                "metadata": {
                    "name": name,
                    "namespace": metadata["namespace"],
                    "labels": {MODEL_LABEL: metadata["name"]},
                    "ownerReferences": [owner_reference(isvc)],
                },
                "spec": {
                    "type": "ClusterIP",
                    "clusterIP": "None",
                    "selector": selector,
                    "ports": [
                        {"name": "http", "port": 80, "targetPort": 8080},
                        {"name": "h2c", "port": 8081, "targetPort": 8081},
                    ],
                },
            },
        )


def failure_of(pods: list[Object], revision: str) -> Object | None:
    """Why the pods cannot run, as KServe's ``lastFailureInfo``."""
    for pod in pods:
        for key in ("initContainerStatuses", "containerStatuses"):
            for status in path(pod, "status", key, default=[]):
                waiting = status["state"].get("waiting", {})
                if waiting.get("reason") not in _FATAL_WAITING:
                    continue
                last = status.get("lastState", {}).get("terminated", {})
                failure: Object = {
                    "reason": "ModelLoadFailed" if waiting["reason"] == "CrashLoopBackOff" else "RuntimeUnhealthy",
                    "message": last.get("message") or waiting.get("message", waiting["reason"]),
                    "modelRevisionName": revision,
                    "location": pod["metadata"]["name"],
                }
                if "exitCode" in last:
                    failure["exitCode"] = last["exitCode"]
                return failure
    return None


def model_status(
    pods: list[Object], old: Object, *, up: bool, rolled_out: bool, failure: Object | None, invalid: InvalidSpec | None
) -> Object:
    """KServe's ``modelStatus``; ``pods`` are those of the newest version, ``old`` is the status before."""
    active = "Loaded" if up else ""
    if invalid:
        transition, target = "InvalidSpec", "FailedToLoad"
        failure = {"reason": invalid.reason, "message": str(invalid)}
    elif rolled_out and up:
        transition, target = "UpToDate", "Loaded"
    elif failure:
        transition, target = "BlockedByFailedLoad", "FailedToLoad"
    else:
        running = any(
            "running" in s["state"] for pod in pods for s in path(pod, "status", "containerStatuses", default=[])
        )
        transition, target = "InProgress", "Loading" if running else "Pending"
    result: Object = {
        "transitionStatus": transition,
        "states": {"activeModelState": active, "targetModelState": target},
        "copies": {"failedCopies": len(pods) if failure and not invalid else 0, "totalCopies": len(pods)},
    }
    if failure:
        previous = path(old, "modelStatus", "lastFailureInfo", default={})
        same = {key: value for key, value in previous.items() if key != "time"} == failure
        result["lastFailureInfo"] = {**failure, "time": previous["time"] if same and "time" in previous else now()}
    return result


_DECISIVE = ("Ready", "PredictorReady", "IngressReady", "ContainerHealthy", "ResourcesAvailable")
"""Readiness depends on these; the others are information."""


def conditions(item: Object, wanted: dict[str, tuple[str, str, str]], *, knative: bool = False) -> list[Object]:
    """Conditions by type; a transition time changes only with the status. Of Knative's kind, as InferenceServices are,
    those that readiness does not depend on say so."""
    result: list[Object] = []
    for kind, (status, reason, message) in sorted(wanted.items()):
        old = condition(item, kind)
        entry: dict[str, Any] = {"type": kind, "status": status}
        if reason:
            entry["reason"] = reason
        if message:
            entry["message"] = message
        if knative and kind not in _DECISIVE:
            entry["severity"] = "Info"
        entry["lastTransitionTime"] = old["lastTransitionTime"] if old and old["status"] == status else now()
        result.append(entry)
    return result


def write_status(store: Store, recorder: Recorder, isvc: Object, status: Object, ready: tuple[str, str, str]) -> None:
    """With an event when the service becomes ready, or stops being so."""
    name = isvc["metadata"]["name"]
    before = (condition(isvc, "Ready") or {}).get("status")
    isvc["status"] = status
    store.update(BY_KIND["InferenceService"], isvc, subresource="status")
    if ready[0] == "True" and before != "True":
        recorder.event(isvc, "InferenceServiceReady", f"InferenceService [{name}] is Ready")
    elif ready[0] == "False" and before != "False":
        recorder.event(
            isvc, "InferenceServiceNotReady", f"InferenceService [{name}] is not Ready: {ready[2]}", "Warning"
        )
