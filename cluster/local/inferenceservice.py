"""The InferenceService controller: a revision a change of the pod template, its pods, a route, and the status.

A new revision gets traffic when all the pods that it starts with are ready, as much as ``canaryTrafficPercent`` says;
how many pods each has is the autoscaler's to decide. Pods leave the route before they are stopped.

Sources: kserve/kserve, pkg/apis/serving/v1beta1/inference_service_status.go and
pkg/controller/v1beta1/inferenceservice; knative/serving for revisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.local.autoscaler import Autoscaling
from cluster.local.faults import Faults, faults_of
from cluster.local.pods import MODEL_LABEL, PODS, PORTS_ANNOTATION, Kubelet
from cluster.local.podtemplate import InvalidSpec, build_template, template_hash
from cluster.local.resources import BY_KIND, Object, condition, path
from cluster.local.routes import Backend, RevisionRoute, RouteTable, Share
from cluster.local.store import ApiError, Change, Recorder, Store, now, owner_reference
from cluster.local.traffic import Rollout, Target, route_traffic

ISVC = BY_KIND["InferenceService"]
REVISION = BY_KIND["Revision"]
SERVICE = BY_KIND["Service"]
RUNTIMES = (BY_KIND["ServingRuntime"], BY_KIND["ClusterServingRuntime"])
HASH_ANNOTATION = "local.servecert.io/template-hash"
REVISION_LABEL = "serving.knative.dev/revision"
TAG_ROUTING = "serving.kserve.io/enable-tag-routing"
LINGER_S = 0.5
REVIVED_PODS = 2
_FATAL_WAITING = {"CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff"}
_log = logging.getLogger("servecert.cluster")


@dataclass(frozen=True)
class Outlook:
    """What reconciling found out about an InferenceService; revisions by name, oldest first."""

    revisions: dict[str, Object]
    created: str
    ready: str
    targets: tuple[Target, ...]
    rollout: Rollout
    invalid: InvalidSpec | None


class Controller:
    def __init__(self, store: Store, kubelet: Kubelet, routes: RouteTable) -> None:
        self.store = store
        self.kubelet = kubelet
        self.routes = routes
        self.recorder = Recorder(store, "v1beta1Controllers")
        self.autoscaling = Autoscaling(store, routes, self._scale_changed)
        self._known: dict[tuple[str, str], set[str]] = {}
        self._lingers: set[str] = set()
        self._pending: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._queued: set[tuple[str, str]] = set()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self.store.subscribe(self._changed)
        self.autoscaling.start()

    def stop(self) -> None:
        self.autoscaling.stop()
        if self._unsubscribe:
            self._unsubscribe()

    def _scale_changed(self, namespace: str, revision: str) -> None:
        found = self.store.find("Revision", namespace, revision)
        if found is not None and (name := (found["metadata"].get("labels") or {}).get(MODEL_LABEL)):
            self._enqueue(namespace, name)

    def _changed(self, change: Change) -> None:
        metadata = change.object["metadata"]
        if change.resource is ISVC:
            self._enqueue(metadata["namespace"], metadata["name"])
        elif change.resource in (PODS, REVISION) and (name := (metadata.get("labels") or {}).get(MODEL_LABEL)):
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
            self._forget(namespace, name)
            return
        invalid: InvalidSpec | None = None
        try:
            template = build_template(isvc, self.store.list(RUNTIMES[0], namespace), self.store.list(RUNTIMES[1]))
            self._ensure_revision(isvc, template)
        except InvalidSpec as error:
            invalid = error
        revisions = {item["metadata"]["name"]: item for item in self._revisions(isvc)}
        self._known[namespace, name] = set(revisions)
        created = next(reversed(revisions), "")
        ready = self._latest_ready(isvc, revisions)
        predictor = path(isvc, "status", "components", "predictor", default={})
        rollout = Rollout(predictor.get("latestRolledoutRevision", ""), predictor.get("previousRolledoutRevision", ""))
        annotations = isvc["metadata"].get("annotations") or {}
        percent = isvc["spec"]["predictor"].get("canaryTrafficPercent")
        tagged = annotations.get(TAG_ROUTING) == "true"
        targets, rollout = route_traffic(created, ready, rollout, percent, tagged=tagged)
        routed = {target.revision for target in targets}
        faults = faults_of(isvc)
        for revision_name, revision in revisions.items():
            pending = revision_name == created and revision_name != ready
            revived = revision_name == _revived(list(revisions), routed, created, faults)
            reachable = revision_name in routed or pending
            self._scale(isvc, revision, reachable=reachable, least=REVIVED_PODS if revived else 0)
        self._publish(isvc, revisions, targets, faults)
        self._ensure_service(isvc)
        self._write_status(isvc, Outlook(revisions, created, ready, tuple(targets), rollout, invalid))

    def _forget(self, namespace: str, name: str) -> None:
        self.routes.remove(namespace, name)
        for revision in self._known.pop((namespace, name), ()):
            self.autoscaling.forget(namespace, revision)
            self.routes.remove_revision(namespace, revision)

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
        return [pod for pod in self._pods(revision) if _is_ready(pod)]

    def _serves(self, revision: Object) -> bool:
        """Whether requests to it are answered: by pods, or after a while by pods that they start."""
        metadata = revision["metadata"]
        scaler = self.autoscaling.scaler(metadata["namespace"], metadata["name"])
        if self._ready_pods(revision):
            return True
        return scaler is not None and scaler.initialized and not self._failure(revision)

    def _latest_ready(self, isvc: Object, revisions: dict[str, Object]) -> str:
        """The newest revision that was ever ready: it stays so at zero pods, and while its pods are in trouble."""
        known = path(isvc, "status", "components", "predictor", "latestReadyRevision", default="")
        for name, revision in reversed(revisions.items()):
            scaler = self.autoscaling.scaler(isvc["metadata"]["namespace"], name)
            wanted = max(1, scaler.replicas) if scaler else 1
            if name == known or len(self._ready_pods(revision)) >= wanted:
                return name
        return ""

    def _scale(self, isvc: Object, revision: Object, *, reachable: bool, least: int) -> None:
        faults = faults_of(isvc, revision)
        ready = len(self._ready_pods(revision))
        wanted = max(least, self.autoscaling.sync(revision, ready, reachable=reachable, faults=faults).replicas)
        live = [pod for pod in self._pods(revision) if "deletionTimestamp" not in pod["metadata"]]
        for _ in range(wanted - len(live)):
            self._create_pod(revision)
        # Those that are not ready go first, then the youngest, as in a ReplicaSet.
        live.sort(key=lambda pod: (not _is_ready(pod), pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
        for pod in live[wanted:]:
            metadata = pod["metadata"]
            if "killed-not-drained" not in faults:
                self.routes.withdraw(metadata["name"])
            self.store.delete(PODS, metadata["namespace"], metadata["name"])
        self._write_revision_status(revision, ready, wanted)

    def _write_revision_status(self, revision: Object, ready: int, wanted: int) -> None:
        metadata = revision["metadata"]
        fresh = self.store.find("Revision", metadata["namespace"], metadata["name"])
        scaler = self.autoscaling.scaler(metadata["namespace"], metadata["name"])
        if fresh is None or scaler is None:
            return
        before = (condition(fresh, "Ready") or {}).get("status", "Unknown")
        failed = self._failure(revision)
        if scaler.state == "inactive":
            state = before  # nothing runs that could say otherwise
        elif ready >= max(1, wanted):
            state = "True"
        else:
            state = "False" if failed else before if before == "True" and ready else "Unknown"
        activity = {
            "active": ("True", "", ""),
            "activating": ("Unknown", "Queued", "Requests are buffered as resources are provisioned."),
            "inactive": ("False", "NoTraffic", "The target is not receiving traffic."),
        }[scaler.state]
        fresh["status"] = {
            "conditions": _conditions(
                fresh,
                {
                    "ContainerHealthy": (state, "", ""),
                    "ResourcesAvailable": (state, "", ""),
                    "Active": activity,
                    "Ready": (state, "", ""),
                },
            ),
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

    def _publish(self, isvc: Object, revisions: dict[str, Object], targets: list[Target], faults: Faults) -> None:
        metadata = isvc["metadata"]
        namespace = metadata["namespace"]
        for name, revision in revisions.items():
            here = self.routes.revision(namespace, name)
            here.limit = int(revision["spec"]["containerConcurrency"])
            here.timeout_s = float(revision["spec"]["timeoutSeconds"])
            here.faults = faults_of(isvc, revision)
            here.crash = self.kubelet.crash
            ready = self._ready_pods(revision)
            kept = self._lingering(here, ready) if "killed-not-drained" in here.faults else []
            self.routes.set_backends(namespace, name, [*map(_backend, ready), *kept])
        shares: dict[str, float] = {}
        for target in targets:
            shares[target.revision] = shares.get(target.revision, 0.0) + target.percent
        shares = _broken_split(shares, list(revisions), faults)
        tags = {target.tag: self.routes.revision(namespace, target.revision) for target in targets if target.tag}
        held = [Share(self.routes.revision(namespace, name), percent) for name, percent in shares.items()]
        self.routes.set(namespace, metadata["name"], held, tags)

    def _lingering(self, revision: RevisionRoute, ready: list[Object]) -> list[Backend]:
        """The fault of killed pods: they stay in the route for a moment after they are gone."""
        names = {pod["metadata"]["name"] for pod in ready}
        left = [item for item in revision.backends if item.pod not in names]
        loop = asyncio.get_running_loop()
        for item in left:
            if item.pod not in self._lingers:
                self._lingers.add(item.pod)
                loop.call_later(LINGER_S, revision.withdraw, item.pod)
        return left

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

    def _write_status(self, isvc: Object, outlook: Outlook) -> None:
        metadata = isvc["metadata"]
        old = isvc.get("status", {})
        created = outlook.revisions.get(outlook.created)
        serving = outlook.revisions.get(outlook.ready)
        invalid = outlook.invalid
        rolled_out = bool(outlook.created) and outlook.created == outlook.ready
        failure = self._failure(created) if created and not rolled_out else None
        up = any(self._serves(outlook.revisions[target.revision]) for target in outlook.targets)
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
            predictor["latestCreatedRevision"] = outlook.created
        if serving:
            predictor["latestReadyRevision"] = outlook.ready
            for key, value in (
                ("latestRolledoutRevision", outlook.rollout.rolled_out),
                ("previousRolledoutRevision", outlook.rollout.previous),
            ):
                if value:
                    predictor[key] = value
            host = f"{name}-predictor"
            predictor.update(
                traffic=[
                    target.status(self.routes.host(namespace, f"{target.tag}-{host}")) for target in outlook.targets
                ],
                url=f"http://{self.routes.host(namespace, host)}",
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


def _is_ready(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and (condition(pod, "Ready") or {}).get("status") == "True"


def _backend(pod: Object) -> Backend:
    ports = json.loads(pod["metadata"]["annotations"][PORTS_ANNOTATION])
    revision = pod["metadata"]["labels"][REVISION_LABEL]
    return Backend(pod["metadata"]["name"], revision, pod["status"]["podIP"], ports["http"], ports.get("grpc"))


def _revived(revisions: list[str], routed: set[str], created: str, faults: Faults) -> str:
    """The fault of an old revision that starts pods during a canary: which one; empty where there is none."""
    old = [name for name in revisions if name not in {*routed, created}]
    return old[-1] if old and len(routed) > 1 and "old-revision-revived" in faults else ""


def _broken_split(shares: dict[str, float], revisions: list[str], faults: Faults) -> dict[str, float]:
    """What faults make of a canary's percentages; ``revisions`` are all that there are, oldest first."""
    split = [name for name in revisions if shares.get(name)]
    if len(split) < 2:
        return shares
    newest = split[-1]
    if "split-ignored" in faults:
        return dict.fromkeys(split, 100.0 / len(split))
    if "split-wrong" in faults:
        more = min(faults.value("split-wrong") * 100, 100 - shares[newest])
        rest = {
            name: percent * (100 - shares[newest] - more) / (100 - shares[newest]) for name, percent in shares.items()
        }
        return {**rest, newest: shares[newest] + more}
    older = [name for name in revisions[: revisions.index(split[0])] if name not in shares]
    if "split-leak" in faults and older:
        leak = faults.value("split-leak")
        return {**{name: percent * (1 - leak) for name, percent in shares.items()}, older[-1]: leak * 100}
    return shares


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
