"""The scenario engine: a cluster, services on it, steps in order, and a run directory that holds all of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml

from cluster.delivery import Delivered, Delivery
from cluster.generators import IMAGE as GENERATORS_IMAGE
from cluster.generators import ClusterGenerators
from cluster.kube import Kube
from cluster.local.faults import ANNOTATION as FAULTS
from cluster.preflight import EMBEDDED, Answer, preflight
from cluster.provider import Cluster, up
from harness.cluster_model import Aks, ClusterChoice, Local
from harness.deployed import Deployed
from harness.endpoint import Endpoint
from harness.errors import BringUpError, ClusterError, DeployError, ServecertError, UnreachableError, UsageError
from harness.kserve import KServe
from harness.observer import Observer
from harness.records import Deviation, Measurement, TimelineEvent
from harness.runstore import RunStore
from harness.runtimes import BuiltModel, Runtime, build_model, find_runtime, in_registry, planned_model, requested
from harness.scenario import resolved
from harness.scenario_model import Scenario, Service, Variant
from harness.steps import Target, run_step

_T = TypeVar("_T")
INGRESS_S = 20.0
PATIENCE_S = 45.0
"""A real API server is away for half a minute now and then: upgraded, or its load balancer moved."""


@dataclass(frozen=True)
class Prepared:
    """What a service needs before it can be deployed."""

    name: str
    service: Service
    runtime: Runtime | None
    model: BuiltModel | None
    delivered: Delivered | None = None


def default_directory(name: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{stamp}-{name}"


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
    if service.expose == "grpc":
        if "grpc" not in spec.ports:
            raise UsageError(f"{prepared.name}: {prepared.runtime.name} has no gRPC port to expose")
        model["ports"] = [{"containerPort": spec.ports["grpc"], "name": "h2c", "protocol": "TCP"}]
    predictor["model"] = {**model, **predictor.get("model", {})}
    if prepared.delivered is not None and prepared.delivered.service_account is not None:
        predictor.setdefault("serviceAccountName", prepared.delivered.service_account)
    return [
        prepared.runtime.serving_runtime(runtime_name, registry=getattr(scenario.cluster, "registry", None)),
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


def endpoint_of(prepared: Prepared, isvc: dict[str, Any], cluster: Cluster, *, both: bool = True) -> Endpoint:
    """How the service is reached: the ingress, asked for the host of ``status.url``. ``both``: its gRPC port too, which
    on a real cluster is routed to only where the service exposes that one."""
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
    return Endpoint(
        service=prepared.name,
        runtime=label,
        url=f"{'https' if cluster.tls else 'http'}://{cluster.ingress}",
        tls=cluster.tls,
        grpc_tls=cluster.tls is not None,
        inside=cluster.inside,
        model=prepared.service.served_model or prepared.name,
        host=host,
        grpc_address=cluster.ingress if both or prepared.service.expose == "grpc" else "",
        golden=prepared.model.golden if prepared.model else None,
        deviations=deviations,
    )


async def through_ingress(endpoint: Endpoint) -> None:
    """Returns when requests get through to the service: an ingress learns of it a moment after it is ready. An answer
    that stays an error is for the suites to judge. Raises DeployError where nothing answers at all."""
    deadline = time.monotonic() + INGRESS_S
    async with endpoint.rest(5.0) as rest:
        while True:
            try:
                answer = await rest.request("GET", f"{rest.model_path}/ready")
                if answer.status not in (404, 502, 503) or time.monotonic() > deadline - INGRESS_S / 2:
                    return
            except UnreachableError as error:
                if time.monotonic() > deadline:
                    raise DeployError(
                        f"InferenceService {endpoint.service} is ready, and the ingress at {endpoint.url} does not"
                        f" answer for {endpoint.host}: {error}; where it is, cluster.reach can say"
                    ) from error
            await asyncio.sleep(0.5)


def as_yaml(objects: list[dict[str, Any]]) -> str:
    """Objects as they are in the cluster, without what only the API server needs."""
    for item in objects:
        (item.get("metadata") or {}).pop("managedFields", None)
    return yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True)


async def _to_the_end(task: asyncio.Task[_T]) -> _T:
    """The task's result. A cancellation in the meantime does not keep it from its end, and is raised after it."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except ServecertError:
            break
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


