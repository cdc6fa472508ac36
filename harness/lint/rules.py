"""The rules. Each is one function: its docstring is why it matters, what it yields is where, what, and what to do.

Sources: KServe's API (v1beta1), Knative's autoscaling documentation, Kubernetes' on probes and on extended resources.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.base.quantities import parse_quantity
from harness.base.units import format_duration
from harness.kubernetes.predictors import FRAMEWORKS
from harness.lint.manifests import Subject

Spot = tuple[str, str, str]
"""Where in the manifest, what is there, and what to write instead."""
KNATIVE_TIMEOUT_S = 300.0
DEFAULT_TARGET = 100.0
UTILIZATION = 0.7


class Level(StrEnum):
    ERROR = "error"
    """It will not work, or not as it says."""
    WARNING = "warning"
    """It works until the day that it does not."""


@dataclass(frozen=True)
class Rule:
    id: str
    level: Level
    reason: str
    check: Callable[[Subject], Iterator[Spot]]


@dataclass(frozen=True)
class Finding:
    rule: str
    level: Level
    file: str
    service: str
    where: str
    what: str
    reason: str
    fix: str


RULES: dict[str, Rule] = {}


def rule(
    name: str, level: Level
) -> Callable[[Callable[[Subject], Iterator[Spot]]], Callable[[Subject], Iterator[Spot]]]:
    def register(check: Callable[[Subject], Iterator[Spot]]) -> Callable[[Subject], Iterator[Spot]]:
        reason = " ".join((check.__doc__ or "").split())
        RULES[name] = Rule(name, level, reason, check)
        return check

    return register


def lint(subject: Subject) -> list[Finding]:
    """Everything that is to be said of one service, errors first."""
    found = [
        Finding(item.id, item.level, subject.file, subject.name, where, what, item.reason, fix)
        for item in RULES.values()
        for where, what, fix in item.check(subject)
    ]
    return sorted(found, key=lambda finding: finding.level is not Level.ERROR)


# Resources


@rule("gpu.requests-equal-limits", Level.ERROR)
def _gpu_equal(subject: Subject) -> Iterator[Spot]:
    """Extended resources cannot be overcommitted: Kubernetes refuses a pod whose GPU requests and limits differ."""
    requests, limits = subject.resources("requests"), subject.resources("limits")
    for key in sorted({str(key) for key in (*requests, *limits) if str(key).startswith("nvidia.com/")}):
        if key not in limits:
            yield (
                f"resources.limits[{key}]",
                f"requested {requests[key]}, no limit",
                f"set limits[{key}] to {requests[key]}",
            )
        elif key in requests and str(requests[key]) != str(limits[key]):
            yield (
                f"resources.requests[{key}]",
                f"{requests[key]} requested, limit {limits[key]}",
                "make both the same, or leave the request out",
            )


@rule("gpu.whole", Level.ERROR)
def _gpu_whole(subject: Subject) -> Iterator[Spot]:
    """A pod gets whole devices; parts of one are MIG profiles (nvidia.com/mig-1g.10gb) or time-sliced replicas."""
    for key, value in subject.resources("limits").items():
        if str(key).startswith("nvidia.com/") and not re.fullmatch(r"\d+", str(value)):
            yield f"resources.limits[{key}]", str(value), "ask for a whole number of devices, or for a MIG profile"


@rule("memory.limit", Level.WARNING)
def _memory_limit(subject: Subject) -> Iterator[Spot]:
    """Without a memory limit one model's growth evicts its neighbours."""
    if subject.runtime_known and "memory" not in subject.resources("limits"):
        yield "resources.limits.memory", "not set", "set it to at least twice the model's size"


@rule("memory.twice-the-model", Level.ERROR)
def _memory_enough(subject: Subject) -> Iterator[Spot]:
    """While it loads, a model is in memory about twice: as it was read, and as the framework holds it."""
    size, limit = subject.facts.model_bytes, parse_quantity(subject.resources("limits").get("memory"))
    if size is not None and limit is not None and limit < 2 * size:
        yield (
            "resources.limits.memory",
            f"{subject.resources('limits')['memory']} for a model of {size / 2**20:.0f} MiB",
            f"set it to {math.ceil(2 * size / 2**20)}Mi or more",
        )


