"""InferenceServices in Standard mode (older name RawDeployment): deployments, canaries beside them, and an HPA on cpu.

``spec.canary[]`` makes a deployment each, with fixed replicas and its percentage of the traffic once it is ready; the
stable one gives up as many pods as ready canaries have. Without an activator a request to a service without a ready pod
is refused.

Sources: kserve/kserve, pkg/controller/v1beta1/inferenceservice/components/predictor.go,
pkg/apis/serving/v1beta1/inference_service_validation.go and reconcilers/ingress/httproute_reconciler.go; Kubernetes
Deployments (rolling update) and horizontal pod autoscaling.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.local.api.faults import broken_split, faults_of
from cluster.local.api.patches import strategic_merge
from cluster.local.api.podmarks import MODEL_LABEL, PODS
from cluster.local.api.resources import BY_KIND, Object, path
from cluster.local.api.store import ApiError, Recorder, Store, owner_reference
from cluster.local.controllers import workload
from cluster.local.controllers.hpa import STABILIZATION_S, Hpa, wish
from cluster.local.controllers.podtemplate import InvalidSpec, template_hash
from cluster.local.controllers.workload import is_ready
from cluster.local.ingress.routes import RouteTable, Share
from cluster.local.kubelet.pods import Kubelet
from harness.base.quantities import parse_quantity
from harness.kubernetes.kpa_settings import PREFIX

DEPLOYMENT = BY_KIND["Deployment"]
HPA = BY_KIND["HorizontalPodAutoscaler"]
AUTOSCALER_CLASS = "serving.kserve.io/autoscalerClass"
CLASSES = ("hpa", "external", "none")
HASH_LABEL = "pod-template-hash"
CPU_TARGET = 80
"""Percent of the request, where ``scaleTarget`` does not say."""
SURGE = UNAVAILABLE = 0.25
REVISION = "deployment.kubernetes.io/revision"
_FIXED = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


def check(isvc: Object) -> None:
    """Raises InvalidSpec for canaries that KServe does not admit."""
    canaries = isvc["spec"].get("canary") or []
    stable = isvc["spec"]["predictor"]
    kind = (isvc["metadata"].get("annotations") or {}).get(AUTOSCALER_CLASS, "hpa")
    if kind not in CLASSES:
        raise InvalidSpec(
            "InvalidPredictorSpec", f"{AUTOSCALER_CLASS}: expected {', '.join(CLASSES)} here, got {kind!r}"
        )
    names: set[str] = set()
    total = 0
    for index, canary in enumerate(canaries):
        predictor, percent = canary.get("predictor") or {}, canary.get("trafficPercent")
        name = predictor.get("name", "")
        if not name:
            raise InvalidSpec("InvalidPredictorSpec", f"canary[{index}] predictor.name is required")
        if name in names or name == stable.get("name"):
            raise InvalidSpec("InvalidPredictorSpec", f"canary predictor.name {name!r} is taken already")
        if not isinstance(percent, int) or not 0 <= percent <= 100:
            raise InvalidSpec(
                "InvalidPredictorSpec", f"canary {name!r}: trafficPercent must be 0 to 100, got {percent!r}"
            )
        if fixed := [key for key in _FIXED if key in predictor]:
            raise InvalidSpec(
                "InvalidPredictorSpec", f"canary {name!r} must not set {fixed[0]}: its replicas are fixed"
            )
        if predictor.get("minReplicas", 0) > stable.get("minReplicas", 1):
            raise InvalidSpec(
                "InvalidPredictorSpec", f"canary {name!r}: more minReplicas than the stable predictor has"
            )
        names.add(name)
        total += percent
    if total > 100:
        raise InvalidSpec("InvalidPredictorSpec", f"the canaries' trafficPercent must be at most 100, got {total}")


def canary_replicas(stable: Object, canary: Object) -> int:
    own = canary["predictor"].get("minReplicas")
    if own is not None:
        return int(own)
    percent = int(canary["trafficPercent"])
    return math.ceil(int(stable.get("minReplicas", 1)) * percent / 100)


def canary_predictor(stable: Object, canary: Object) -> Object:
    """The stable predictor with what the canary overrides; its replicas are its own matter."""
    base = {key: value for key, value in stable.items() if key not in _FIXED and key != "name"}
    return dict(strategic_merge(base, canary["predictor"]))


@dataclass(frozen=True)
class Part:
    """A deployment that an InferenceService wants. ``name`` is the canary's, empty for the stable one."""

    deployment: str
    name: str
    template: Object
    replicas: int
    percent: int


