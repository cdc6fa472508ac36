"""Is this cluster able to run this scenario? Asked of the Kubernetes API before anything is deployed.

Everything is read, nothing is created. A question that the credentials do not allow to answer is "unknown", with what
would allow it, and is no failure.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.model import Existing, Local, Models, Reach
from cluster.reach.ingress import candidates, kserve_ingress, service_port
from cluster.workloads.generators import WORKER_CPU
from harness.base.errors import ClusterError, RuntimeSpecError
from harness.base.quantities import parse_quantity
from harness.kubernetes.kube import Kube
from runtimes.catalog import find_runtime, requested
from scenarios.engine.ports import at_ingress, beside
from scenarios.file.scenario import Scenario
from scenarios.model.services import Service

Object = dict[str, Any]
OLDEST = (1, 28)
"""Below this the APIs that KServe's controllers use are not all there."""
SKEW_S = 2.0
EMBEDDED = "+servecert"


class Answer(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """``fix`` is what to do where it is not passed."""

    id: str
    answer: Answer
    needs: str
    found: str
    fix: str = ""


def _judged(id_: str, fits: bool, needs: str, found: str, fix: str) -> Finding:
    """Where it fits there is nothing to do."""
    return Finding(id_, Answer.PASSED if fits else Answer.FAILED, needs, found, "" if fits else fix)


def preflight(scenario: Scenario, kube: Kube) -> list[Finding]:
    """Raises ClusterError only where the API does not answer at all."""
    version = kube.version()
    subject = _Subject(scenario, kube, version.endswith(EMBEDDED))
    found = [_version(version)]
    for check in _CHECKS:
        try:
            found += check(subject)
        except ClusterError as error:
            name = check.__name__.strip("_")
            found.append(
                Finding(name, Answer.UNKNOWN, "to be asked", str(error)[:300], "see docs/clusters for permissions")
            )
    return found


def gpus_preflight(scenario: Scenario, kube: Kube) -> list[Finding]:
    """Of all that is asked of a cluster, what the embedded one may lack: it takes GPUs from this machine, and counts
    nothing else."""
    return list(_gpus(_Subject(scenario, kube, embedded=True)))


@dataclass(frozen=True)
class _Subject:
    scenario: Scenario
    kube: Kube
    embedded: bool
    """The embedded cluster, whatever provider it was named as: its pods are processes of this machine."""

    def resources(self, service: Service) -> Object:
        """What one pod of the service asks for."""
        model = service.predictor.get("model") or {}
        if service.manifest is not None:
            predictor = (service.manifest.get("spec") or {}).get("predictor") or {}
            model = predictor.get("model") or (predictor.get("containers") or [{}])[0]
        return requested(find_runtime(service.runtime) if service.runtime else None, model)

    def least(self, service: Service) -> int:
        """Pods that there must be room for."""
        return max(int(service.predictor.get("minReplicas", 1) or 0), 1)


def _version(text: str) -> Finding:
    match = re.match(r"v?(\d+)\.(\d+)", text)
    needs = f"Kubernetes {OLDEST[0]}.{OLDEST[1]} or newer"
    if match is None:
        return Finding("kubernetes", Answer.UNKNOWN, needs, text)
    fits = (int(match[1]), int(match[2])) >= OLDEST
    return _judged("kubernetes", fits, needs, text, "upgrade the cluster")


def _kserve(subject: _Subject) -> Iterator[Finding]:
    kube = subject.kube
    fix = "install KServe: cluster.install, or https://kserve.github.io"
    for version, plural in (
        ("serving.kserve.io/v1beta1", "inferenceservices"),
        ("serving.kserve.io/v1alpha1", "servingruntimes"),
    ):
        served = kube.serves(version, plural)
        answer = Answer.PASSED if served else Answer.FAILED
        yield Finding(f"crd.{plural}", answer, f"{plural} in {version}", "served" if served else "not served", fix)
    if subject.embedded:
        return
    yield from _deployments(kube, "kserve", ("kserve-controller-manager",), fix)
    settings = kserve_ingress(kube)
    if settings.get("enableGatewayApi"):
        served = kube.serves("gateway.networking.k8s.io/v1", "httproutes")
        answer = Answer.PASSED if served else Answer.FAILED
        yield Finding(
            "crd.httproutes",
            answer,
            "Gateway API, which KServe is set to use",
            "served" if served else "not served",
            "install Gateway API",
        )


def _deployments(kube: Kube, namespace: str, names: tuple[str, ...], fix: str) -> Iterator[Finding]:
    for name in names:
        found = kube.get("apps/v1", "deployments", name, namespace)
        needs = f"deployment {namespace}/{name} available"
        if found is None:
            yield Finding(f"controller.{name}", Answer.FAILED, needs, "it does not exist", fix)
            continue
        count = (found.get("status") or {}).get("availableReplicas") or 0
        image = found["spec"]["template"]["spec"]["containers"][0].get("image", "")
        shown = f"{count} available, {image}"
        see = f"kubectl describe deployment -n {namespace} {name}"
        yield _judged(f"controller.{name}", bool(count), needs, shown, see)


def _knative(subject: _Subject) -> Iterator[Finding]:
    """Only where a step or a service needs it."""
    needing = sorted({step.suite for step in subject.scenario.steps if step.needs_knative})
    zero = sorted(name for name, item in subject.scenario.services.items() if item.predictor.get("minReplicas") == 0)
    if not needing and not zero:
        return
    why = f"Knative, for {', '.join(needing or zero)}"
    served = subject.kube.serves("serving.knative.dev/v1", "revisions")
    answer = Answer.PASSED if served else Answer.FAILED
    yield Finding("crd.revisions", answer, why, "served" if served else "not served", "install Knative Serving")
    if served and not subject.embedded:
        names = ("activator", "autoscaler", "controller", "webhook")
        yield from _deployments(subject.kube, "knative-serving", names, "install Knative Serving")


def _rights(subject: _Subject) -> Iterator[Finding]:
    namespace = subject.scenario.namespace
    wanted = [
        *(("create", "serving.kserve.io", kind) for kind in ("inferenceservices", "servingruntimes")),
        *(("patch", "serving.kserve.io", "inferenceservices"), ("delete", "serving.kserve.io", "inferenceservices")),
        *(("list", "", "pods"), ("watch", "", "pods"), ("get", "", "pods/log"), ("list", "", "events")),
    ]
    wanted += dict.fromkeys(right for step in subject.scenario.steps for right in step.rights())
    services = subject.scenario.services
    if not subject.embedded and any(beside(step, services[step.service]) for step in subject.scenario.steps):
        wanted.append(("create", "", "pods/portforward"))
    if subject.kube.get("v1", "namespaces", namespace) is None:
        wanted.append(("create", "", "namespaces"))
    missing, unknown = [], False
    for verb, group, resource in wanted:
        may = subject.kube.may(verb, group, resource, "" if resource in ("namespaces", "nodes/proxy") else namespace)
        unknown = unknown or may is None
        if may is False:
            missing.append(f"{verb} {resource}")
    needs = f"rights in namespace {namespace}"
    if missing:
        yield Finding(
            "rights", Answer.FAILED, needs, f"not allowed: {', '.join(missing)}", "bind a role that allows it"
        )
    elif unknown:
        yield Finding("rights", Answer.UNKNOWN, needs, "the API does not say")
    else:
        yield Finding("rights", Answer.PASSED, needs, f"{len(wanted)} asked, all allowed")


def _room(subject: _Subject) -> Iterator[Finding]:
    """Whether some node could take a pod of each service."""
    nodes = [node for node in subject.kube.list("v1", "nodes") if _schedulable(node)]
    pool = getattr(subject.scenario.cluster, "gpu", None) is not None
    autoscaler = _autoscaler(subject.kube)
    for name, service in subject.scenario.services.items():
        asked = {key: parse_quantity(value) or 0.0 for key, value in subject.resources(service).items()}
        gpus = any(key.startswith("nvidia.com/") for key in asked)
        if not asked:
            continue
        fitting = [node for node in nodes if all(_allocatable(node, key) >= value for key, value in asked.items())]
        text = ", ".join(f"{key} {value}" for key, value in subject.resources(service).items())
        needs = f"a node for {name}: {text}"
        if fitting:
            yield Finding(
                f"node.{name}", Answer.PASSED, needs, f"{len(fitting)} of {len(nodes)} nodes are large enough"
            )
        elif pool and gpus:
            yield Finding(f"node.{name}", Answer.UNKNOWN, needs, "none now; the pool of GPU nodes can grow")
        elif autoscaler:
            what = f"none of {len(nodes)} now; {autoscaler} may add one that is large enough"
            yield Finding(f"node.{name}", Answer.UNKNOWN, needs, what)
        else:
            best = ", ".join(f"{key} {max((_allocatable(node, key) for node in nodes), default=0):g}" for key in asked)
            yield Finding(
                f"node.{name}",
                Answer.FAILED,
                needs,
                f"no node of {len(nodes)}; the largest has {best}",
                "add a larger node, or ask for less",
            )


def _gpus(subject: _Subject) -> Iterator[Finding]:
    """Whether there are GPUs for all that run at once: of services that have turns, for the largest."""
    needed: dict[str, float] = {}
    in_turn = subject.scenario.in_turn()
    largest: dict[str, float] = {}
    for name, service in subject.scenario.services.items():
        for key, value in subject.resources(service).items():
            if not key.startswith("nvidia.com/"):
                continue
            count = (parse_quantity(value) or 0.0) * subject.least(service)
            if name in in_turn:
                largest[key] = max(largest.get(key, 0.0), count)
            else:
                needed[key] = needed.get(key, 0.0) + count
    for key, count in largest.items():
        needed[key] = needed.get(key, 0.0) + count
    if not needed:
        return
    nodes = [node for node in subject.kube.list("v1", "nodes") if _schedulable(node)]
    grows = getattr(subject.scenario.cluster, "gpu", None) is not None or bool(_autoscaler(subject.kube))
    for key, value in needed.items():
        total = sum(_allocatable(node, key) for node in nodes)
        enough = total >= value
        answer = Answer.PASSED if enough else Answer.UNKNOWN if grows else Answer.FAILED
        fix = "does nvidia-smi show them?" if subject.embedded else "add GPU nodes; is the device plugin there?"
        found = f"{total:g} on {len(nodes)} node{'' if len(nodes) == 1 else 's'}"
        yield Finding(f"gpu.{key}", answer, f"{value:g} × {key}", found, "" if enough else fix)


def _autoscaler(kube: Kube) -> str:
    """What adds nodes to this cluster, as far as it leaves traces in the API; empty where there is none. Managed ones
    (GKE's, AKS's) write the same status that the cluster autoscaler does."""
    with contextlib.suppress(ClusterError):  # who may not look there is told what the nodes say
        if kube.get("v1", "configmaps", "cluster-autoscaler-status", "kube-system") is not None:
            return "the cluster autoscaler"
    if kube.serves("karpenter.sh/v1", "nodepools") and kube.list("karpenter.sh/v1", "nodepools"):
        return "Karpenter"
    return ""


def _schedulable(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and not (node.get("spec") or {}).get("unschedulable")


def _allocatable(node: Object, key: str) -> float:
    return parse_quantity(((node.get("status") or {}).get("allocatable") or {}).get(key)) or 0.0


def _quota(subject: _Subject) -> Iterator[Finding]:
    for quota in subject.kube.list("v1", "resourcequotas", subject.scenario.namespace):
        hard, used = ((quota.get("status") or {}).get(part) or {} for part in ("hard", "used"))
        hard = hard or (quota.get("spec") or {}).get("hard") or {}
        needed: dict[str, float] = {"pods": 0.0}
        for service in subject.scenario.services.values():
            count = subject.least(service)
            needed["pods"] += count
            for key, value in subject.resources(service).items():
                for name in (f"requests.{key}", key):
                    needed[name] = needed.get(name, 0.0) + (parse_quantity(value) or 0.0) * count
        short = []
        for key, value in hard.items():
            left = (parse_quantity(value) or 0.0) - (parse_quantity(used.get(key, 0)) or 0.0)
            if key in needed and needed[key] > left:
                short.append(f"{key}: {needed[key]:g} needed, {left:g} left of {value}")
        name = quota["metadata"]["name"]
        yield _judged(
            f"quota.{name}",
            not short,
            f"room in ResourceQuota {name}",
            "; ".join(short) or "enough",
            "raise the quota, or use another namespace",
        )


def _models(subject: _Subject) -> Iterator[Finding]:
    """Whether the models and images of the catalog can get to the pods."""
    cluster = subject.scenario.cluster
    if isinstance(cluster, Local) or subject.embedded:
        return
    models = cluster.models
    loaded = getattr(cluster, "load_images", [])
    for name, service in subject.scenario.services.items():
        if service.model is not None and "storageUri" not in (service.predictor.get("model") or {}) and models is None:
            yield Finding(
                f"model.{name}",
                Answer.FAILED,
                f"a way for model {service.model} to the pods",
                "none",
                "set cluster.models.uri (s3://, gs://, https://, pvc://), or predictor.model.storageUri",
            )
        if service.runtime is None:
            continue
        try:
            image = find_runtime(service.runtime).image
        except RuntimeSpecError:
            continue  # the scenario's own check names it
        if image.startswith("servecert/") and not cluster.registry and image not in loaded:
            yield Finding(
                f"image.{name}",
                Answer.FAILED,
                f"image {image}",
                "it is in no public registry",
                "build it (runtimes/*/Dockerfile), push it and set cluster.registry; on kind: cluster.load_images",
            )
    if models is not None and models.uri.startswith("pvc://"):
        yield _storage(subject, models)


def _storage(subject: _Subject, models: Models) -> Finding:
    """Whether the claim is there or could be bound: by a class that provisions, or to a volume that waits."""
    name = models.uri.removeprefix("pvc://").partition("/")[0]
    claim = subject.kube.get("v1", "persistentvolumeclaims", name, subject.scenario.namespace)
    if claim is not None:
        phase = (claim.get("status") or {}).get("phase", "")
        fix = "its volume is gone: delete the claim, or name another in cluster.models.uri"
        return _judged("storage", phase != "Lost", f"claim {name}", phase or "there", fix)
    classes = subject.kube.list("storage.k8s.io/v1", "storageclasses")
    names = [item["metadata"]["name"] for item in classes]
    default = [
        item["metadata"]["name"]
        for item in classes
        if (item["metadata"].get("annotations") or {}).get("storageclass.kubernetes.io/is-default-class") == "true"
    ]
    wanted = models.storage_class or next(iter(default), "")
    fits = wanted in names
    found = ", ".join(names)
    if not fits:
        # A volume that somebody made by hand is bound by its class alone, which need not exist.
        size = parse_quantity(models.storage) or 0.0
        waiting = [
            item["metadata"]["name"]
            for item in subject.kube.list("v1", "persistentvolumes")
            if (item.get("status") or {}).get("phase") == "Available"
            and item["spec"].get("storageClassName", "") == wanted
            and (parse_quantity(item["spec"]["capacity"]["storage"]) or 0.0) >= size
        ]
        fits = bool(waiting)
        found = ", ".join([found, *(f"volume {volume}" for volume in waiting)]).strip(", ")
    needs = f"storage class {models.storage_class or '(a default one)'} for claim {name}"
    fix = "set cluster.models.storage_class, or make the claim yourself"
    return _judged("storage", fits, needs, found or "none", fix)


def _faults(subject: _Subject) -> Iterator[Finding]:
    if subject.embedded or isinstance(subject.scenario.cluster, Local):
        return
    for name, service in subject.scenario.services.items():
        if service.faults:
            yield Finding(
                f"faults.{name}",
                Answer.FAILED,
                "no faults on purpose",
                ", ".join(service.faults),
                "only the embedded cluster has them: remove 'faults'",
            )


def _ingress(subject: _Subject) -> Iterator[Finding]:
    cluster = subject.scenario.cluster
    if isinstance(cluster, Local):
        return
    reach: Reach = cluster.reach
    if reach.address is not None:
        host, _, port = reach.address.rpartition(":")
        try:
            started = time.monotonic()
            socket.create_connection((host, int(port)), 5).close()
            yield Finding(
                "ingress",
                Answer.PASSED,
                f"a connection to {reach.address}",
                f"{(time.monotonic() - started) * 1e3:.1f} ms",
            )
        except OSError as error:
            yield Finding("ingress", Answer.FAILED, f"a connection to {reach.address}", str(error), "set cluster.reach")
        return
    if not isinstance(cluster, Existing):
        return  # what is made here brings its ingress with it
    tried = [tuple(reach.service.split("/", 1))] if reach.service else list(candidates(subject.kube))
    for namespace, name in tried:
        if (service := subject.kube.get("v1", "services", name, namespace)) is not None:
            found = service_port(service, tls=reach.tls)
            kind = service["spec"].get("type", "ClusterIP")
            yield Finding(
                "ingress", Answer.PASSED, "the ingress' Service", f"{namespace}/{name}, {kind}, port {found['port']}"
            )
            return
    looked = ", ".join(dict.fromkeys(f"{namespace}/{name}" for namespace, name in tried))
    if any(namespace == subject.scenario.namespace for namespace, _ in tried):
        yield Finding(
            "ingress", Answer.UNKNOWN, "the ingress' Service", f"not yet {looked}; it may come with a service"
        )
        return
    yield Finding(
        "ingress",
        Answer.FAILED,
        "the ingress' Service",
        f"none of {looked}",
        "set cluster.reach.service or cluster.reach.address",
    )


def _generators(subject: _Subject) -> Iterator[Finding]:
    """Whether the nodes have as much to spare as load generators in pods ask for, beside what runs on them."""
    expected = max((step.generators_in_cluster() for step in subject.scenario.steps), default=0)
    if not expected or subject.embedded:
        return
    asked = parse_quantity(WORKER_CPU) or 0.0
    taken: dict[str, float] = {}
    for pod in subject.kube.list("v1", "pods"):
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        cpus = (
            parse_quantity(((item.get("resources") or {}).get("requests") or {}).get("cpu", 0)) or 0.0
            for item in pod["spec"]["containers"]
        )
        node = str(pod["spec"].get("nodeName"))
        taken[node] = taken.get(node, 0.0) + sum(cpus)
    nodes = [node for node in subject.kube.list("v1", "nodes") if _schedulable(node)]
    free = [_allocatable(node, "cpu") - taken.get(node["metadata"]["name"], 0.0) for node in nodes]
    room = sum(max(0, int(cpus // asked)) for cpus in free)
    enough = room >= expected
    autoscaler = "" if enough else _autoscaler(subject.kube)
    yield Finding(
        "generators",
        Answer.PASSED if enough else Answer.UNKNOWN if autoscaler else Answer.FAILED,
        f"room for {expected} load generators, cpu {WORKER_CPU} each",
        f"for {room}, on {len(nodes)} nodes; the services take theirs, too",
        "" if enough else f"{autoscaler} may add nodes" if autoscaler else "add nodes, or expect fewer workers",
    )


def _routes(subject: _Subject) -> Iterator[Finding]:
    """On a real cluster a service routes to one port of its pods."""
    if subject.embedded or isinstance(subject.scenario.cluster, Local):
        return
    for number, step in enumerate(subject.scenario.steps, 1):
        for name, port in sorted(at_ingress(step)):
            service = subject.scenario.services[name]
            routed = "grpc" if service.expose == "grpc" else "http"
            if port == routed or service.manifest is not None:
                continue
            change = f"set services.{name}.expose: grpc" if port == "grpc" else f"leave services.{name}.expose out"
            yield Finding(
                f"port.{number}",
                Answer.FAILED,
                f"{step.suite} over {_PORT[port]} on {name}",
                f"its {_PORT[routed]} port alone is routed to",
                f"{change} (a second service, where both are needed)",
            )


_PORT = {"http": "HTTP", "grpc": "gRPC"}
_CHECKS: tuple[Callable[[_Subject], Iterator[Finding]], ...] = (
    _kserve, _knative, _rights, _room, _gpus, _generators, _quota, _models, _faults, _routes, _ingress
)  # fmt: skip
