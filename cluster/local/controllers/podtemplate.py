"""From an InferenceService and its serving runtime to a pod template. Pure functions.

Source: kserve/kserve, pkg/controller/v1beta1/inferenceservice/utils and components/predictor; runtime selection in
pkg/apis/serving/v1beta1/predictor_model.go.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from typing import Any

from cluster.local.api import faults
from cluster.local.api.patches import strategic_merge
from cluster.local.api.podmarks import MODEL_LABEL, STORAGE_ANNOTATION
from cluster.local.api.resources import Object
from cluster.local.kubelet.devices import GPU
from harness.kubernetes.kpa_settings import settings_of
from harness.kubernetes.predictors import FRAMEWORKS

CONTAINER = "kserve-container"
MODEL_DIR = "/mnt/models"
MODE = "serving.kserve.io/deploymentMode"
STANDARD = ("Standard", "RawDeployment")
INITIALIZER_IMAGE = "kserve/storage-initializer:v0.20.0"
_EXTENSION_FIELDS = {
    "minReplicas",
    "maxReplicas",
    "scaleTarget",
    "scaleMetric",
    "scaleMetricType",
    "autoScaling",
    "containerConcurrency",
    "timeout",
    "canaryTrafficPercent",
    "logger",
    "batcher",
    "labels",
    "annotations",
    "deploymentStrategy",
    "workerSpec",
    "name",
    "model",
    *FRAMEWORKS,
}


class InvalidSpec(Exception):
    """``reason`` is one of KServe's failure reasons."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def is_standard(isvc: Object) -> bool:
    """Its deployment mode; without the annotation it is Knative's."""
    return (isvc["metadata"].get("annotations") or {}).get(MODE) in STANDARD


def model_of(predictor: Object) -> Object | None:
    """The ``model`` block; an older framework key stands for a model of that format. None for plain containers."""
    if "model" in predictor:
        return dict(predictor["model"])
    for name in FRAMEWORKS:
        if name in predictor:
            return {"modelFormat": {"name": name}, **predictor[name]}
    return None


def select_runtime(model: Object, namespaced: list[Object], cluster: list[Object]) -> Object:
    """By name, else the enabled runtime that supports the format, highest priority first. Raises InvalidSpec."""
    wanted = model.get("modelFormat") or {}
    if name := model.get("runtime"):
        for runtime in [*namespaced, *cluster]:
            if runtime["metadata"]["name"] == name:
                if runtime["spec"].get("disabled"):
                    raise InvalidSpec("RuntimeDisabled", f"specified runtime {name} is disabled")
                if not _speaks(runtime, model):
                    raise InvalidSpec(
                        "NoSupportingRuntime",
                        f"specified runtime {name} does not support protocol {model['protocolVersion']}",
                    )
                return runtime
        raise InvalidSpec("RuntimeNotRecognized", f"no ServingRuntime or ClusterServingRuntime with the name: {name}")
    for candidates in (namespaced, cluster):
        supporting = []
        for runtime in candidates:
            if runtime["spec"].get("disabled") or not _speaks(runtime, model):
                continue
            for entry in runtime["spec"].get("supportedModelFormats", []):
                same_version = not wanted.get("version") or str(wanted["version"]) == str(entry.get("version", ""))
                if entry.get("name") == wanted.get("name") and same_version and entry.get("autoSelect"):
                    supporting.append((-int(entry.get("priority") or 0), runtime["metadata"]["name"], runtime))
        if supporting:
            return min(supporting, key=lambda item: item[:2])[2]
    raise InvalidSpec(
        "NoSupportingRuntime", f"no runtime found to support predictor with model type: {wanted.get('name')}"
    )


def _speaks(runtime: Object, model: Object) -> bool:
    versions = runtime["spec"].get("protocolVersions") or []
    return not model.get("protocolVersion") or not versions or model["protocolVersion"] in versions


def _fill(value: Any, isvc: Object) -> Any:
    """``{{.Name}}``, ``{{.Namespace}}``, ``{{.Labels.x}}`` and ``{{.Annotations.x}}`` in a runtime's container."""
    metadata = isvc["metadata"]

    def replace(match: re.Match[str]) -> str:
        kind, key = match[1], match[2]
        if kind in ("Name", "Namespace"):
            return str(metadata.get(kind.lower(), ""))
        return str((metadata.get(kind.lower()) or {}).get(key or "", ""))

    text = re.sub(r"\{\{\s*\.(Name|Namespace|Labels|Annotations)(?:\.([\w./-]+))?\s*\}\}", replace, json.dumps(value))
    return json.loads(text)


