"""The scenario engine: a cluster, services on it, steps in order, and a run directory that holds all of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.model import Local
from cluster.providers.provider import Cluster, up
from cluster.reach.ingress import Reachable
from cluster.workloads.delivery import Delivery
from cluster.workloads.generators import IMAGE as GENERATORS_IMAGE
from cluster.workloads.generators import ClusterGenerators
from harness.base.errors import BringUpError, ClusterError, DeployError, ServecertError
from harness.kubernetes.kserve import KServe
from harness.kubernetes.kube import Kube
from harness.results.observer import Observer
from harness.results.records import Measurement, TimelineEvent
from harness.results.runstore import RunStore
from harness.target.endpoint import Endpoint
from runtimes.catalog import build_model, find_runtime, in_registry
from scenarios.engine.deployment import Prepared, as_yaml, endpoint_of, manifests, merged, through_ingress, with_port
from scenarios.engine.ports import beside
from scenarios.engine.preflight import EMBEDDED, Answer, Finding, gpus_preflight, preflight
from scenarios.engine.steps import run_step
from scenarios.file.reading import resolved
from scenarios.file.scenario import Scenario
from scenarios.model.services import Service, Variant
from scenarios.model.steps import Step
from scenarios.suites import suites
from scenarios.suites.shared.deployed import Deployed, Turn
from scenarios.suites.shared.suite import Target

_T = TypeVar("_T")
GONE_S = 120.0
PATIENCE_S = 45.0
"""A real API server is away for half a minute now and then: upgraded, or its load balancer moved."""


def default_directory(name: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{stamp}-{name}"


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
        self.turns: dict[str, Turn] = {}
        self.kubeconfig: Path | None = None
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
        store.info["suites"] = {step.suite: suites()[step.suite].title for step in scenario.steps}
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

    async def _threaded(self, work: Callable[[], _T], undo: Callable[[_T], None] = lambda result: None) -> _T:
        """What ``work`` returns, from a thread. Where this is cancelled, it is stopped and waited for (what it began
        on a cluster it takes away), and what it returned is undone, before that is raised."""
        task = asyncio.create_task(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.stop.set()
            with contextlib.suppress(ServecertError):
                result = await _to_the_end(task)
                await _to_the_end(asyncio.create_task(asyncio.to_thread(undo, result)))
            raise

    async def _up(self, directory: Path) -> Cluster:
        work = partial(up, self.scenario.cluster, directory, self.stop, self.observer.status)
        return await self._threaded(work, lambda cluster: cluster.down())

    async def _on_cluster(self, cluster: Cluster) -> None:
        choice = self.scenario.cluster
        self.kubeconfig = cluster.kubeconfig
        kserve = KServe(cluster.kubeconfig, self.scenario.namespace, 0.0 if isinstance(choice, Local) else PATIENCE_S)
        if isinstance(choice, Local):
            await self._preflight(cluster, gpus_preflight, "this machine cannot run this scenario")
        elif choice.preflight:
            self.observer.phase("asking whether the cluster can run this")
            why = "the cluster cannot run this scenario (cluster.preflight: false runs it all the same)"
            await self._preflight(cluster, preflight, why)
        await kserve.ensure_namespace()
        with contextlib.suppress(ServecertError):  # without the right to list events there are none at the end either
            await kserve.begin_timeline()
        self.store.info["kubernetes"] = await kserve.version()
        self.observer.phase("preparing runtimes and models")
        log = self.store.directory / "logs" / "kubectl.log"
        if not isinstance(choice, Local):
            image = in_registry(GENERATORS_IMAGE, choice.registry)
            self.within = ClusterGenerators(
                cluster.kubeconfig, self.scenario.namespace, image, log, self.stop, self.observer.status
            )
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

    async def _preflight(self, cluster: Cluster, ask: Callable[[Scenario, Kube], list[Finding]], because: str) -> None:
        """Raises ClusterError that says everything that the cluster lacks."""
        found = await asyncio.to_thread(ask, self.scenario, Kube(cluster.kubeconfig))
        failed = [item for item in found if item.answer is Answer.FAILED]
        if found:
            self._event("preflight", f"{len(found) - len(failed)} of {len(found)} fit")
        if failed:
            lines = [f"- needs {item.needs}; found {item.found}; {item.fix}" for item in failed]
            raise ClusterError(f"{because}:\n" + "\n".join(lines))

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
                done = await self._threaded(partial(self._build, name, service))
            except ServecertError as error:
                self._error(error, name)
                return None
            self.store.add(Measurement("prepare", time.monotonic() - started, "s", 1, service=name))
            return done

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guarded(name, item)) for name, item in self.scenario.services.items()]
        return [found for task in tasks if (found := task.result()) is not None]

    async def _deploy(self, kserve: KServe, cluster: Cluster, prepared: list[Prepared]) -> None:
        """All services at once, but for those whose turn comes in a comparison."""
        in_turn = self.scenario.in_turn()

        async def deploy(item: Prepared) -> None:
            started = time.monotonic()
            try:
                deployed = await self._up_service(kserve, cluster, item)
            except ServecertError as error:
                self._error(error, item.name)
                return
            seconds = time.monotonic() - started
            self.deployed[item.name] = deployed
            self._describe(item, deployed, seconds)
            self.store.add(Measurement("ready", seconds, "s", 1, service=item.name))
            self._event("ready", f"{item.name} after {seconds:.2f} s")
            self.observer.note(f"{item.name} ({deployed.endpoint.runtime}) ready after {seconds:.1f} s")

        async with asyncio.TaskGroup() as group:
            for item in prepared:
                if item.name in in_turn:
                    self.turns[item.name] = self._turn(kserve, cluster, item)
                else:
                    group.create_task(deploy(item))
        self.store.save_info()

    def _describe(self, item: Prepared, deployed: Deployed, seconds: float) -> None:
        endpoint = deployed.endpoint
        self.store.info["services"][item.name] = {
            "runtime": endpoint.runtime,
            "model": item.model.spec.name if item.model else endpoint.model,
            "url": f"http://{endpoint.host}",
            "ready_s": round(seconds, 3),
        }

    async def _up_service(self, kserve: KServe, cluster: Cluster, item: Prepared) -> Deployed:
        """Deploys one service and waits until it answers. Raises what kept it from that."""
        wanted = manifests(item, self.scenario)
        for manifest in wanted:
            self.store.write_manifest(f"{item.name}-{manifest['kind'].lower()}", manifest)
            await kserve.apply(manifest)
        isvc = await kserve.wait_ready(
            item.name, item.service.ready_within, lambda text: self.observer.status(f"{item.name}: {text}")
        )
        endpoint = await asyncio.to_thread(partial(endpoint_of, item, isvc, cluster, embedded=self._embedded))
        if not isinstance(self.scenario.cluster, Local):
            try:
                await through_ingress(endpoint, item.service.expose, item.service.ready_within)
            except DeployError as error:
                said = cluster.ingress_says if isinstance(cluster, Reachable) else ""
                raise DeployError(f"{error}; {said}" if said else str(error)) from error
        return Deployed(kserve, endpoint, wanted[-1], partial(self._variant, kserve, item))

    def _turn(self, kserve: KServe, cluster: Cluster, item: Prepared) -> Turn:
        async def up() -> Deployed:
            started = time.monotonic()
            deployed = await self._up_service(kserve, cluster, item)
            self._describe(item, deployed, time.monotonic() - started)
            return deployed

        async def down() -> None:
            await self._keep(kserve, item)
            await kserve.delete(item.name, GONE_S)

        label = item.runtime.name if item.runtime is not None else "custom"
        return Turn(item.name, label, up, down)

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
            deployed, turn = self.deployed.get(step.service), self.turns.get(step.service)
            if deployed is None and turn is None:
                entry["state"] = "not run"
                self.store.save_info()
                continue
            runtime = deployed.endpoint.runtime if deployed is not None else turn.runtime if turn is not None else ""
            self.observer.phase(f"{step.suite} on {step.service} ({runtime})")
            self._event("step begins", name)
            started = time.monotonic()
            entry["state"] = "running"
            self.store.save_info()
            try:
                async with self._endpoint(step, deployed) as endpoint:
                    target = Target(endpoint, deployed, self.within, self.deployed, self.turns)
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

    @property
    def _embedded(self) -> bool:
        return str(self.store.info["kubernetes"]).endswith(EMBEDDED)

    @contextlib.asynccontextmanager
    async def _endpoint(self, step: Step, deployed: Deployed | None) -> AsyncIterator[Endpoint | None]:
        """Suites that ask for what is answered, and not for how fast, get to the port that the ingress does not lead to
        by a pod."""
        if deployed is None:
            yield None
            return
        service = self.scenario.services[step.service]
        port = beside(step, service)
        if port is None or self.kubeconfig is None or self._embedded:
            yield deployed.endpoint
            return
        number = find_runtime(service.runtime or "").spec.ports[port]
        async with with_port(self.kubeconfig, deployed, port, number) as endpoint:
            yield endpoint

    # After the steps

    async def _collect(self, kserve: KServe, prepared: list[Prepared]) -> None:
        """Logs and events, then the services go; what cannot be had any more is not worth failing for."""
        self.observer.phase("collecting logs and cleaning up")
        for item in prepared:
            await self._keep(kserve, item)
        with contextlib.suppress(ServecertError):
            for event in await kserve.timeline():
                self.store.add(event)

        async def delete(item: Prepared) -> None:
            with contextlib.suppress(ServecertError):
                await kserve.delete(item.name)

        # All at once: on a real cluster pods have half a minute for their last requests.
        await asyncio.gather(*(delete(item) for item in prepared))
        if self.delivery is not None:
            with contextlib.suppress(ServecertError):
                await asyncio.to_thread(self.delivery.clean)

    async def _keep(self, kserve: KServe, item: Prepared) -> None:
        """A service's objects as they are, and the logs of its pods, in the run directory."""
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