@rule("resources.requests", Level.WARNING)
def _requests(subject: Subject) -> Iterator[Spot]:
    """What requests nothing is scheduled anywhere and evicted first."""
    if not subject.runtime_known:
        return
    asked = {**subject.resources("limits"), **subject.resources("requests")}
    for key in ("cpu", "memory"):
        if key not in asked:
            yield f"resources.requests.{key}", "not set", "request what the model needs under its usual load"


@rule("resources.order", Level.ERROR)
def _order(subject: Subject) -> Iterator[Spot]:
    """Kubernetes refuses a pod that requests more than its limit."""
    limits = subject.resources("limits")
    for key, value in subject.resources("requests").items():
        asked, limit = parse_quantity(value), parse_quantity(limits.get(key))
        if asked is not None and limit is not None and asked > limit and not str(key).startswith("nvidia.com/"):
            yield f"resources.requests.{key}", f"{value} requested, limit {limits[key]}", "raise the limit"


# Probes


def _path(subject: Subject, probe: str) -> str | None:
    found = (subject.container.get(probe) or {}).get("httpGet") or {}
    return str(found["path"]) if found.get("path") else None


@rule("probe.readiness", Level.WARNING)
def _readiness(subject: Subject) -> Iterator[Spot]:
    """Without a readiness probe a pod gets requests as soon as its port opens, before its model is loaded."""
    if subject.runtime_known and not subject.container.get("readinessProbe"):
        yield "readinessProbe", "not set", "add httpGet: {path: /v2/models/NAME/ready, port: 8080}"


@rule("probe.readiness-of-model", Level.WARNING)
def _readiness_of_model(subject: Subject) -> Iterator[Spot]:
    """A server is up before its model is loaded: only the model's own readiness keeps requests away until then."""
    path = _path(subject, "readinessProbe")
    if path is not None and "/models/" not in path:
        yield "readinessProbe.httpGet.path", path, "ask for /v2/models/NAME/ready"
    elif path is not None and not any(
        part in path for part in (f"/models/{subject.name}/", f"/models/{subject.name}", "{{")
    ):
        yield (
            "readinessProbe.httpGet.path",
            path,
            f"ask for the model that this service serves: /v2/models/{subject.name}/ready",
        )


@rule("probe.liveness", Level.WARNING)
def _liveness(subject: Subject) -> Iterator[Spot]:
    """A server that hangs is restarted only where a liveness probe notices."""
    if subject.runtime_known and not subject.container.get("livenessProbe"):
        yield "livenessProbe", "not set", "add httpGet: {path: /v2/health/live, port: 8080} with a generous timeout"


@rule("probe.liveness-is-not-readiness", Level.WARNING)
def _liveness_differs(subject: Subject) -> Iterator[Spot]:
    """A liveness probe that asks for readiness kills a pod that is merely busy or still loading."""
    path = _path(subject, "livenessProbe")
    if path is not None and path.rstrip("/").endswith("/ready"):
        yield "livenessProbe.httpGet.path", path, "ask for /v2/health/live"


@rule("probe.liveness-outlasts-loading", Level.ERROR)
def _liveness_waits(subject: Subject) -> Iterator[Spot]:
    """A liveness probe that gives up before the model is loaded restarts the pod for ever."""
    probe, cold = subject.container.get("livenessProbe") or {}, subject.facts.cold_start_s
    if not probe or cold is None or subject.container.get("startupProbe"):
        return
    patience = float(probe.get("initialDelaySeconds") or 0) + float(probe.get("periodSeconds") or 10) * float(
        probe.get("failureThreshold") or 3
    )
    if patience < cold:
        yield (
            "livenessProbe",
            f"gives up after {patience:g} s, loading takes {cold:g} s",
            "add a startupProbe, or raise initialDelaySeconds",
        )


# Scaling


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@rule("port.one", Level.ERROR)
def _one_port(subject: Subject) -> Iterator[Spot]:
    """Knative routes to one port, and refuses more. KServe adds a service's ports to those of its runtime."""
    numbers = _ports(subject)
    if subject.mode == "Knative" and len(numbers) > 1:
        listed = ", ".join(map(str, numbers))
        yield "container.ports", listed, "leave one; for gRPC in a runtime of its own, with h2c as its only port"