class Standard:
    """``template_of`` gives the pod template of an InferenceService, or raises InvalidSpec."""

    def __init__(
        self,
        store: Store,
        kubelet: Kubelet,
        routes: RouteTable,
        recorder: Recorder,
        template_of: Callable[[Object], Object],
    ) -> None:
        self.store = store
        self.kubelet = kubelet
        self.routes = routes
        self.recorder = recorder
        self.template_of = template_of
        self._known: dict[tuple[str, str], set[str]] = {}
        self._hpas: dict[tuple[str, str], Hpa] = {}
        self._used_s: dict[str, tuple[float, float]] = {}
        """By pod: when its processor time was read, and what it was."""

    # Reconciling

    def reconcile(self, isvc: Object, template: Object | None, invalid: InvalidSpec | None) -> None:
        metadata = isvc["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        parts: list[Part] = []
        if template is not None:
            try:
                check(isvc)
                parts = self._parts(isvc, template)
            except InvalidSpec as error:
                invalid = error
        if invalid is None:
            for part in parts:
                self._ensure_deployment(isvc, part)
                workload.ensure_service(self.store, isvc, part.deployment, {"app": f"isvc.{part.deployment}"})
            self._ensure_hpa(isvc, parts[0])
        wanted = {part.deployment for part in parts}
        found = self._deployments(isvc)
        for deployment in found:
            mine = deployment["metadata"]["name"]
            leaving = invalid is None and mine not in wanted and self._replaced(parts, found)
            self._roll(deployment, 0 if leaving else None)
            if leaving and not self._pods(deployment):
                self.store.delete(DEPLOYMENT, namespace, mine)
        self._known[namespace, name] = {item["metadata"]["name"] for item in found}
        self._publish(isvc, parts)
        self._write_status(isvc, parts, invalid)

    def forget(self, namespace: str, name: str) -> None:
        known = self._known.pop((namespace, name), None)
        if known is None:
            return
        self.routes.remove(namespace, name)
        for deployment in known:
            self.routes.remove_revision(namespace, deployment)
            self._hpas.pop((namespace, deployment), None)

    def _parts(self, isvc: Object, template: Object) -> list[Part]:
        """The stable deployment first. Raises InvalidSpec."""
        stable = isvc["spec"]["predictor"]
        name = isvc["metadata"]["name"]
        canaries = isvc["spec"].get("canary") or []
        ready = {item["name"] for item in path(isvc, "status", "canaryStatuses", default=[]) if item["ready"]}
        given_up = sum(canary_replicas(stable, item) for item in canaries if item["predictor"]["name"] in ready)
        least = int(stable.get("minReplicas", 1)) or 1
        own = f"{name}-{stable['name']}-predictor" if stable.get("name") else f"{name}-predictor"
        percent = 100 - sum(item["trafficPercent"] for item in canaries)
        parts = [Part(own, "", template, max(least - given_up, 1) if given_up else least, percent)]
        for item in canaries:
            variant = {**isvc, "spec": {**isvc["spec"], "predictor": canary_predictor(stable, item)}}
            parts.append(
                Part(
                    f"{name}-{item['predictor']['name']}-predictor",
                    item["predictor"]["name"],
                    self.template_of(variant),
                    canary_replicas(stable, item),
                    item["trafficPercent"],
                )
            )
        return parts

    def _deployments(self, isvc: Object) -> list[Object]:
        metadata = isvc["metadata"]
        return self.store.list(DEPLOYMENT, metadata["namespace"], {MODEL_LABEL: metadata["name"]})

    def _ensure_deployment(self, isvc: Object, part: Part) -> None:
        metadata = isvc["metadata"]
        digest = template_hash(part.template)
        app = f"isvc.{part.deployment}"
        labels = {**part.template["metadata"]["labels"], "app": app}
        kept = {k: v for k, v in part.template["metadata"]["annotations"].items() if not k.startswith(PREFIX)}
        wanted_template = {"metadata": {"labels": labels, "annotations": kept}, "spec": part.template["spec"]}
        old = self.store.find("Deployment", metadata["namespace"], part.deployment)
        if old is None:
            self.store.create(
                DEPLOYMENT,
                {
                    "metadata": {
                        "name": part.deployment,
                        "namespace": metadata["namespace"],
                        "labels": labels,
                        "annotations": {REVISION: "1", HASH_LABEL: digest},
                        "ownerReferences": [owner_reference(isvc)],
                    },
                    "spec": {
                        "replicas": part.replicas,
                        "selector": {"matchLabels": {"app": app}},
                        "template": wanted_template,
                    },
                },
            )
            return
        scaled = not part.name and self._scales(isvc)
        if old["metadata"]["annotations"].get(HASH_LABEL) != digest:
            annotations = old["metadata"]["annotations"]
            annotations[REVISION] = str(int(annotations.get(REVISION, "0")) + 1)
            annotations[HASH_LABEL] = digest
            old["spec"]["template"] = wanted_template
        if not scaled or old["spec"]["replicas"] < part.replicas:
            old["spec"]["replicas"] = part.replicas
        self.store.update(DEPLOYMENT, old)

    @staticmethod
    def _scales(isvc: Object) -> bool:
        annotations = isvc["metadata"].get("annotations") or {}
        return annotations.get(AUTOSCALER_CLASS, "hpa") == "hpa" and not isvc["spec"].get("canary")

    def _replaced(self, parts: list[Part], found: list[Object]) -> bool:
        """Whether what stands in place of a deployment that goes is ready: nobody is left without a pod."""
        names = {part.deployment for part in parts}
        return all(
            any(is_ready(pod) for pod in self._pods(item))
            for item in found
            if item["metadata"]["name"] in names and item["spec"]["replicas"]
        )

    def _pods(self, deployment: Object) -> list[Object]:
        metadata = deployment["metadata"]
        return self.store.list(PODS, metadata["namespace"], {"app": f"isvc.{metadata['name']}"})

    def _roll(self, deployment: Object, replicas: int | None) -> None:
        """A rolling update's next step; ``replicas`` None takes the deployment's own."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        wanted = int(spec["replicas"]) if replicas is None else replicas
        digest = metadata["annotations"][HASH_LABEL]
        pods = [pod for pod in self._pods(deployment) if "deletionTimestamp" not in pod["metadata"]]
        new = sorted(
            (pod for pod in pods if pod["metadata"]["labels"].get(HASH_LABEL) == digest), key=workload.keep_order
        )
        old = [pod for pod in pods if pod["metadata"]["labels"].get(HASH_LABEL) != digest]
        room = wanted + math.ceil(wanted * SURGE) - len(pods)
        missing = min(wanted - len(new), room)
        for _ in range(missing):
            self._create_pod(deployment, digest)
        for pod in new[wanted:]:
            self._delete(deployment, pod)
        spare = sum(is_ready(pod) for pod in [*new[:wanted], *old]) - (wanted - math.floor(wanted * UNAVAILABLE))
        for pod in sorted(old, key=is_ready):  # those that serve nobody go first, and at once
            if not is_ready(pod):
                self._delete(deployment, pod)
            elif spare > 0:
                spare -= 1
                self._delete(deployment, pod)
        self._write_deployment_status(deployment, wanted)

    def _create_pod(self, deployment: Object, digest: str) -> None:
        template = deployment["spec"]["template"]
        labels = {**template["metadata"]["labels"], HASH_LABEL: digest}
        workload.create_pod(self.store, deployment, labels, template["metadata"]["annotations"], template["spec"])

    def _delete(self, deployment: Object, pod: Object) -> None:
        self.routes.withdraw(pod["metadata"]["name"])
        self.store.delete(PODS, deployment["metadata"]["namespace"], pod["metadata"]["name"])

    def _write_deployment_status(self, deployment: Object, wanted: int) -> None:
        metadata = deployment["metadata"]
        fresh = self.store.find("Deployment", metadata["namespace"], metadata["name"])
        if fresh is None:
            return
        pods = [pod for pod in self._pods(fresh) if "deletionTimestamp" not in pod["metadata"]]
        digest = metadata["annotations"][HASH_LABEL]
        ready = sum(is_ready(pod) for pod in pods)
        updated = sum(pod["metadata"]["labels"].get(HASH_LABEL) == digest for pod in pods)
        available = "True" if ready >= wanted - math.floor(wanted * UNAVAILABLE) else "False"
        done = updated == len(pods) == ready == wanted
        fresh["status"] = {
            "observedGeneration": fresh["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": updated,
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(0, wanted - ready),
            "conditions": workload.conditions(
                fresh,
                {
                    "Available": (available, "MinimumReplicasAvailable" if available == "True" else "", ""),
                    "Progressing": ("True", "NewReplicaSetAvailable" if done else "ReplicaSetUpdated", ""),
                },
            ),
        }
        self.store.update(DEPLOYMENT, fresh, subresource="status")

    def _publish(self, isvc: Object, parts: list[Part]) -> None:
        namespace, name = isvc["metadata"]["namespace"], isvc["metadata"]["name"]
        faults = faults_of(isvc)
        shares: dict[str, float] = {}
        left = 100
        for deployment in self._deployments(isvc):
            mine = deployment["metadata"]["name"]
            here = self.routes.revision(namespace, mine)
            here.holds, here.activator = False, False
            here.faults = faults_of(isvc, deployment["spec"]["template"])
            here.crash = self.kubelet.crash
            here.timeout_s = float(isvc["spec"]["predictor"].get("timeout") or 300)
            ready = [pod for pod in self._pods(deployment) if is_ready(pod)]
            self.routes.set_backends(namespace, mine, [workload.backend_of(pod, mine) for pod in ready])
        for part in parts[1:]:
            if self.routes.revision(namespace, part.deployment).backends:
                shares[part.deployment] = part.percent
                left -= part.percent
        if parts:
            stable = self._serving(namespace, parts[0], isvc)
            shares = {stable: left, **shares} if stable else shares
        shares = broken_split(shares, list(shares), faults)
        held = [Share(self.routes.revision(namespace, key), percent) for key, percent in shares.items()]
        self.routes.set(namespace, name, held, {})

    def _serving(self, namespace: str, stable: Part, isvc: Object) -> str:
        """The stable deployment; while it has no ready pod yet, one that it stands in place of, if there is one."""
        if self.routes.revision(namespace, stable.deployment).backends:
            return stable.deployment
        for deployment in self._deployments(isvc):
            mine = deployment["metadata"]["name"]
            if self.routes.revision(namespace, mine).backends and mine != stable.deployment:
                return str(mine)
        return stable.deployment

    # Status

    def _write_status(self, isvc: Object, parts: list[Part], invalid: InvalidSpec | None) -> None:
        metadata = isvc["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        old = isvc.get("status", {})
        states: dict[str, tuple[bool, list[Object]]] = {}
        for part in parts:
            deployment = self.store.find("Deployment", namespace, part.deployment)
            pods = self._pods(deployment) if deployment else []
            digest = template_hash(part.template)
            newest = [pod for pod in pods if pod["metadata"]["labels"].get(HASH_LABEL) == digest]
            states[part.deployment] = sum(map(is_ready, newest)) >= part.replicas, newest
        rolled_out, newest = states[parts[0].deployment] if parts else (False, [])
        up = any(self.routes.revision(namespace, item["metadata"]["name"]).backends for item in self._deployments(isvc))
        failure = None if rolled_out else workload.failure_of(newest, parts[0].deployment if parts else "")
        predictor = ("True", "", "") if rolled_out else ("Unknown", "Deploying", "")
        if invalid:
            predictor = ("False", invalid.reason, str(invalid))
        elif failure:
            predictor = ("False", "MinimumReplicasUnavailable", str(failure["message"]))
        ingress = ("True", "", "") if up else ("False", "NoReadyPods", "")
        ready = predictor if predictor[0] != "True" else ingress
        wanted = {"IngressReady": ingress, "PredictorReady": predictor, "Ready": ready, "Stopped": ("False", "", "")}
        status: Object = {"observedGeneration": metadata["generation"], "deploymentMode": "Standard"}
        canaries = [part for part in parts if part.name]
        if canaries:
            status["canaryStatuses"] = [
                {"name": part.name, "ready": states[part.deployment][0], "trafficPercent": part.percent}
                for part in canaries
            ]
            all_ready = all(item["ready"] for item in status["canaryStatuses"])
            wanted["CanaryPredictorReady"] = ("True", "", "") if all_ready else ("False", "CanaryNotReady", "")
        status["conditions"] = workload.conditions(isvc, wanted, knative=True)
        status["modelStatus"] = workload.model_status(
            newest, old, up=up, rolled_out=rolled_out, failure=failure, invalid=invalid
        )
        if up or old.get("url"):
            host = f"{name}-predictor"
            status["url"] = f"http://{self.routes.host(namespace, name)}"
            status["address"] = {"url": f"http://{host}.{namespace}.svc.cluster.local"}
            status["components"] = {
                "predictor": {
                    "url": f"http://{self.routes.host(namespace, host)}",
                    "address": {"url": f"http://{host}.{namespace}.svc.cluster.local"},
                }
            }
        workload.write_status(self.store, self.recorder, isvc, status, ready)

    # Scaling

    def _ensure_hpa(self, isvc: Object, stable: Part) -> None:
        metadata, predictor = isvc["metadata"], isvc["spec"]["predictor"]
        namespace = metadata["namespace"]
        found = self.store.find("HorizontalPodAutoscaler", namespace, stable.deployment)
        if not self._scales(isvc) or predictor.get("scaleMetric", "cpu") != "cpu":
            if found:
                self.store.delete(HPA, namespace, stable.deployment)
            return
        least = int(predictor.get("minReplicas", 1)) or 1
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": stable.deployment},
            "minReplicas": least,
            "maxReplicas": max(int(predictor.get("maxReplicas") or 0), least),
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {
                            "type": "Utilization",
                            "averageUtilization": int(predictor.get("scaleTarget") or CPU_TARGET),
                        },
                    },
                }
            ],
        }
        if found is None:
            meta = {"name": stable.deployment, "namespace": namespace, "ownerReferences": [owner_reference(isvc)]}
            self.store.create(HPA, {"metadata": meta, "spec": spec})
            return
        found["spec"] = {**found["spec"], **spec}  # what people add, such as a behavior, stays
        self.store.update(HPA, found)

    async def autoscale(self, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            for item in self.store.list(HPA):
                try:
                    self._autoscale(item)
                except ApiError:
                    continue  # changed or gone meanwhile: the next period sees it

    def _autoscale(self, item: Object) -> None:
        metadata, spec = item["metadata"], item["spec"]
        key = (metadata["namespace"], metadata["name"])
        deployment = self.store.find("Deployment", key[0], spec["scaleTargetRef"]["name"])
        if deployment is None:
            return
        usage = self._utilization(deployment)
        ready = [pod for pod in self._pods(deployment) if is_ready(pod)]
        current = int(deployment["spec"]["replicas"])
        target = float(path(spec["metrics"][0], "resource", "target", "averageUtilization", default=CPU_TARGET))
        behavior = path(spec, "behavior", "scaleDown", "stabilizationWindowSeconds", default=STABILIZATION_S)
        hpa = self._hpas.setdefault(key, Hpa())
        hpa.stabilization_s = float(behavior)
        wished = current if usage is None else wish(current, len(ready), usage, target)
        desired = hpa.decide(time.monotonic(), current, wished, int(spec["minReplicas"]), int(spec["maxReplicas"]))
        if desired != current:
            deployment["spec"]["replicas"] = desired
            self.store.update(DEPLOYMENT, deployment)
            message = f"New size: {desired}; reason: cpu resource utilization (percentage of request) "
            message += "above target" if desired > current else "below target"
            self.recorder.event(item, "SuccessfulRescale", message)
        status: Object = {"currentReplicas": len(ready), "desiredReplicas": desired}
        if usage is not None:
            current_usage = {"averageUtilization": round(usage)}
            status["currentMetrics"] = [{"type": "Resource", "resource": {"name": "cpu", "current": current_usage}}]
        scaling = ("True", "ValidMetricFound", "") if usage is not None else ("False", "FailedGetResourceMetric", "")
        status["conditions"] = workload.conditions(item, {"ScalingActive": scaling})
        fresh = self.store.get(HPA, *key)
        fresh["status"] = status
        self.store.update(HPA, fresh, subresource="status")

    def _utilization(self, deployment: Object) -> float | None:
        """Percent of the request that the ready pods used since the last look, on average; None without a request, or
        before there is anything to compare."""
        request = parse_quantity(
            path(deployment["spec"]["template"]["spec"]["containers"][0], "resources", "requests", "cpu")
        )
        shares = []
        for pod in self._pods(deployment):
            name = pod["metadata"]["name"]
            used_s = self.kubelet.processor_s(name) if is_ready(pod) else None
            if used_s is None:
                self._used_s.pop(name, None)
                continue
            now_s = time.monotonic()
            before = self._used_s.get(name)
            self._used_s[name] = (now_s, used_s)
            if before:
                shares.append((used_s - before[1]) / max(now_s - before[0], 1e-3))
        if request is None or not shares:
            return None
        return 100 * sum(shares) / len(shares) / request