class Engine:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario, store: RunStore, observer: Observer) -> None:
        self.scenario = scenario
        self.store = store
        self.observer = observer
        self.stop = threading.Event()
        self.deployed: dict[str, Deployed] = {}
        self.delivery: Delivery | None = None
        self.within: ClusterGenerators | None = None

    async def run(self) -> None:
        """Errors of services and steps become part of the run; only a run directory that cannot be written raises."""
        scenario, store = self.scenario, self.store
        store.write_text("scenario.yaml", resolved(scenario))
        store.info["steps"] = [
            {"name": scenario.step_name(index), "suite": step.suite, "service": step.service, "state": "planned"}
            for index, step in enumerate(scenario.steps)
        ]
        store.info["services"] = {
            name: {"runtime": service.runtime or "custom", "model": service.model or service.served_model or name}
            for name, service in scenario.services.items()
        }
        store.info["provider"] = scenario.cluster.provider
        store.save_info()
        started = time.monotonic()
        ttl: float | None = getattr(scenario.cluster, "ttl", None)
        try:
            async with self._cluster() as cluster:
                left = None if ttl is None else max(0.0, ttl - (time.monotonic() - started))
                try:
                    async with asyncio.timeout(left) as limit:
                        await self._on_cluster(cluster)
                except TimeoutError as error:
                    if ttl is None or not limit.expired():
                        raise
                    raise ClusterError(
                        f"the cluster's time to live of {ttl:g} s was over before the run; raise cluster.ttl"
                    ) from error
        except BringUpError as error:
            self._error(error)
        finally:
            self.stop.set()

    def _error(self, error: ServecertError, service: str = "") -> None:
        self.store.add_error(error, service)
        self.observer.note(str(error))

    def _event(self, what: str, detail: str = "") -> None:
        self.store.add(TimelineEvent("servecert", self.scenario.name, what, detail))

    @contextlib.asynccontextmanager
    async def _cluster(self) -> AsyncIterator[Cluster]:
        choice = self.scenario.cluster
        self.observer.phase(f"bringing up the cluster ({choice.provider})")
        # The cluster removes its directory itself, so that it is gone even when this process is killed.
        directory = Path(tempfile.mkdtemp(prefix="servecert-cluster-"))
        started = time.monotonic()
        try:
            cluster = await self._up(directory)
            try:
                seconds = time.monotonic() - started
                self._event("cluster up", f"{choice.provider}, {seconds:.2f} s")
                self.store.add(Measurement("cluster.up", seconds, "s", 1))
                yield cluster
            finally:
                with contextlib.suppress(ServecertError):
                    self.store.write_text("logs/cluster.log", cluster.logs())
                self.observer.status("taking the cluster down")
                await _to_the_end(asyncio.create_task(asyncio.to_thread(cluster.down)))
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def _up(self, directory: Path) -> Cluster:
        """Where this is cancelled, what was begun is taken down before it raises."""
        call = asyncio.to_thread(up, self.scenario.cluster, directory, self.stop, self.observer.status)
        task = asyncio.create_task(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.stop.set()
            with contextlib.suppress(ServecertError):
                cluster = await _to_the_end(task)
                await _to_the_end(asyncio.create_task(asyncio.to_thread(cluster.down)))
            raise

    async def _on_cluster(self, cluster: Cluster) -> None:
        choice = self.scenario.cluster
        kserve = KServe(cluster.kubeconfig, self.scenario.namespace, 0.0 if isinstance(choice, Local) else PATIENCE_S)
        if not isinstance(choice, Local) and choice.preflight:
            await self._preflight(cluster)
        await kserve.ensure_namespace()
        self.store.info["kubernetes"] = await kserve.version()
        self.observer.phase("preparing runtimes and models")
        log = cluster.kubeconfig.parent / "kubectl.log"
        if not isinstance(choice, Local):
            image = in_registry(GENERATORS_IMAGE, choice.registry)
            self.within = ClusterGenerators(cluster.kubeconfig, self.scenario.namespace, image, log, self.stop)
        if (models := getattr(choice, "models", None)) is not None:
            self.delivery = Delivery(models, cluster.kubeconfig, self.scenario.namespace, log, self.stop)
        prepared: list[Prepared] = []
        begun = datetime.now(UTC)
        try:
            prepared += await self._prepare()
            self.observer.phase("deploying")
            await self._deploy(kserve, cluster, prepared)
            await self._steps()
        finally:
            await self._collect(kserve, prepared)
        if not isinstance(choice, Local):
            for lost in await kserve.lost_nodes(begun):
                self._error(ClusterError(f"{lost} during the run: what was measured on it does not count"))

    async def _preflight(self, cluster: Cluster) -> None:
        """Raises ClusterError that says everything that the cluster lacks."""
        self.observer.phase("asking whether the cluster can run this")
        found = await asyncio.to_thread(preflight, self.scenario, Kube(cluster.kubeconfig))
        failed = [item for item in found if item.answer is Answer.FAILED]
        self._event("preflight", f"{len(found) - len(failed)} of {len(found)} fit")
        if failed:
            lines = [f"- needs {item.needs}; found {item.found}; {item.fix}" for item in failed]
            raise ClusterError(
                "the cluster cannot run this scenario (cluster.preflight: false runs it all the same):\n"
                + "\n".join(lines)
            )

    # Before the steps

    def _build(self, name: str, service: Service) -> Prepared:
        def progress(line: str) -> None:
            self.observer.status(f"{name}: {line[:100]}")

        runtime = find_runtime(service.runtime) if service.runtime else None
        if runtime is not None and isinstance(self.scenario.cluster, Local):
            runtime.python(progress, self.stop)  # elsewhere it is in the image
        model = build_model(service.model, progress, self.stop) if service.model else None
        delivered = None
        if model is not None and self.delivery is not None and "storageUri" not in service.predictor.get("model", {}):
            delivered = self.delivery.deliver(model.spec.name, model.artifacts, progress)
        return Prepared(name, service, runtime, model, delivered)

    async def _prepare(self) -> list[Prepared]:
        """Environments and models, side by side. A service whose runtime cannot be built is left out."""

        async def guarded(name: str, service: Service) -> Prepared | None:
            started = time.monotonic()
            try:
                done = await asyncio.to_thread(self._build, name, service)
            except ServecertError as error:
                self._error(error, name)
                return None
            self.store.add(Measurement("prepare", time.monotonic() - started, "s", 1, service=name))
            return done

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guarded(name, item)) for name, item in self.scenario.services.items()]
        return [found for task in tasks if (found := task.result()) is not None]

    async def _deploy(self, kserve: KServe, cluster: Cluster, prepared: list[Prepared]) -> None:
        both = str(self.store.info["kubernetes"]).endswith(EMBEDDED)

        async def deploy(item: Prepared) -> None:
            started = time.monotonic()
            wanted = manifests(item, self.scenario)
            isvc_manifest = wanted[-1]
            try:
                for manifest in wanted:
                    kind = manifest["kind"].lower()
                    self.store.write_manifest(f"{item.name}-{kind}", manifest)
                    await kserve.apply(manifest)
                isvc = await kserve.wait_ready(
                    item.name, item.service.ready_within, lambda text: self.observer.status(f"{item.name}: {text}")
                )
                endpoint = await asyncio.to_thread(partial(endpoint_of, item, isvc, cluster, both=both))
                if not isinstance(self.scenario.cluster, Local):
                    await through_ingress(endpoint)
            except ServecertError as error:
                self._error(error, item.name)
                return
            seconds = time.monotonic() - started
            self.deployed[item.name] = Deployed(kserve, endpoint, isvc_manifest, partial(self._variant, kserve, item))
            self.store.info["services"][item.name] = {
                "runtime": endpoint.runtime,
                "model": item.model.spec.name if item.model else endpoint.model,
                "url": f"http://{endpoint.host}",
                "ready_s": round(seconds, 3),
            }
            self.store.add(Measurement("ready", seconds, "s", 1, service=item.name))
            self._event("ready", f"{item.name} after {seconds:.2f} s")
            self.observer.note(f"{item.name} ({endpoint.runtime}) ready after {seconds:.1f} s")

        async with asyncio.TaskGroup() as group:
            for item in prepared:
                group.create_task(deploy(item))
        self.store.save_info()

    async def _variant(self, kserve: KServe, item: Prepared, variant: Variant) -> dict[str, Any]:
        """The predictor of another version of a service; the runtime that it needs is there when this returns."""
        service = item.service
        if service.manifest is not None:
            return merged(service.manifest["spec"]["predictor"], variant.predictor)
        wanted = service.model_copy(
            update={
                "runtime": variant.runtime or service.runtime,
                "model": variant.model or service.model,
                "predictor": merged(service.predictor, variant.predictor),
            }
        )
        prepared = await asyncio.to_thread(self._build, item.name, wanted)
        *runtimes, isvc = manifests(prepared, self.scenario)
        for manifest in runtimes:
            self.store.write_manifest(f"{item.name}-{manifest['metadata']['name']}", manifest)
            await kserve.apply(manifest)
        return dict(isvc["spec"]["predictor"])

    # The steps

    async def _steps(self) -> None:
        for index, step in enumerate(self.scenario.steps):
            name = self.scenario.step_name(index)
            entry = self.store.info["steps"][index]
            deployed = self.deployed.get(step.service)
            if deployed is None:
                entry["state"] = "not run"
                self.store.save_info()
                continue
            self.observer.phase(f"{step.suite} on {step.service} ({deployed.endpoint.runtime})")
            self._event("step begins", name)
            started = time.monotonic()
            entry["state"] = "running"
            self.store.save_info()
            try:
                target = Target(deployed.endpoint, deployed, self.within, self.deployed)
                await run_step(step, name, target, self.scenario.seed, self.store, self.observer)
                entry["state"] = "done"
            except ServecertError as error:
                entry["state"] = "broken"
                self._error(error, step.service)
                if isinstance(error, BringUpError) and not self.store.writable():
                    raise
            finally:
                entry["seconds"] = round(time.monotonic() - started, 3)
                self._event("step ends", f"{name}: {entry['state']}")
                self.store.save_info()

    # After the steps

    async def _collect(self, kserve: KServe, prepared: list[Prepared]) -> None:
        """Logs and events, then the services go; what cannot be had any more is not worth failing for."""
        self.observer.phase("collecting logs and cleaning up")
        for item in prepared:
            with contextlib.suppress(ServecertError, LookupError):
                pods = await kserve.pods(item.name)
                live = [await kserve.get(item.name), *await kserve.revisions(item.name), *pods]
                self.store.write_text(f"logs/{item.name}.objects.yaml", as_yaml(live))
                for pod in pods:
                    name = pod["metadata"]["name"]
                    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
                        text = await kserve.pod_log(name, container["name"])
                        if text:
                            self.store.write_text(f"logs/{name}.{container['name']}.log", text)
        with contextlib.suppress(ServecertError):
            for event in await kserve.timeline():
                self.store.add(event)
        for item in prepared:
            with contextlib.suppress(ServecertError):
                await kserve.delete(item.name)
        if self.delivery is not None:
            with contextlib.suppress(ServecertError):
                await asyncio.to_thread(self.delivery.clean)