@rule("port.probes-of-h2c", Level.ERROR)
def _probed_port(subject: Subject) -> Iterator[Spot]:
    """Knative sends probes to the port that it routes to: over HTTP/1 to one that speaks h2c they fail, and a liveness
    probe that fails restarts the pod for ever."""
    h2c = any(item.get("name") == "h2c" for item in subject.container.get("ports") or [])
    for probe in ("readinessProbe", "livenessProbe"):
        if subject.mode == "Knative" and h2c and "httpGet" in (subject.container.get(probe) or {}):
            yield f"container.{probe}", "httpGet", "write grpc or tcpSocket"


def _ports(subject: Subject) -> list[int]:
    """Distinct ones, in order."""
    given = (item.get("containerPort") for item in subject.container.get("ports") or [])
    return list(dict.fromkeys(number for number in given if isinstance(number, int)))


@rule("scale.max", Level.WARNING)
def _max(subject: Subject) -> Iterator[Spot]:
    """Without maxReplicas a flood of requests takes every node that the cluster can get."""
    if not subject.predictor.get("maxReplicas"):
        yield (
            "predictor.maxReplicas",
            str(subject.predictor.get("maxReplicas", "not set")),
            "set what you are ready to pay for",
        )


@rule("scale.order", Level.ERROR)
def _min_max(subject: Subject) -> Iterator[Spot]:
    """KServe refuses a service whose minReplicas is above its maxReplicas."""
    low, high = _number(subject.predictor.get("minReplicas")), _number(subject.predictor.get("maxReplicas"))
    if low is not None and high and low > high:
        yield "predictor.minReplicas", f"{low:g}, above maxReplicas {high:g}", "raise maxReplicas"


@rule("scale.zero-against-slo", Level.ERROR)
def _zero(subject: Subject) -> Iterator[Spot]:
    """From zero the first requests wait for a whole cold start."""
    cold, slo = subject.facts.cold_start_s, subject.facts.slo_s
    if subject.predictor.get("minReplicas") == 0 and cold is not None and slo is not None and cold > slo:
        yield (
            "predictor.minReplicas",
            f"0, with a cold start of {format_duration(cold)} and {format_duration(slo)} promised",
            "keep one pod: minReplicas: 1",
        )


@rule("scale.one-pod", Level.WARNING)
def _one(subject: Subject) -> Iterator[Spot]:
    """With one pod every restart, eviction and upgrade of a node is an outage."""
    low = subject.predictor.get("minReplicas", 1)
    if low == 1 and subject.facts.slo_s is not None:
        yield "predictor.minReplicas", "1, with a latency promised", "keep two: minReplicas: 2"


@rule("scale.concurrency-against-target", Level.ERROR)
def _target(subject: Subject) -> Iterator[Spot]:
    """A pod never holds more requests than containerConcurrency: a target above it is never reached, and requests queue
    while the autoscaler sees no need."""
    limit = _number(subject.predictor.get("containerConcurrency"))
    target = _number(subject.predictor.get("scaleTarget"))
    if subject.predictor.get("scaleMetric", "concurrency") == "concurrency" and limit and target and target > limit:
        yield (
            "predictor.scaleTarget",
            f"{target:g}, above containerConcurrency {limit:g}",
            f"set scaleTarget to {limit:g} or less",
        )


@rule("scale.peak", Level.ERROR)
def _peak(subject: Subject) -> Iterator[Spot]:
    """By Little's law the peak needs rate × latency requests at once, and each pod is given its target of them."""
    peak, latency = subject.facts.peak_per_s, subject.facts.p99_s
    high = _number(subject.predictor.get("maxReplicas"))
    if peak is None or not high or subject.mode != "Knative":
        return
    metric = subject.predictor.get("scaleMetric", "concurrency")
    limit = _number(subject.predictor.get("containerConcurrency"))
    target = _number(subject.predictor.get("scaleTarget"))
    if metric == "rps":
        needed = peak / ((target or 200.0) * UTILIZATION)
    elif metric == "concurrency" and latency is not None:
        needed = peak * latency / ((target or limit or DEFAULT_TARGET) * UTILIZATION)
    else:
        return
    if needed > high:
        yield (
            "predictor.maxReplicas",
            f"{high:g}, and a peak of {peak:g}/s needs {math.ceil(needed)}",
            f"raise it to {math.ceil(needed)} or more",
        )


