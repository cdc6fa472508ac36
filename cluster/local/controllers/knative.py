"""InferenceServices in Knative mode: a revision a change of the pod template, traffic among revisions, and the status.

A new revision gets traffic when all the pods that it starts with are ready, as much as ``canaryTrafficPercent`` says;
how many pods each has is the autoscaler's to decide. Pods leave the route before they are stopped.

Sources: kserve/kserve, pkg/apis/serving/v1beta1/inference_service_status.go and
pkg/controller/v1beta1/inferenceservice; knative/serving for revisions.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cluster.local.api.faults import Faults, broken_split, faults_of, revived
from cluster.local.api.podmarks import MODEL_LABEL, PODS
from cluster.local.api.resources import BY_KIND, Object, condition, path
from cluster.local.api.store import Recorder, Store, owner_reference
from cluster.local.controllers import workload
from cluster.local.controllers.autoscaler import Autoscaling, Changed
from cluster.local.controllers.podtemplate import InvalidSpec, template_hash
from cluster.local.controllers.traffic import Rollout, Target, route_traffic
from cluster.local.controllers.workload import is_ready
from cluster.local.ingress.routes import Backend, RevisionRoute, RouteTable, Share
from cluster.local.kubelet.pods import Kubelet

REVISION = BY_KIND["Revision"]
HASH_ANNOTATION = "local.servecert.io/template-hash"
REVISION_LABEL = "serving.knative.dev/revision"
TAG_ROUTING = "serving.kserve.io/enable-tag-routing"
LINGER_S = 0.5
REVIVED_PODS = 2


@dataclass(frozen=True)
class Outlook:
    """What reconciling found out about an InferenceService; revisions by name, oldest first."""

    revisions: dict[str, Object]
    created: str
    ready: str
    targets: tuple[Target, ...]
    rollout: Rollout
    invalid: InvalidSpec | None


class Knative:
    def __init__(
        self, store: Store, kubelet: Kubelet, routes: RouteTable, recorder: Recorder, changed: Changed
    ) -> None:
        self.store = store
        self.kubelet = kubelet
        self.routes = routes
        self.recorder = recorder
        self.autoscaling = Autoscaling(store, routes, changed)
        self._known: dict[tuple[str, str], set[str]] = {}
        self._lingers: set[str] = set()

    def reconcile(self, isvc: Object, template: Object | None, invalid: InvalidSpec | None) -> None:
        """``template`` is None where the specification is ``invalid``."""
        namespace, name = isvc["metadata"]["namespace"], isvc["metadata"]["name"]
        if template is not None:
            self._ensure_revision(isvc, template)
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
            back = revision_name == revived(list(revisions), routed, created, faults)
            reachable = revision_name in routed or pending
            self._scale(isvc, revision, reachable=reachable, least=REVIVED_PODS if back else 0)
        self._publish(isvc, revisions, targets, faults)
        workload.ensure_service(self.store, isvc, f"{name}-predictor", {MODEL_LABEL: name})
        self._write_status(isvc, Outlook(revisions, created, ready, tuple(targets), rollout, invalid))

    def forget(self, namespace: str, name: str) -> None:
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
        return [pod for pod in self._pods(revision) if is_ready(pod)]

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
        live.sort(key=workload.keep_order)
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
            "conditions": workload.conditions(
                fresh,
                {
                    "ContainerHealthy": (state, "", ""),
                    "ResourcesAvailable": (state, "", ""),
                    "Active": activity,
                    "Ready": (state, "", ""),
                },
                knative=True,
            ),
            "containerStatuses": [{"name": item["name"]} for item in revision["spec"]["containers"]],
            "actualReplicas": ready,
            "desiredReplicas": wanted,
            "observedGeneration": fresh["metadata"]["generation"],
        }
        self.store.update(REVISION, fresh, subresource="status")

    def _failure(self, revision: Object) -> Object | None:
        return workload.failure_of(self._pods(revision), revision["metadata"]["name"])

    def _create_pod(self, revision: Object) -> None:
        metadata = revision["metadata"]
        labels = {**metadata["labels"], "app": metadata["name"], REVISION_LABEL: metadata["name"]}
        annotations = {key: value for key, value in metadata["annotations"].items() if key != HASH_ANNOTATION}
        own = ("timeoutSeconds", "containerConcurrency")
        spec = {key: value for key, value in revision["spec"].items() if key not in own}
        workload.create_pod(self.store, revision, labels, annotations, spec)

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
            self.routes.set_backends(namespace, name, [*(workload.backend_of(pod, name) for pod in ready), *kept])
        shares: dict[str, float] = {}
        for target in targets:
            shares[target.revision] = shares.get(target.revision, 0.0) + target.percent
        shares = broken_split(shares, list(revisions), faults)
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
            "conditions": workload.conditions(
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
                knative=True,
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
        status["modelStatus"] = workload.model_status(
            self._pods(created) if created else [], old, up=up, rolled_out=rolled_out, failure=failure, invalid=invalid
        )
        workload.write_status(self.store, self.recorder, isvc, status, ready)
