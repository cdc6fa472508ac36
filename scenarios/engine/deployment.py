"""From a service of a scenario to something that answers: manifests, the endpoint, and the way through the ingress."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from grpc import StatusCode

from cluster.local.api.faults import ANNOTATION as FAULTS
from cluster.model import Aks, ClusterChoice
from cluster.providers.provider import Cluster
from cluster.reach.forwarding import Forwarding
from cluster.workloads.delivery import Delivered
from harness.base.errors import ClusterError, DeployError, ProtocolError, UnreachableError, UsageError
from harness.results.records import Deviation
from harness.target.endpoint import Endpoint
from harness.target.protocol.grpc_client import GrpcStatusError
from harness.target.protocol.messages import MESSAGES
from runtimes.catalog import BuiltModel, Runtime, find_runtime, planned_model, requested
from scenarios.file.scenario import Scenario
from scenarios.model.services import Service
from scenarios.model.steps import Port
from scenarios.suites.shared.deployed import Deployed

INGRESS_S = 20.0


@dataclass(frozen=True)
class Prepared:
    """What a service needs before it can be deployed."""

    name: str
    service: Service
    runtime: Runtime | None
    model: BuiltModel | None
    delivered: Delivered | None = None


def planned_manifests(scenario: Scenario) -> list[dict[str, Any]]:
    """What would be deployed, as far as that is known before anything is built or delivered."""
    found = []
    for name, service in scenario.services.items():
        runtime = find_runtime(service.runtime) if service.runtime else None
        model = planned_model(service.model) if service.model else None
        found += manifests(Prepared(name, service, runtime, model), scenario)
    return found


def manifests(prepared: Prepared, scenario: Scenario) -> list[dict[str, Any]]:
    """The InferenceService, and before it the ServingRuntime that pins the runtime's version."""
    service, namespace = prepared.service, scenario.namespace
    annotations = dict(service.annotations)
    if service.faults:
        annotations[FAULTS] = ", ".join(service.faults)
    if service.manifest is not None:
        metadata = {**service.manifest.get("metadata", {}), "name": prepared.name, "namespace": namespace}
        if annotations:
            metadata["annotations"] = {**metadata.get("annotations", {}), **annotations}
        return [{**service.manifest, "apiVersion": "serving.kserve.io/v1beta1", "metadata": metadata}]
    assert prepared.runtime is not None
    runtime_name = "servecert-" + prepared.runtime.name.replace("@", "-").replace(".", "-")
    grpc = service.expose == "grpc"
    if grpc:
        if "grpc" not in prepared.runtime.spec.ports:
            raise UsageError(f"{prepared.name}: {prepared.runtime.name} has no gRPC port to expose")
        runtime_name += "-grpc"
    asked = requested(prepared.runtime, service.predictor.get("model") or {})
    predictor = {**placement(asked, scenario.cluster), **service.predictor}
    spec = prepared.runtime.spec
    model: dict[str, Any] = {
        "modelFormat": {"name": prepared.model.spec.format if prepared.model else spec.model_formats[0]},
        "runtime": runtime_name,
    }
    if "v2" in spec.serving_runtime.get("protocolVersions", []):
        model["protocolVersion"] = "v2"
    if prepared.delivered is not None:
        model["storageUri"] = prepared.delivered.storage_uri
    elif prepared.model is not None:
        model["storageUri"] = f"file://{prepared.model.artifacts}"
    predictor["model"] = {**model, **predictor.get("model", {})}
    if prepared.delivered is not None and prepared.delivered.service_account is not None:
        predictor.setdefault("serviceAccountName", prepared.delivered.service_account)
    return [
        prepared.runtime.serving_runtime(runtime_name, registry=getattr(scenario.cluster, "registry", None), grpc=grpc),
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": prepared.name, "namespace": namespace, "annotations": annotations},
            "spec": {"predictor": predictor},
        },
    ]


def placement(asked: dict[str, Any], cluster: ClusterChoice) -> dict[str, Any]:
    """What lets pods that ask for GPUs onto the nodes that have them: tolerations of the pool's taints."""
    gpu = getattr(cluster, "gpu", None)
    if gpu is None or not any(str(key).startswith("nvidia.com/") for key in asked):
        return {}
    tolerations = [_toleration(taint) for taint in gpu.taints]
    if isinstance(cluster, Aks) and gpu.spot:
        tolerations.append(_toleration("kubernetes.azure.com/scalesetpriority=spot:NoSchedule"))
    return {"tolerations": tolerations}


