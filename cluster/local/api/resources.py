"""The resource types that the embedded API serves, and the columns kubectl prints for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Cell = Callable[[Object], Any]


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    cell: Cell
    priority: int = 0
    description: str = ""


@dataclass(frozen=True)
class ResourceType:
    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    """Whether ``/status`` is a subresource of its own; writes elsewhere then leave ``status`` alone."""
    columns: tuple[Column, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


def path(item: Object, *keys: str, default: Any = None) -> Any:
    """The value under nested keys, or ``default`` where one of them is missing."""
    value: Any = item
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return default
        value = value[key]
    return value


def condition(item: Object, kind: str) -> Object | None:
    for entry in path(item, "status", "conditions", default=[]):
        if entry.get("type") == kind:
            return dict(entry)
    return None


def age(timestamp: str | None) -> str:
    """A duration the way kubectl abbreviates it: 5s, 3m12s, 2h, 4d."""
    if not timestamp:
        return "<unknown>"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds())
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h" if hours < 48 else f"{hours // 24}d"


_NAME = Column("Name", "string", lambda item: item["metadata"]["name"])
_AGE = Column("Age", "date", lambda item: age(item["metadata"].get("creationTimestamp")))


def _pod_ready(pod: Object) -> str:
    statuses = path(pod, "status", "containerStatuses", default=[])
    return f"{sum(bool(status.get('ready')) for status in statuses)}/{len(pod['spec'].get('containers', []))}"


def _pod_status(pod: Object) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    for index, status in enumerate(path(pod, "status", "initContainerStatuses", default=[])):
        state = status.get("state", {})
        if reason := path(state, "waiting", "reason"):
            return f"Init:{reason}" if reason != "PodInitializing" else f"Init:{index}"
        if path(state, "terminated", "exitCode", default=0) != 0:
            return f"Init:{state['terminated'].get('reason', 'Error')}"
        if "running" in state:
            return f"Init:{index}/{len(pod['spec'].get('initContainers', []))}"
    for status in path(pod, "status", "containerStatuses", default=[]):
        state = status.get("state", {})
        for kind in ("waiting", "terminated"):
            if reason := path(state, kind, "reason"):
                return str(reason)
    return str(path(pod, "status", "phase", default="Pending"))


def _restarts(pod: Object) -> int:
    return sum(status.get("restartCount", 0) for status in path(pod, "status", "containerStatuses", default=[]))


def _traffic(key: str, wanted: Any, field: str) -> Cell:
    def cell(isvc: Object) -> Any:
        for target in path(isvc, "status", "components", "predictor", "traffic", default=[]):
            if target.get(key) == wanted:
                return target.get(field)
        return None

    return cell


def _ready(item: Object) -> str:
    entry = condition(item, "Ready")
    return str(entry["status"]) if entry else ""


def _ports(service: Object) -> str:
    return (
        ",".join(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in service["spec"].get("ports", []))
        or "<none>"
    )


def _formats(runtime: Object) -> str:
    return str(path(runtime, "spec", "supportedModelFormats", default=[{}])[0].get("name", ""))


def _deployed(item: Object) -> str:
    return f"{path(item, 'status', 'readyReplicas', default=0)}/{item['spec'].get('replicas', 1)}"


def _targets(item: Object) -> str:
    target = path(item["spec"]["metrics"][0], "resource", "target", "averageUtilization", default="?")
    current = path(item, "status", "currentMetrics", default=[])
    seen = path(current[0], "resource", "current", "averageUtilization") if current else "<unknown>"
    return f"cpu: {seen}%/{target}%" if current else f"cpu: {seen}/{target}%"


_SERVING = "serving.kserve.io"
_RUNTIME_COLUMNS = (
    _NAME,
    Column("Disabled", "boolean", lambda item: path(item, "spec", "disabled")),
    Column("ModelType", "string", _formats),
    Column("Containers", "string", lambda item: path(item, "spec", "containers", default=[{}])[0].get("name", "")),
    _AGE,
)


def _node_status(item: Object) -> str:
    ready = condition(item, "Ready")
    return "Ready" if ready and ready["status"] == "True" else "NotReady"


RESOURCES: tuple[ResourceType, ...] = (
    ResourceType(
        "",
        "v1",
        "namespaces",
        "Namespace",
        False,
        "namespace",
        ("ns",),
        status=True,
        columns=(_NAME, Column("Status", "string", lambda item: path(item, "status", "phase", default="Active")), _AGE),
    ),
    ResourceType(
        "",
        "v1",
        "pods",
        "Pod",
        True,
        "pod",
        ("po",),
        ("all",),
        status=True,
        columns=(
            _NAME,
            Column("Ready", "string", _pod_ready),
            Column("Status", "string", _pod_status),
            Column("Restarts", "string", _restarts),
            _AGE,
            Column("IP", "string", lambda item: path(item, "status", "podIP", default="<none>"), 1),
            Column("Node", "string", lambda item: path(item, "spec", "nodeName", default="<none>"), 1),
        ),
    ),
    ResourceType(
        "",
        "v1",
        "services",
        "Service",
        True,
        "service",
        ("svc",),
        ("all",),
        status=True,
        columns=(
            _NAME,
            Column("Type", "string", lambda item: path(item, "spec", "type", default="ClusterIP")),
            Column("Cluster-IP", "string", lambda item: path(item, "spec", "clusterIP", default="<none>")),
            Column("External-IP", "string", lambda item: path(item, "spec", "externalName", default="<none>")),
            Column("Port(s)", "string", _ports),
            _AGE,
        ),
    ),
    ResourceType(
        "",
        "v1",
        "events",
        "Event",
        True,
        "event",
        ("ev",),
        columns=(
            Column("Last Seen", "string", lambda item: age(item.get("lastTimestamp"))),
            Column("Type", "string", lambda item: item.get("type", "")),
            Column("Reason", "string", lambda item: item.get("reason", "")),
            Column(
                "Object",
                "string",
                lambda item: (
                    f"{item['involvedObject'].get('kind', '').lower()}/{item['involvedObject'].get('name', '')}"
                ),
            ),
            Column("Message", "string", lambda item: item.get("message", "")),
            Column("Name", "string", lambda item: item["metadata"]["name"], 1),
        ),
    ),
    ResourceType(
        "",
        "v1",
        "secrets",
        "Secret",
        True,
        "secret",
        columns=(
            _NAME,
            Column("Type", "string", lambda item: item.get("type", "Opaque")),
            Column("Data", "integer", lambda item: len(item.get("data") or {})),
            _AGE,
        ),
    ),
    ResourceType(
        "",
        "v1",
        "configmaps",
        "ConfigMap",
        True,
        "configmap",
        ("cm",),
        columns=(_NAME, Column("Data", "integer", lambda item: len(item.get("data") or {})), _AGE),
    ),
    ResourceType(
        "",
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        True,
        "serviceaccount",
        ("sa",),
        columns=(_NAME, Column("Secrets", "integer", lambda item: len(item.get("secrets") or [])), _AGE),
    ),
    ResourceType(
        "",
        "v1",
        "nodes",
        "Node",
        False,
        "node",
        ("no",),
        status=True,
        columns=(
            _NAME,
            Column("Status", "string", _node_status),
            Column("Roles", "string", lambda item: "<none>"),
            _AGE,
            Column("Version", "string", lambda item: path(item, "status", "nodeInfo", "kubeletVersion", default="")),
        ),
    ),
    ResourceType("", "v1", "resourcequotas", "ResourceQuota", True, "resourcequota", ("quota",), status=True),
    ResourceType(
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        True,
        "persistentvolumeclaim",
        ("pvc",),
        status=True,
        columns=(
            _NAME,
            Column("Status", "string", lambda item: path(item, "status", "phase", default="Pending")),
            Column("Capacity", "string", lambda item: path(item, "status", "capacity", "storage", default="")),
            _AGE,
        ),
    ),
    ResourceType("storage.k8s.io", "v1", "storageclasses", "StorageClass", False, "storageclass", ("sc",)),
    ResourceType(
        "apps",
        "v1",
        "deployments",
        "Deployment",
        True,
        "deployment",
        ("deploy",),
        ("all",),
        status=True,
        columns=(
            _NAME,
            Column("Ready", "string", _deployed),
            Column("Up-to-date", "integer", lambda item: path(item, "status", "updatedReplicas", default=0)),
            Column("Available", "integer", lambda item: path(item, "status", "availableReplicas", default=0)),
            _AGE,
        ),
    ),
    ResourceType(
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        True,
        "horizontalpodautoscaler",
        ("hpa",),
        ("all",),
        status=True,
        columns=(
            _NAME,
            Column("Reference", "string", lambda item: f"Deployment/{item['spec']['scaleTargetRef']['name']}"),
            Column("Targets", "string", _targets),
            Column("MinPods", "integer", lambda item: item["spec"].get("minReplicas", 1)),
            Column("MaxPods", "integer", lambda item: item["spec"]["maxReplicas"]),
            Column("Replicas", "integer", lambda item: path(item, "status", "currentReplicas", default=0)),
            _AGE,
        ),
    ),
    ResourceType(
        _SERVING,
        "v1beta1",
        "inferenceservices",
        "InferenceService",
        True,
        "inferenceservice",
        ("isvc",),
        ("all",),
        status=True,
        columns=(
            _NAME,
            Column("URL", "string", lambda item: path(item, "status", "url")),
            Column("Ready", "string", _ready),
            Column("Prev", "integer", _traffic("tag", "prev", "percent")),
            Column("Latest", "integer", _traffic("latestRevision", True, "percent")),
            Column("PrevRolledoutRevision", "string", _traffic("tag", "prev", "revisionName")),
            Column("LatestReadyRevision", "string", _traffic("latestRevision", True, "revisionName")),
            _AGE,
        ),
    ),
    ResourceType(
        _SERVING, "v1alpha1", "servingruntimes", "ServingRuntime", True, "servingruntime", (), columns=_RUNTIME_COLUMNS
    ),
    ResourceType(
        _SERVING,
        "v1alpha1",
        "clusterservingruntimes",
        "ClusterServingRuntime",
        False,
        "clusterservingruntime",
        (),
        columns=_RUNTIME_COLUMNS,
    ),
    ResourceType(
        "serving.knative.dev",
        "v1",
        "revisions",
        "Revision",
        True,
        "revision",
        ("rev",),
        ("all", "knative", "serving"),
        status=True,
        columns=(
            _NAME,
            Column(
                "Config Name",
                "string",
                lambda item: path(item, "metadata", "labels", default={}).get("serving.knative.dev/configuration", ""),
            ),
            Column(
                "Generation",
                "string",
                lambda item: path(item, "metadata", "labels", default={}).get(
                    "serving.knative.dev/configurationGeneration", ""
                ),
            ),
            Column("Ready", "string", _ready),
            Column("Actual Replicas", "integer", lambda item: path(item, "status", "actualReplicas", default=0)),
            Column("Desired Replicas", "integer", lambda item: path(item, "status", "desiredReplicas", default=0)),
        ),
    ),
)

BY_KEY: dict[str, ResourceType] = {resource.key: resource for resource in RESOURCES}
BY_KIND: dict[str, ResourceType] = {resource.kind: resource for resource in RESOURCES}


def table(resource: ResourceType, items: list[Object], metadata: Object, *, include: str) -> Object:
    """A ``meta.k8s.io/v1`` Table; ``include`` is the client's includeObject (None, Metadata, Object)."""

    def shown(item: Object) -> Object | None:
        if include == "None":
            return None
        if include == "Object":
            return item
        return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}

    columns = resource.columns or (_NAME, _AGE)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [
            {
                "name": column.name,
                "type": "string" if column.type == "date" else column.type,
                "format": "name" if column.name == "Name" else "",
                "description": column.description,
                "priority": column.priority,
            }
            for column in columns
        ],
        "rows": [{"cells": [column.cell(item) for column in columns], "object": shown(item)} for item in items],
    }
