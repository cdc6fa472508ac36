"""The InferenceService controller: a revision a change of the pod template, its pods, a route, and the status.

One revision serves at a time. A new one takes over when all its pods are ready; the old one's pods leave the route
first and are stopped after their last request. Sources: kserve/kserve, pkg/apis/serving/v1beta1/
inference_service_status.go and pkg/controller/v1beta1/inferenceservice; knative/serving for revisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

from cluster.local.pods import MODEL_LABEL, PODS, PORTS_ANNOTATION, Kubelet
from cluster.local.podtemplate import InvalidSpec, build_template, template_hash
from cluster.local.resources import BY_KIND, Object, condition, path
from cluster.local.routes import Backend, RouteTable
from cluster.local.store import ApiError, Change, Recorder, Store, now, owner_reference

ISVC = BY_KIND["InferenceService"]
REVISION = BY_KIND["Revision"]
SERVICE = BY_KIND["Service"]
RUNTIMES = (BY_KIND["ServingRuntime"], BY_KIND["ClusterServingRuntime"])
HASH_ANNOTATION = "local.servecert.io/template-hash"
REVISION_LABEL = "serving.knative.dev/revision"
_FATAL_WAITING = {"CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff"}
_log = logging.getLogger("servecert.cluster")


class Controller:
    def __init__(self, store: Store, kubelet: Kubelet, routes: RouteTable) -> None:
        self.store = store
        self.kubelet = kubelet
        self.routes = routes
        self.recorder = Recorder(store, "v1beta1Controllers")
        self._pending: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._queued: set[tuple[str, str]] = set()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self.store.subscribe(self._changed)

    def stop(self) -> None:
        if self._unsubscribe:
            self._unsubscribe()

    def _changed(self, change: Change) -> None:
        metadata = change.object["metadata"]
        if change.resource is ISVC:
            self._enqueue(metadata["namespace"], metadata["name"])
        elif change.resource is PODS and (name := (metadata.get("labels") or {}).get(MODEL_LABEL)):
            self._enqueue(metadata["namespace"], name)
        elif change.resource in RUNTIMES:
            for isvc in self.store.list(ISVC):
                self._enqueue(isvc["metadata"]["namespace"], isvc["metadata"]["name"])
        elif change.resource.kind == "Namespace" and "deletionTimestamp" in metadata and change.type == "MODIFIED":
            asyncio.get_running_loop().create_task(self._end_namespace(metadata["name"]))

    def _enqueue(self, namespace: str, name: str) -> None:
        if (namespace, name) not in self._queued:
            self._queued.add((namespace, name))
            self._pending.put_nowait((namespace, name))

    async def run(self) -> None:
        while True:
            key = await self._pending.get()
            self._queued.discard(key)
            try:
                self._reconcile(*key)
            except ApiError as error:
                if error.code not in (404, 409):  # gone or changed meanwhile: a later change brings us back
                    _log.exception("reconciling %s/%s", *key)
            except Exception:
                _log.exception("reconciling %s/%s", *key)

    async def _end_namespace(self, name: str) -> None:
        for resource in BY_KIND.values():
            if resource.namespaced and resource is not PODS:
                for item in self.store.list(resource, name):
                    with contextlib.suppress(ApiError):
                        self.store.delete(resource, name, item["metadata"]["name"])
        for pod in self.store.list(PODS, name):
            with contextlib.suppress(ApiError):
                self.store.delete(PODS, name, pod["metadata"]["name"])
        while self.store.list(PODS, name):
            await asyncio.sleep(0.05)
        for item in self.store.list(BY_KIND["Event"], name):
            self.store.remove(BY_KIND["Event"], name, item["metadata"]["name"])
        self.store.remove(BY_KIND["Namespace"], "", name)

    # Reconciling

    def _reconcile(self, namespace: str, name: str) -> None:
        isvc = self.store.find("InferenceService", namespace, name)
        if isvc is None or "deletionTimestamp" in isvc["metadata"]:
            self.routes.remove(namespace, name)
            return
        invalid: InvalidSpec | None = None
        try:
            template = build_template(isvc, self.store.list(RUNTIMES[0], namespace), self.store.list(RUNTIMES[1]))
            self._ensure_revision(isvc, template)
        except InvalidSpec as error:
            invalid = error
        revisions = self._revisions(isvc)
        serving = self._serving(isvc, revisions)
        created = revisions[-1] if revisions else None
        for revision in revisions:
            wanted = _replicas(revision) if revision in (created, serving) else 0
            self._scale(isvc, revision, wanted)
        self._publish(isvc, serving)
        self._ensure_service(isvc)
        self._write_status(isvc, created, serving, invalid)

    def _revisions(self, isvc: Object) -> list[Object]:
        """Oldest first."""
        return self.store.list(REVISION, isvc["metadata"]["namespace"], {MODEL_LABEL: isvc["metadata"]["name"]})

    def _ensure_revision(self, isvc: Object, template: Object) -> None:
        revisions = self._revisions(isvc)
        digest = template_hash(template)
        if revisions and revisions[-1]["metadata"]["annotations"][HASH_ANNOTATION] == digest:
            return
        metadata = isvc["metadata"]
        number = int(revisions[-1]["metadata"]["name"].rsplit("-", 1)[1]) + 1 if revisions else 1
        configuration = f"{metadata['name']}-predictor"
        self.store.create(
            REVISION,
            {
                "metadata": {
                    "name": f"{configuration}-{number:05d}",
                    "namespace": metadata["namespace"],
                    "labels": {
                        **template["metadata"]["labels"],
                        "serving.knative.dev/configuration": configuration,
                        "serving.knative.dev/configurationGeneration": str(number),
                        "serving.knative.dev/service": configuration,
                    },
                    "annotations": {**template["metadata"]["annotations"], HASH_ANNOTATION: digest},
                    "ownerReferences": [owner_reference(isvc)],
                },
                "spec": {
                    **template["spec"],
                    "timeoutSeconds": template["timeoutSeconds"],
                    "containerConcurrency": template["containerConcurrency"],
                },
            },
        )

    def _pods(self, revision: Object) -> list[Object]:
        metadata = revision["metadata"]
        return self.store.list(PODS, metadata["namespace"], {REVISION_LABEL: metadata["name"]})

    def _ready_pods(self, revision: Object) -> list[Object]:
        return [
            pod
            for pod in self._pods(revision)
            if "deletionTimestamp" not in pod["metadata"] and (condition(pod, "Ready") or {}).get("status") == "True"
        ]

    def _serving(self, isvc: Object, revisions: list[Object]) -> Object | None:
        """The newest revision with all its pods ready; once it served, it stays until a newer one is."""
        latest_ready = path(isvc, "status", "components", "predictor", "latestReadyRevision", default="")
        for revision in reversed(revisions):
            if revision["metadata"]["name"] == latest_ready:
                return revision
            if len(self._ready_pods(revision)) >= _replicas(revision):
                return revision
        return None

    def _scale(self, isvc: Object, revision: Object, wanted: int) -> None:
        live = [pod for pod in self._pods(revision) if "deletionTimestamp" not in pod["metadata"]]
        for _ in range(wanted - len(live)):
            self._create_pod(revision)
        for pod in live[wanted:]:
            metadata = pod["metadata"]
            self.routes.withdraw(metadata["name"])
            self.store.delete(PODS, metadata["namespace"], metadata["name"])
        fresh = self.store.find("Revision", revision["metadata"]["namespace"], revision["metadata"]["name"])
        if fresh is None:
            return
        ready = len(self._ready_pods(revision))
        state = "True" if ready >= max(1, wanted) else "False" if self._failure(revision) else "Unknown"
        if wanted == 0:
            state = (condition(fresh, "Ready") or {}).get("status", "Unknown")
        conditions = _conditions(
            fresh,
            {
                "ContainerHealthy": (state, "", ""),
                "ResourcesAvailable": (state, "", ""),
                "Active": ("True" if wanted else "False", "" if wanted else "NoTraffic", ""),
                "Ready": (state, "", ""),
            },
        )
        fresh["status"] = {
            "conditions": conditions,
            "actualReplicas": ready,
            "desiredReplicas": wanted,
            "observedGeneration": fresh["metadata"]["generation"],
        }
        self.store.update(REVISION, fresh, subresource="status")

    def _create_pod(self, revision: Object) -> None:
        metadata = revision["metadata"]
        spec = {
            key: value
            for key, value in revision["spec"].items()
            if key not in ("timeoutSeconds", "containerConcurrency")
        }
        digest = hashlib.sha256(metadata["uid"].encode()).hexdigest()[:10]
        self.store.create(
            PODS,
            {
                "metadata": {
                    "generateName": f"{metadata['name']}-deployment-{digest}-",
                    "namespace": metadata["namespace"],
                    "labels": {**metadata["labels"], "app": metadata["name"], REVISION_LABEL: metadata["name"]},
                    "annotations": {k: v for k, v in metadata["annotations"].items() if k != HASH_ANNOTATION},
                    "ownerReferences": [owner_reference(revision)],
                },
                "spec": spec,
            },
        )

    def _publish(self, isvc: Object, serving: Object | None) -> None:
        backends = []
        for pod in self._ready_pods(serving) if serving else []:
            ports = json.loads(pod["metadata"]["annotations"][PORTS_ANNOTATION])
            backends.append(
                Backend(
                    pod["metadata"]["name"],
                    serving["metadata"]["name"] if serving else "",
                    pod["status"]["podIP"],
                    ports["http"],
                    ports.get("grpc"),
                )
            )
        timeout_s = float(serving["spec"]["timeoutSeconds"]) if serving else 300.0
        self.routes.set(isvc["metadata"]["namespace"], isvc["metadata"]["name"], backends, timeout_s)

    def _ensure_service(self, isvc: Object) -> None:
        metadata = isvc["metadata"]
        name = f"{metadata['name']}-predictor"
        if self.store.find("Service", metadata["namespace"], name) is None:
            self.store.create(
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
                        "selector": {MODEL_LABEL: metadata["name"]},
                        "ports": [
                            {"name": "http", "port": 80, "targetPort": 8080},
                            {"name": "h2c", "port": 8081, "targetPort": 8081},
                        ],
                    },
                },
            )

    # Status

    def _failure(self, revision: Object) -> Object | None:
        """Why the revision's pods cannot run, as KServe's ``lastFailureInfo``."""
        for pod in self._pods(revision):
            for key in ("initContainerStatuses", "containerStatuses"):
                for status in path(pod, "status", key, default=[]):
                    waiting = status["state"].get("waiting", {})
                    if waiting.get("reason") not in _FATAL_WAITING:
                        continue
                    last = status.get("lastState", {}).get("terminated", {})
                    failure: Object = {
                        "reason": "ModelLoadFailed" if waiting["reason"] == "CrashLoopBackOff" else "RuntimeUnhealthy",
                        "message": last.get("message") or waiting.get("message", waiting["reason"]),
                        "modelRevisionName": revision["metadata"]["name"],
                        "location": pod["metadata"]["name"],
                    }
                    if "exitCode" in last:
                        failure["exitCode"] = last["exitCode"]
                    return failure
        return None

    def _write_status(
        self, isvc: Object, created: Object | None, serving: Object | None, invalid: InvalidSpec | None
    ) -> None:
        metadata = isvc["metadata"]
        old = isvc.get("status", {})
        ready_pods = len(self._ready_pods(serving)) if serving else 0
        rolled_out = (
            created is not None and serving is not None and created["metadata"]["name"] == serving["metadata"]["name"]
        )
        failure = self._failure(created) if created and not rolled_out else None
        up = ready_pods > 0
        if invalid:
            configuration = ("False", invalid.reason, str(invalid))
        elif rolled_out:
            configuration = ("True", "", "")
        elif failure:
            configuration = (
                "False",
                "RevisionFailed",
                f"Revision {failure['modelRevisionName']!r} failed: {failure['message']}",
            )
        else:
            configuration = ("Unknown", "RevisionMissing" if created is None else "Deploying", "")
        route = (
            ("True", "", "")
            if up
            else ("Unknown" if not failure else "False", "RevisionMissing" if not serving else "NoReadyPods", "")
        )
        ready = (
            ("True", "", "")
            if up and configuration[0] == "True"
            else (configuration if configuration[0] != "True" else route)
        )
        name, namespace = metadata["name"], metadata["namespace"]
        status: Object = {
            "observedGeneration": metadata["generation"],
            "deploymentMode": "Knative",
            "conditions": _conditions(
                isvc,
                {
                    "IngressReady": route,
                    "LatestDeploymentReady": configuration,
                    "PredictorConfigurationReady": configuration,
                    "PredictorReady": ready,
                    "PredictorRouteReady": route,
                    "Ready": ready,
                    "RoutesReady": route,
                    "Stopped": ("False", "", ""),
                },
            ),
        }
        predictor = dict(path(old, "components", "predictor", default={}))
        if created:
            predictor["latestCreatedRevision"] = created["metadata"]["name"]
        if serving:
            current = serving["metadata"]["name"]
            former = predictor.get("latestRolledoutRevision")
            if former and former != current:
                predictor["previousRolledoutRevision"] = former
            predictor.update(
                latestReadyRevision=current,
                latestRolledoutRevision=current,
                traffic=[{"revisionName": current, "latestRevision": True, "percent": 100}],
                url=f"http://{self.routes.host(namespace, f'{name}-predictor')}",
                address={"url": f"http://{name}-predictor.{namespace}.svc.cluster.local"},
            )
            status["url"] = f"http://{self.routes.host(namespace, name)}"
            status["address"] = {"url": f"http://{name}-predictor.{namespace}.svc.cluster.local"}
        if predictor:
            status["components"] = {"predictor": predictor}
        status["modelStatus"] = self._model_status(created, up, rolled_out, failure, invalid, old)
        was_ready = (condition(isvc, "Ready") or {}).get("status")
        isvc["status"] = status
        self.store.update(ISVC, isvc, subresource="status")
        if ready[0] == "True" and was_ready != "True":
            self.recorder.event(isvc, "InferenceServiceReady", f"InferenceService [{name}] is Ready")
        elif ready[0] == "False" and was_ready != "False":
            self.recorder.event(
                isvc, "InferenceServiceNotReady", f"InferenceService [{name}] is not Ready: {ready[2]}", "Warning"
            )

    def _model_status(
        self,
        created: Object | None,
        up: bool,
        rolled_out: bool,
        failure: Object | None,
        invalid: InvalidSpec | None,
        old: Object,
    ) -> Object:
        active = "Loaded" if up else ""
        pods = self._pods(created) if created else []
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


def _replicas(revision: Object) -> int:
    """``minReplicas``. A revision starts with one pod (initial-scale); nothing scales it to zero yet."""
    return max(1, int(revision["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"]))


def _conditions(item: Object, wanted: dict[str, tuple[str, str, str]]) -> list[Object]:
    """Conditions by type; a transition time changes only with the status."""
    result: list[Object] = []
    for kind, (status, reason, message) in sorted(wanted.items()):
        old = condition(item, kind)
        entry: dict[str, Any] = {"type": kind, "status": status}
        if reason:
            entry["reason"] = reason
        if message:
            entry["message"] = message
        entry["lastTransitionTime"] = old["lastTransitionTime"] if old and old["status"] == status else now()
        result.append(entry)
    return result