# Timeouts


@rule("timeout.against-latency", Level.ERROR)
def _timeout(subject: Subject) -> Iterator[Spot]:
    """A timeout near the latency cuts requests that would have been answered."""
    given, latency = _number(subject.predictor.get("timeout")), subject.facts.p99_s
    if given is not None and latency is not None and given < 2 * latency:
        yield (
            "predictor.timeout",
            f"{given:g} s, and the 99th percentile is {format_duration(latency)}",
            f"set it to {math.ceil(2 * latency)} or more",
        )


@rule("timeout.against-cold-start", Level.ERROR)
def _timeout_cold(subject: Subject) -> Iterator[Spot]:
    """A request that finds no pod waits for one within the same timeout; a shorter one makes each of them a 504."""
    cold = subject.facts.cold_start_s
    if subject.predictor.get("minReplicas") != 0 or cold is None or subject.mode != "Knative":
        return
    given = _number(subject.predictor.get("timeout")) or KNATIVE_TIMEOUT_S
    if given < cold:
        yield "predictor.timeout", f"{given:g} s, a cold start takes {cold:g} s", f"set it above {math.ceil(cold)}"


# Canary


@rule("canary.percent", Level.ERROR)
def _percent(subject: Subject) -> Iterator[Spot]:
    """A share of traffic is a whole number from 0 to 100."""
    shares = []
    if "canaryTrafficPercent" in subject.predictor:
        shares.append(("predictor.canaryTrafficPercent", subject.predictor["canaryTrafficPercent"]))
    for index, item in enumerate((subject.isvc.get("spec") or {}).get("canary") or []):
        shares.append((f"canary[{index}].trafficPercent", item.get("trafficPercent", 0)))
    for where, value in shares:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 100:
            yield where, repr(value), "write a whole number from 0 to 100"
    whole = [value for where, value in shares if where.startswith("canary[") and isinstance(value, int)]
    if sum(whole) > 100:
        yield "canary", f"the shares add up to {sum(whole)}", "leave something for the stable version"


@rule("canary.left-at-100", Level.WARNING)
def _left(subject: Subject) -> Iterator[Spot]:
    """At 100 the roll-out is over; the field that stays turns the next change into a canary at 100 % unasked."""
    if subject.predictor.get("canaryTrafficPercent") == 100:
        yield "predictor.canaryTrafficPercent", "100", "remove the field to promote"


@rule("canary.mode", Level.ERROR)
def _canary_mode(subject: Subject) -> Iterator[Spot]:
    """canaryTrafficPercent is for Knative only, and spec.canary for Standard mode only; elsewhere they are ignored."""
    if subject.mode == "Standard" and "canaryTrafficPercent" in subject.predictor:
        yield (
            "predictor.canaryTrafficPercent",
            "in Standard mode",
            "use spec.canary: [{predictor: …, trafficPercent: …}]",
        )
    if subject.mode == "Knative" and (subject.isvc.get("spec") or {}).get("canary"):
        yield "spec.canary", "in Knative mode", "use predictor.canaryTrafficPercent"


# Images and models


def _images(subject: Subject) -> Iterator[tuple[str, str]]:
    if subject.container.get("image"):
        yield "image", str(subject.container["image"])
    for index, item in enumerate(subject.predictor.get("containers") or []):
        if item.get("image") and item["image"] != subject.container.get("image"):
            yield f"predictor.containers[{index}].image", str(item["image"])


@rule("image.pinned", Level.WARNING)
def _pinned(subject: Subject) -> Iterator[Spot]:
    """A tag that moves makes two pods of one revision run different servers, and a rollback roll back nothing."""
    for where, image in _images(subject):
        if "@sha256:" in image:
            continue
        tag = image.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            yield where, image, "name a version, or a digest: image@sha256:…"


@rule("storage.uri", Level.ERROR)
def _uri(subject: Subject) -> Iterator[Spot]:
    """The storage initializer knows these schemes; anything else fails when the pod starts."""
    schemes = (
        "s3://",
        "gs://",
        "hf://",
        "pvc://",
        "oci://",
        "https://",
        "http://",
        "hdfs://",
        "webhdfs://",
        "git://",
        "file://",
    )
    uri = subject.model.get("storageUri")
    if uri is not None and not str(uri).startswith(schemes):
        yield "model.storageUri", str(uri), f"begin it with one of {', '.join(schemes)}"