def build_template(isvc: Object, namespaced: list[Object], cluster: list[Object]) -> Object:
    """``{"metadata": {labels, annotations}, "spec": PodSpec, "runtime": name}``. Raises InvalidSpec."""
    predictor = isvc["spec"]["predictor"]
    metadata = isvc["metadata"]
    pod = copy.deepcopy({key: value for key, value in predictor.items() if key not in _EXTENSION_FIELDS})
    model = model_of(predictor)
    runtime_name = ""
    source = None
    if model is not None:
        runtime = select_runtime(model, namespaced, cluster)
        runtime_name = runtime["metadata"]["name"]
        source = model.get("storageUri")
        base = copy.deepcopy(
            {
                key: value
                for key, value in runtime["spec"].items()
                if key in ("containers", "volumes", "nodeSelector", "tolerations", "affinity", "imagePullSecrets")
            }
        )
        pod = strategic_merge(base, pod)
        container = next((item for item in pod.get("containers", []) if item["name"] == CONTAINER), None)
        if container is None:
            raise InvalidSpec("InvalidPredictorSpec", f"runtime {runtime_name} has no container named {CONTAINER}")
        container.update(_fill(container, isvc))
        _merge_model(container, model)
        labels_of_runtime = runtime["spec"].get("labels", {})
        annotations_of_runtime = runtime["spec"].get("annotations", {})
    elif pod.get("containers"):
        labels_of_runtime = annotations_of_runtime = {}
        container = pod["containers"][0]
        source = next(
            (item.get("value") for item in container.get("env", []) if item.get("name") == "STORAGE_URI"), None
        )
    else:
        raise InvalidSpec("InvalidPredictorSpec", "the predictor has neither a model nor containers")
    annotations = {
        **annotations_of_runtime,
        **{k: v for k, v in (metadata.get("annotations") or {}).items() if not _of_the_object(k)},
        **(predictor.get("annotations") or {}),
        "autoscaling.knative.dev/class": (metadata.get("annotations") or {}).get(
            "autoscaling.knative.dev/class", "kpa.autoscaling.knative.dev"
        ),
        "autoscaling.knative.dev/min-scale": str(predictor.get("minReplicas", 1)),
    }
    if predictor.get("maxReplicas"):
        annotations["autoscaling.knative.dev/max-scale"] = str(predictor["maxReplicas"])
    if predictor.get("scaleTarget"):
        annotations["autoscaling.knative.dev/target"] = str(predictor["scaleTarget"])
    if predictor.get("scaleMetric"):
        annotations["autoscaling.knative.dev/metric"] = predictor["scaleMetric"]
    if source:
        annotations[STORAGE_ANNOTATION] = source
        pod["initContainers"] = [
            *pod.get("initContainers", []),
            {"name": "storage-initializer", "image": INITIALIZER_IMAGE, "args": [source, MODEL_DIR]},
        ]
    _check(annotations, isvc, predictor.get("containerConcurrency") or 0)
    if not is_standard(isvc):
        _route_to_one_port(pod["containers"])
    _check_gpus(pod["containers"])
    pod.setdefault("restartPolicy", "Always")
    pod.setdefault("terminationGracePeriodSeconds", 30)
    labels = {
        **labels_of_runtime,
        **(metadata.get("labels") or {}),
        **(predictor.get("labels") or {}),
        MODEL_LABEL: metadata["name"],
        "component": "predictor",
    }
    return {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": pod,
        "runtime": runtime_name,
        "timeoutSeconds": predictor.get("timeout") or 300,
        "containerConcurrency": predictor.get("containerConcurrency") or 0,
    }


def _merge_model(container: Object, model: Object) -> None:
    """The model's container fields over the runtime's; arguments are added, environment variables merged by name."""
    skip = (
        "modelFormat",
        "storageUri",
        "storageUris",
        "storage",
        "runtime",
        "runtimeVersion",
        "protocolVersion",
        "name",
        "args",
    )
    overrides = {key: value for key, value in model.items() if key not in skip}
    container.update(strategic_merge(container, overrides))
    if model.get("args"):
        container["args"] = [*container.get("args", []), *model["args"]]
    if version := model.get("runtimeVersion"):
        repository = (
            container["image"].rsplit(":", 1)[0] if ":" in container["image"].rsplit("/", 1)[-1] else container["image"]
        )
        container["image"] = f"{repository}:{version}"


def _route_to_one_port(containers: list[Object]) -> None:
    """Knative takes one port, and sends the probes of its container there. Raises InvalidSpec. Source: knative/serving,
    pkg/apis/serving/k8s_validation.go, pkg/reconciler/revision/resources."""
    ports = [(container, port) for container in containers for port in container.get("ports") or []]
    if len(ports) > 1:
        raise InvalidSpec(
            "InvalidPredictorSpec",
            'admission webhook "validation.webhook.serving.knative.dev" denied the request: validation failed: more'
            " than one container port is set: spec.template.spec.containers[*].ports\nOnly a single port is allowed"
            " across all containers",
        )
    for container, port in ports:
        for name in ("readinessProbe", "livenessProbe"):
            for kind in ("httpGet", "tcpSocket"):
                if kind in (container.get(name) or {}):
                    container[name][kind]["port"] = port["containerPort"]


def _check_gpus(containers: list[Object]) -> None:
    """Raises InvalidSpec. Extended resources are whole, and cannot be overcommitted, as in a real API."""
    for container in containers:
        resources = container.get("resources") or {}
        requests, limits = (resources.get(part) or {} for part in ("requests", "limits"))
        asked = {part.get(GPU) for part in (requests, limits) if GPU in part}
        where = f"{container.get('name', '')}.resources"
        if any(not str(value).isdigit() for value in asked):
            raise InvalidSpec(
                "InvalidPredictorSpec", f"{where}: {GPU} must be an integer, got {', '.join(map(str, asked))}"
            )
        if GPU in requests and str(requests[GPU]) != str(limits.get(GPU)):
            raise InvalidSpec("InvalidPredictorSpec", f"{where}: the limit of {GPU} must be set, and equal its request")


def _of_the_object(annotation: str) -> bool:
    """Whether it speaks of the InferenceService itself, so that changing it makes no revision."""
    return "kubectl.kubernetes.io" in annotation or annotation.startswith(faults.PREFIX)


def _check(annotations: Object, isvc: Object, concurrency: int) -> None:
    """Raises InvalidSpec for annotations that nobody could follow."""
    try:
        if not is_standard(isvc):
            settings_of(annotations, {}, concurrency)
        for item in (annotations, isvc["metadata"].get("annotations") or {}):
            faults.parse(item.get(faults.ANNOTATION, ""))
    except ValueError as error:
        raise InvalidSpec("InvalidPredictorSpec", str(error)) from error


def template_hash(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:12]