def _toleration(taint: str) -> dict[str, str]:
    left, _, effect = taint.rpartition(":")
    key, separator, value = left.partition("=")
    if not separator:
        return {"key": key, "operator": "Exists", "effect": effect}
    return {"key": key, "operator": "Equal", "value": value, "effect": effect}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` merged into ``base``, object by object; other values of ``over`` stand in place of those of ``base``."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def endpoint_of(prepared: Prepared, isvc: dict[str, Any], cluster: Cluster, *, embedded: bool = True) -> Endpoint:
    """How the service is reached: the ingress, asked for the host of ``status.url``. A real cluster routes to the gRPC
    port only where the service exposes that one, and its images may call a model by its folder."""
    url = (isvc.get("status") or {}).get("url")
    host = urlsplit(url or "").hostname
    if not host:
        raise DeployError(f"InferenceService {prepared.name} is ready and its status has no url")
    deviations: dict[str, Deviation] = {}
    label = "custom"
    if prepared.runtime is not None:
        label = prepared.runtime.name
        if prepared.model is not None:
            deviations = prepared.runtime.deviations_for(prepared.model.spec.name)
    model = prepared.name
    if not embedded and prepared.runtime is not None and prepared.runtime.spec.model_name == "model" and prepared.model:
        model = prepared.model.spec.name
    return Endpoint(
        service=prepared.name,
        runtime=label,
        url=f"{'https' if cluster.tls else 'http'}://{cluster.ingress}",
        tls=cluster.tls,
        grpc_tls=cluster.tls is not None,
        inside=cluster.inside,
        model=prepared.service.served_model or model,
        host=host,
        grpc_address=cluster.ingress if embedded or prepared.service.expose == "grpc" else "",
        golden=prepared.model.golden if prepared.model else None,
        deviations=deviations,
    )


@contextlib.asynccontextmanager
async def with_port(kubeconfig: Path, deployed: Deployed, port: Port, number: int) -> AsyncIterator[Endpoint]:
    """The service with an address for the port that the ingress does not lead to, ``kubectl port-forward`` to a ready
    pod's ``number``, until the body ends. For what is answered, not for how fast: the way leads through the API server
    to one pod. Raises ClusterError where that cannot be had."""
    pods = await deployed.ready_pods()
    if not pods:
        name = "gRPC" if port == "grpc" else "HTTP"
        raise ClusterError(f"{deployed.name}: no pod is ready whose {name} port could be reached")
    metadata = pods[0]["metadata"]
    where = (metadata["namespace"], f"pod/{metadata['name']}", number)
    opened = await asyncio.to_thread(Forwarding, kubeconfig, None, *where)
    try:
        if port == "grpc":
            yield replace(deployed.endpoint, grpc_address=opened.address, grpc_tls=False)
        else:
            yield replace(deployed.endpoint, url=f"http://{opened.address}")
    finally:
        await asyncio.to_thread(opened.close)


async def through_ingress(endpoint: Endpoint, port: Port, ready_within_s: float) -> None:
    """Returns when requests to the port that is routed to get through to the service: an ingress learns of it a moment
    after it is ready, and a model whose probes only connect may be loaded later. An answer that stays an error is for
    the suites to judge. Raises DeployError where nothing answers at all, or the model does not become ready."""
    started = time.monotonic()
    asked = _grpc_gets_through if port == "grpc" else _rest_gets_through
    while (why := await asked(endpoint)) is not None:
        passed_s = time.monotonic() - started
        name = f"InferenceService {endpoint.service}"
        if isinstance(why, _NotReady):
            if passed_s > ready_within_s:
                raise DeployError(f"{name}: {why}; still so {ready_within_s:g} s after its pods took connections")
        elif not isinstance(why, UnreachableError):
            if passed_s > INGRESS_S / 2:
                return
        elif passed_s > INGRESS_S:
            at = endpoint.grpc_address if port == "grpc" else endpoint.url
            raise DeployError(
                f"{name} is ready, and the ingress at {at} does not answer for {endpoint.host}: {why}; where it is,"
                " cluster.reach can say"
            ) from why
        await asyncio.sleep(0.5)


class _NotReady(Exception):
    """The server answers, and says so of its model."""


async def _rest_gets_through(endpoint: Endpoint) -> Exception | None:
    """What is in the way."""
    async with endpoint.rest(5.0) as rest:
        try:
            answer = await rest.request("GET", f"{rest.model_path}/ready")
        except UnreachableError as error:
            return error
    return ProtocolError(f"status {answer.status}") if answer.status in (404, 502, 503) else None


async def _grpc_gets_through(endpoint: Endpoint) -> Exception | None:
    async with endpoint.grpc(5.0) as grpc:
        try:
            answer = await grpc.call("ModelReady", MESSAGES["ModelReadyRequest"](name=endpoint.model))
        except GrpcStatusError as error:
            if "http2 header with status" in error.details:  # what gRPC makes of an HTTP answer, which the ingress gave
                return error
            if error.code is StatusCode.UNAVAILABLE:
                return UnreachableError(str(error))
            return None
    return None if answer.ready else _NotReady(f"ModelReady says that {endpoint.model} is not ready")


def as_yaml(objects: list[dict[str, Any]]) -> str:
    """Objects as they are in the cluster, without what only the API server needs."""
    for item in objects:
        (item.get("metadata") or {}).pop("managedFields", None)
    return yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True)