@rule("storage.missing", Level.WARNING)
def _no_uri(subject: Subject) -> Iterator[Spot]:
    """A model without a place to come from starts a server without a model."""
    if subject.predictor.get("containers") or not subject.model:
        return
    if not any(subject.model.get(key) for key in ("storageUri", "storageUris", "storage")):
        yield "model.storageUri", "not set", "name where the model lies"


@rule("storage.file", Level.ERROR)
def _file_uri(subject: Subject) -> Iterator[Spot]:
    """file:// is the pod's own disk: on a cluster there is nothing there."""
    if str(subject.model.get("storageUri", "")).startswith("file://"):
        yield "model.storageUri", str(subject.model["storageUri"]), "put the model into object storage or onto a claim"


# Fields


_PREDICTOR = {
    *("model", "containers", "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType"),
    *("autoScaling", "containerConcurrency", "timeout", "canaryTrafficPercent", "logger", "batcher", "labels"),
    *("annotations", "deploymentStrategy", "workerSpec", "name", "namespace"),
    # Of a pod
    *("volumes", "initContainers", "ephemeralContainers", "restartPolicy", "terminationGracePeriodSeconds"),
    *("activeDeadlineSeconds", "dnsPolicy", "nodeSelector", "serviceAccountName", "serviceAccount"),
    *("automountServiceAccountToken", "nodeName", "hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"),
    *("securityContext", "imagePullSecrets", "hostname", "subdomain", "affinity", "schedulerName", "tolerations"),
    *("hostAliases", "priorityClassName", "priority", "dnsConfig", "readinessGates", "runtimeClassName"),
    *("enableServiceLinks", "preemptionPolicy", "overhead", "topologySpreadConstraints", "setHostnameAsFQDN"),
    *("os", "hostUsers", "schedulingGates", "resourceClaims", "resources"),
    *FRAMEWORKS,
}  # fmt: skip


@rule("field.unknown", Level.ERROR)
def _unknown(subject: Subject) -> Iterator[Spot]:
    """A field that is misspelt is dropped in silence, and its default holds."""
    import difflib

    for key in subject.predictor:
        if key not in _PREDICTOR:
            near = difflib.get_close_matches(key, sorted(_PREDICTOR), 1)
            yield f"predictor.{key}", "no such field", f"did you mean {near[0]}?" if near else "remove it"


@rule("field.deprecated", Level.WARNING)
def _deprecated(subject: Subject) -> Iterator[Spot]:
    """It still works, and will not for ever."""
    if subject.framework is not None:
        yield (
            f"predictor.{subject.framework}",
            "a framework's own key",
            f"write model: {{modelFormat: {{name: {subject.framework}}}, …}}",
        )
    version = str(subject.isvc.get("apiVersion"))
    if version != "serving.kserve.io/v1beta1":
        yield "apiVersion", version, "write serving.kserve.io/v1beta1"
    given = subject.annotations.get("serving.kserve.io/deploymentMode")
    if given in ("RawDeployment", "Serverless"):
        now = {"RawDeployment": "Standard", "Serverless": "Knative"}[given]
        yield "annotations[serving.kserve.io/deploymentMode]", given, f"write {now}"


@rule("protocol.of-runtime", Level.ERROR)
def _protocol(subject: Subject) -> Iterator[Spot]:
    """A runtime that does not speak the protocol is not selected: the service never gets a pod."""
    wanted = subject.model.get("protocolVersion")
    if wanted and subject.protocols and wanted not in subject.protocols:
        yield "model.protocolVersion", str(wanted), f"its runtime speaks {', '.join(subject.protocols)}"


@rule("secret.in-the-open", Level.ERROR)
def _secret(subject: Subject) -> Iterator[Spot]:
    """A manifest is in version control, and whoever may read the service reads the secret."""
    for item in subject.container.get("env") or []:
        name = str(item.get("name", ""))
        if item.get("value") and re.search(r"(SECRET|PASSWORD|_TOKEN$|ACCESS_KEY$|API_KEY)", name):
            yield f"env[{name}]", "has its value in the manifest", "use valueFrom: {secretKeyRef: …}"
