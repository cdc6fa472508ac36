"""The kubelet of the embedded cluster: pods as processes.

Each pod has one worker task that pulls the image (builds the runtime's environment), runs the storage-initializer,
starts the container's process, probes it, restarts it with back-off, and drains and ends it when the pod is deleted.
Sources: Kubernetes Pod Lifecycle (phases, conditions, container states, termination), Configure Liveness, Readiness and
Startup Probes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from cluster.local.api.faults import NONE, Faults, faults_of
from cluster.local.api.podmarks import MODEL_LABEL, PODS, PORTS_ANNOTATION, STORAGE_ANNOTATION, local_port
from cluster.local.api.resources import Object, condition, path
from cluster.local.api.store import ApiError, Change, Recorder, Store, now
from cluster.local.kubelet.devices import GPU, Devices, gpus_asked
from cluster.local.kubelet.probes import ProbeSpec, probe
from cluster.local.kubelet.storage import Storage, StorageError
from harness.base.errors import EnvironmentError_
from runtimes.catalog import Runtime, runtime_of_image

HOST = "127.0.0.1"
NODE = "servecert-local"
BACKOFF_FIRST_S = 1.0
"""Kubernetes starts at 10 s; a test bench cannot wait that long. The doubling and the reset are the same."""
BACKOFF_MOST_S = 300.0
BACKOFF_RESET_S = 600.0
FLAP_S = 1.0


def free_port(taken: set[int]) -> int:
    """A port that nobody listens on now and that was not handed out lately."""
    while True:
        with socket.socket() as probe_socket:
            probe_socket.bind((HOST, 0))
            port = int(probe_socket.getsockname()[1])
        if port not in taken:
            return port


@dataclass
class Container:
    """One run of a container's process."""

    process: asyncio.subprocess.Process
    control: int
    started: float
    ports: dict[str, int]

    def terminate(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    def kill(self) -> None:
        """Closing the pipe makes the shim kill every descendant."""
        if self.control >= 0:
            os.close(self.control)
            self.control = -1


@dataclass
class Worker:
    namespace: str
    name: str
    uid: str
    directory: Path
    task: asyncio.Task[None] | None = None
    container: Container | None = None
    deleted: asyncio.Event = field(default_factory=asyncio.Event)
    stop_pull: threading.Event = field(default_factory=threading.Event)


class Kubelet:
    """``drained`` tells whether the gateway has no request in flight to a pod any more."""

    def __init__(self, store: Store, directory: Path, storage: Storage, gpus: Sequence[str] = ()) -> None:
        """``gpus`` are the identifiers of those that pods may ask for."""
        self.name = NODE
        self.devices = Devices(gpus)
        self.store = store
        self.directory = directory
        self.storage = storage
        self.drained: Callable[[str], Awaitable[None]] | None = None
        self.recorder = Recorder(store, "kubelet")
        self._workers: dict[str, Worker] = {}
        self._ports: deque[int] = deque(maxlen=512)
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self.store.subscribe(self._changed)

    async def stop(self) -> None:
        """Ends every process at once; nobody is served any more."""
        if self._unsubscribe:
            self._unsubscribe()
        tasks = []
        for worker in list(self._workers.values()):
            worker.stop_pull.set()
            if worker.task:
                worker.task.cancel()
                tasks.append(worker.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _changed(self, change: Change) -> None:
        if change.resource is not PODS:
            return
        metadata = change.object["metadata"]
        worker = self._workers.get(metadata["uid"])
        if change.type == "ADDED":
            directory = self.directory / metadata["namespace"] / f"{metadata['name']}-{metadata['uid'][:8]}"
            worker = Worker(metadata["namespace"], metadata["name"], metadata["uid"], directory)
            self._workers[worker.uid] = worker
            worker.task = asyncio.get_running_loop().create_task(self._run(worker), name=f"pod {worker.name}")
        elif worker and "deletionTimestamp" in metadata:
            worker.deleted.set()
            worker.stop_pull.set()
            if metadata.get("deletionGracePeriodSeconds") == 0 and worker.container:
                worker.container.kill()

    def crash(self, name: str) -> None:
        """Kills the process of a pod's container, as if it had crashed."""
        for worker in self._workers.values():
            if worker.name == name and worker.container:
                worker.container.kill()

    def processor_s(self, name: str) -> float | None:
        """Processor time that a pod's processes have used so far; None where none runs."""
        worker = next((item for item in self._workers.values() if item.name == name), None)
        used = None if worker is None else _used(worker)
        return None if used is None else used[0]

    def stats(self) -> Object:
        """What a kubelet says at ``/stats/summary`` of the pods that run. Processes that have ended no longer count."""
        moment = datetime.now(UTC).isoformat()  # looked at now, and not some seconds ago as a real one
        pods = []
        for worker in list(self._workers.values()):
            used = _used(worker, memory=True)
            if used is not None:
                cpu_s, memory_bytes = used
                pods.append(
                    {
                        "podRef": {"name": worker.name, "namespace": worker.namespace, "uid": worker.uid},
                        "cpu": {"time": moment, "usageCoreNanoSeconds": round(cpu_s * 1e9)},
                        "memory": {"time": moment, "workingSetBytes": memory_bytes},
                    }
                )
        return {"node": {"nodeName": NODE}, "pods": pods}

    def _faults(self, pod: Object) -> Faults:
        name = (pod["metadata"].get("labels") or {}).get(MODEL_LABEL, "")
        return faults_of(self.store.find("InferenceService", pod["metadata"]["namespace"], name), pod)

    # Status

    def _pod(self, worker: Worker) -> Object | None:
        pod = self.store.find("Pod", worker.namespace, worker.name)
        return pod if pod and pod["metadata"]["uid"] == worker.uid else None

    def _status(self, worker: Worker, change: Callable[[Object], None]) -> Object:
        """Changes the pod's status; LookupError when the pod is gone."""
        pod = self._pod(worker)
        if pod is None:
            raise LookupError(worker.name)
        status = pod.setdefault("status", {})
        change(status)
        return self.store.update(PODS, pod, subresource="status")

    def _set_condition(self, status: Object, kind: str, value: bool, reason: str = "", message: str = "") -> None:
        wanted = "True" if value else "False"
        conditions = status.setdefault("conditions", [])
        entry = next((item for item in conditions if item["type"] == kind), None)
        if entry is None:
            entry = {"type": kind}
            conditions.append(entry)
        if entry.get("status") != wanted:
            entry.update(status=wanted, lastTransitionTime=now(), lastProbeTime=None)
        for key, text in (("reason", reason), ("message", message)):
            entry.pop(key, None)
            if text:
                entry[key] = text

    def _container_status(self, status: Object, pod: Object, key: str = "containerStatuses") -> Object:
        statuses = status.setdefault(key, [])
        if not statuses:
            spec = pod["spec"]["containers" if key == "containerStatuses" else "initContainers"][0]
            statuses.append(
                {
                    "name": spec["name"],
                    "image": spec.get("image", ""),
                    "imageID": "",
                    "ready": False,
                    "started": False,
                    "restartCount": 0,
                    "state": {"waiting": {"reason": "ContainerCreating"}},
                    "lastState": {},
                }
            )
        entry: Object = statuses[0]
        return entry

    def _state(self, worker: Worker, state: Object, *, init: bool = False, **fields: Any) -> None:
        def change(status: Object) -> None:
            pod = self._pod(worker)
            assert pod is not None
            entry = self._container_status(status, pod, "initContainerStatuses" if init else "containerStatuses")
            if "terminated" in entry["state"] and "terminated" not in state:
                entry["lastState"] = entry["state"]
            entry["state"] = state
            entry.update(fields)

        self._status(worker, change)

    def _ready(self, worker: Worker, ready: bool, reason: str = "", message: str = "") -> None:
        def change(status: Object) -> None:
            pod = self._pod(worker)
            assert pod is not None
            self._container_status(status, pod)["ready"] = ready
            self._set_condition(status, "ContainersReady", ready, reason, message)
            self._set_condition(status, "Ready", ready, reason, message)

        self._status(worker, change)

    def _event(self, worker: Worker, reason: str, message: str, kind: str = "Normal") -> None:
        pod = self._pod(worker)
        if pod is not None:
            self.recorder.event(pod, reason, message, kind)

    # Life of a pod

    async def _run(self, worker: Worker) -> None:
        try:
            with contextlib.suppress(LookupError):
                await self._live(worker)
                await self._end(worker)
        finally:
            if worker.container:
                worker.container.kill()
                await worker.container.process.wait()
            self.devices.give_back(worker.uid)
            self._workers.pop(worker.uid, None)
            shutil.rmtree(worker.directory / "volumes", ignore_errors=True)

    async def _live(self, worker: Worker) -> None:
        pod = self._pod(worker)
        if pod is None:
            raise LookupError(worker.name)
        spec = pod["spec"]

        def scheduled(status: Object) -> None:
            status.update(
                phase="Pending", hostIP=HOST, podIP=HOST, podIPs=[{"ip": HOST}], startTime=now(), qosClass="Burstable"
            )
            self._set_condition(status, "PodScheduled", True)
            self._set_condition(status, "PodReadyToStartContainers", True)
            self._set_condition(status, "Initialized", not spec.get("initContainers"))
            self._set_condition(status, "ContainersReady", False, "ContainersNotReady")
            self._set_condition(status, "Ready", False, "ContainersNotReady")
            if spec.get("initContainers"):
                self._container_status(status, pod, "initContainerStatuses")
                waiting = self._container_status(status, pod)
                waiting["state"] = {"waiting": {"reason": "PodInitializing"}}
            else:
                self._container_status(status, pod)

        if not await self._schedule(worker, pod):
            return
        bound = self._pod(worker)
        if bound is not None:
            bound["spec"]["nodeName"] = NODE
            self.store.update(PODS, bound)
        self._status(worker, scheduled)
        self._event(worker, "Scheduled", f"Successfully assigned {worker.namespace}/{worker.name} to {NODE}")
        (worker.directory / "logs").mkdir(parents=True, exist_ok=True)
        container = spec["containers"][0]
        if spec.get("initContainers") and not await self._initialize(worker, pod):
            return
        pulled = await self._pull(worker, container, self._faults(pod).value("slow-image-pull"))
        if pulled is not None:
            await self._keep_running(worker, pod, *pulled)

    async def _schedule(self, worker: Worker, pod: Object) -> bool:
        """Returns when the pod has the GPUs that it asks for; False when it was deleted before. Nothing else that pods
        ask for is counted."""
        count = gpus_asked(pod)
        while True:
            given_back = self.devices.given_back
            if self.devices.take(worker.uid, count):
                return True
            message = f"0/1 nodes are available: 1 Insufficient {GPU}."

            def waits(status: Object, message: str = message) -> None:
                status.setdefault("phase", "Pending")
                self._set_condition(status, "PodScheduled", False, "Unschedulable", message)

            self._status(worker, waits)
            self._event(worker, "FailedScheduling", message, "Warning")
            tasks = [asyncio.create_task(event.wait()) for event in (given_back, worker.deleted)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
            if worker.deleted.is_set():
                return False

    async def _unless_deleted(self, worker: Worker, timeout_s: float) -> bool:
        """Waits; True when the pod was deleted meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await worker.deleted.wait()
        return worker.deleted.is_set()

    async def _initialize(self, worker: Worker, pod: Object) -> bool:
        """The storage-initializer; False when the pod was deleted before it succeeded."""
        source = pod["metadata"].get("annotations", {}).get(STORAGE_ANNOTATION, "")
        name = pod["spec"]["initContainers"][0]["name"]
        delay, restarts = BACKOFF_FIRST_S, 0
        log = worker.directory / "logs" / f"{name}.log"
        while not worker.deleted.is_set():
            started = now()
            self._state(worker, {"running": {"startedAt": started}}, init=True)
            if not restarts:
                image = pod["spec"]["initContainers"][0].get("image", "")
                self._event(worker, "Pulled", f'Container image "{image}" already present on machine')
                self._event(worker, "Created", f"Created container {name}")
            self._event(worker, "Started", f"Started container {name}")
            with log.open("a") as file:
                file.write(f"downloading {source}\n")
            failure = ""
            download = asyncio.create_task(self.storage.download(source, worker.directory / "volumes" / "models"))
            deletion = asyncio.create_task(worker.deleted.wait())
            try:
                await asyncio.wait({download, deletion}, return_when=asyncio.FIRST_COMPLETED)
                if not download.done():
                    return False
                download.result()
            except StorageError as error:
                failure = str(error)
            finally:
                download.cancel()
                deletion.cancel()
            with log.open("a") as file:
                file.write((failure or "done") + "\n")
            ended = {
                "exitCode": 1 if failure else 0,
                "reason": "Error" if failure else "Completed",
                "startedAt": started,
                "finishedAt": now(),
                **({"message": failure} if failure else {}),
            }
            self._state(worker, {"terminated": ended}, init=True, ready=not failure, restartCount=restarts)
            if not failure:
                self._status(worker, lambda status: self._set_condition(status, "Initialized", True))
                return True
            restarts += 1
            self._event(worker, "BackOff", f"Back-off restarting failed container {name}", "Warning")
            self._state(
                worker,
                {"waiting": {"reason": "CrashLoopBackOff", "message": failure}},
                init=True,
                restartCount=restarts,
            )
            if await self._unless_deleted(worker, delay):
                return False
            delay = min(delay * 2, BACKOFF_MOST_S)
        return False

    async def _pull(self, worker: Worker, container: Object, delay_s: float) -> tuple[Runtime, Path] | None:
        image = container.get("image", "")
        delay = BACKOFF_FIRST_S
        while not worker.deleted.is_set():
            failure = f'no runtime folder names the image "{image}"'
            runtime = runtime_of_image(image)
            if runtime is not None and not runtime.runs_here:
                failure = f"{runtime.name} runs on real clusters only"
            elif runtime is not None:
                try:
                    started = time.monotonic()
                    present = runtime.installed and not delay_s
                    if present:
                        self._event(worker, "Pulled", f'Container image "{image}" already present on machine')
                    else:
                        self._event(worker, "Pulling", f'Pulling image "{image}"')
                    if await self._unless_deleted(worker, delay_s):
                        return None
                    python = await asyncio.to_thread(runtime.python, stop=worker.stop_pull)
                    elapsed = time.monotonic() - started
                    if not present:
                        self._event(worker, "Pulled", f'Successfully pulled image "{image}" in {elapsed:.3f}s')
                    return runtime, python
                except EnvironmentError_ as error:
                    failure = str(error)
            if worker.deleted.is_set():
                return None
            self._event(worker, "Failed", f'Failed to pull image "{image}": {failure}', "Warning")
            self._state(worker, {"waiting": {"reason": "ErrImagePull", "message": failure}})
            if await self._unless_deleted(worker, delay):
                return None
            self._state(
                worker, {"waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}}
            )
            self._event(worker, "BackOff", f'Back-off pulling image "{image}"', "Normal")
            if await self._unless_deleted(worker, delay):
                return None
            delay = min(delay * 2, BACKOFF_MOST_S)
        return None

    async def _keep_running(self, worker: Worker, pod: Object, runtime: Runtime, python: Path) -> None:
        container = pod["spec"]["containers"][0]
        delay, restarts = BACKOFF_FIRST_S, 0
        while not worker.deleted.is_set():
            worker.container = running = await self._start(worker, pod, container, runtime, python, restarts)
            self._event(worker, "Created", f"Created container {container['name']}")
            self._event(worker, "Started", f"Started container {container['name']}")
            started = now()

            def up(status: Object) -> None:
                status["phase"] = "Running"

            self._status(worker, up)
            self._state(worker, {"running": {"startedAt": started}}, started=True, restartCount=restarts)
            probing = asyncio.create_task(self._probe(worker, container, running))
            exited = asyncio.create_task(running.process.wait())
            deletion = asyncio.create_task(worker.deleted.wait())
            try:
                await asyncio.wait({exited, deletion}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                probing.cancel()
                deletion.cancel()
                await asyncio.gather(probing, deletion, return_exceptions=True)
            if worker.deleted.is_set():
                exited.cancel()
                return
            code = exited.result()
            running.kill()
            worker.container = None
            self._ready(worker, False, "ContainersNotReady", f"container {container['name']} exited with {code}")
            terminated = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "startedAt": started,
                "finishedAt": now(),
                "message": self.last_lines(worker.namespace, worker.name, 20),
            }
            policy = pod["spec"].get("restartPolicy", "Always")
            if policy == "Never" or (policy == "OnFailure" and code == 0):
                self._state(worker, {"terminated": terminated}, restartCount=restarts, started=False)
                phase = "Succeeded" if code == 0 else "Failed"
                self._status(worker, lambda status, phase=phase: status.update(phase=phase))  # type: ignore[misc]
                await worker.deleted.wait()
                return
            restarts += 1
            if time.monotonic() - running.started > BACKOFF_RESET_S:
                delay = BACKOFF_FIRST_S
            self._state(worker, {"terminated": terminated}, restartCount=restarts - 1, started=False)
            message = f"back-off {delay:g}s restarting failed container={container['name']} pod={worker.name}"
            self._state(worker, {"waiting": {"reason": "CrashLoopBackOff", "message": message}}, restartCount=restarts)
            self._event(
                worker,
                "BackOff",
                f"Back-off restarting failed container {container['name']} in pod {worker.name}",
                "Warning",
            )
            if await self._unless_deleted(worker, delay):
                return
            delay = min(delay * 2, BACKOFF_MOST_S)

    async def _start(
        self, worker: Worker, pod: Object, container: Object, runtime: Runtime, python: Path, restarts: int
    ) -> Container:
        ports: dict[str, int] = {}
        for name in runtime.spec.ports:
            ports[name] = free_port(set(self._ports))
            self._ports.append(ports[name])
        metadata = pod["metadata"]
        models = worker.directory / "volumes" / "models"
        models.mkdir(parents=True, exist_ok=True)
        values = {
            "host": HOST,
            "model_name": metadata.get("labels", {}).get(MODEL_LABEL) or metadata["name"],
            "model_dir": str(models),
            **{f"{name}_port": str(port) for name, port in ports.items()},
        }
        command, environment = runtime.local_command(python, values)
        command += _added_arguments(runtime, container)
        command = _slowed(command, self._faults(pod))
        home = worker.directory / "volumes" / "home"
        home.mkdir(parents=True, exist_ok=True)
        declared = {item["name"]: str(item.get("value", "")) for item in container.get("env", [])}
        # What the local command needs (its ports, its address) wins over what the image would use on a real node.
        variables = {
            "PATH": f"{python.parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "TMPDIR": str(home),
            "HOSTNAME": metadata["name"],
            "PYTHONUNBUFFERED": "1",
            **declared,
            **environment,
            # Those that it asked for, by what the driver calls them, and no other.
            "CUDA_VISIBLE_DEVICES": ",".join(self.devices.of(worker.uid)),
        }
        pod = self._pod(worker) or pod
        pod["metadata"].setdefault("annotations", {})[PORTS_ANNOTATION] = json.dumps(ports)
        with contextlib.suppress(ApiError):
            self.store.update(PODS, pod)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        shim = [sys.executable, "-I", "-S", str(Path(__file__).with_name("podshim.py")), str(read_end), *command]
        with self.log_path(worker, container["name"], restarts).open("ab") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *shim,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=variables,
                    pass_fds=(read_end,),
                    cwd=home,
                    start_new_session=True,
                )
            finally:
                os.close(read_end)
        return Container(process, write_end, time.monotonic(), ports)

    async def _probe(self, worker: Worker, container: Object, running: Container) -> None:
        local = partial(local_port, container, running.ports)
        pod = self._pod(worker)
        faults = self._faults(pod) if pod else NONE
        if "ready-before-load" in faults:
            with contextlib.suppress(LookupError):
                self._ready(worker, True)
            return
        async with asyncio.TaskGroup() as group:
            if "readiness-flaps" in faults:
                group.create_task(self._flap(worker))
            if "startupProbe" in container:
                await self._until_started(worker, ProbeSpec.parse(container["startupProbe"], local), running)
            group.create_task(self._readiness(worker, ProbeSpec.parse(container.get("readinessProbe"), local)))
            if "livenessProbe" in container:
                group.create_task(
                    self._liveness(worker, ProbeSpec.parse(container["livenessProbe"], local), running, container)
                )

    async def _flap(self, worker: Worker) -> None:
        """The fault of that name."""
        while not await self._unless_deleted(worker, FLAP_S):
            pod = self._pod(worker)
            if pod and (condition(pod, "Ready") or {}).get("status") == "True":
                with contextlib.suppress(LookupError):
                    self._ready(worker, False, "ContainersNotReady", "readiness probe failed")
                    await asyncio.sleep(FLAP_S / 4)
                    self._ready(worker, True)

    async def _until_started(self, worker: Worker, spec: ProbeSpec, running: Container) -> None:
        failures = 0
        await asyncio.sleep(spec.initial_delay_s)
        while (failure := await probe(spec)) is not None:
            failures += 1
            self._event(worker, "Unhealthy", f"Startup probe failed: {failure}", "Warning")
            if failures >= spec.failure_threshold:
                running.terminate()
                return
            await asyncio.sleep(spec.period_s)

    async def _readiness(self, worker: Worker, spec: ProbeSpec) -> None:
        """Kubernetes waits a whole period after a failure; while a pod starts, this asks more often, as
        queue-proxy does, so that readiness is seen when it comes."""
        failures = successes = 0
        ready = False
        await asyncio.sleep(spec.initial_delay_s)
        while True:
            failure = await probe(spec)
            with contextlib.suppress(LookupError):
                if failure is None:
                    successes, failures = successes + 1, 0
                    if not ready and successes >= spec.success_threshold:
                        ready = True
                        self._ready(worker, True)
                else:
                    successes, failures = 0, failures + 1
                    if ready or failures % 20 == 1:
                        self._event(worker, "Unhealthy", f"Readiness probe failed: {failure}", "Warning")
                    if ready and failures >= spec.failure_threshold:
                        ready = False
                        self._ready(worker, False, "ContainersNotReady", f"readiness probe failed: {failure}")
            await asyncio.sleep(spec.period_s if ready else min(0.1, spec.period_s))

    async def _liveness(self, worker: Worker, spec: ProbeSpec, running: Container, container: Object) -> None:
        failures = 0
        await asyncio.sleep(spec.initial_delay_s or spec.period_s)
        while True:
            failure = await probe(spec)
            failures = 0 if failure is None else failures + 1
            if failure is not None:
                self._event(worker, "Unhealthy", f"Liveness probe failed: {failure}", "Warning")
            if failures >= spec.failure_threshold:
                self._event(
                    worker, "Killing", f"Container {container['name']} failed liveness probe, will be restarted"
                )
                running.terminate()
                await asyncio.sleep(float(spec.grace_s))
                running.kill()
                return
            await asyncio.sleep(spec.period_s)

    async def _end(self, worker: Worker) -> None:
        """Not ready, out of the route, drained, SIGTERM, SIGKILL after the grace period, gone."""
        pod = self._pod(worker)
        if pod is None:
            raise LookupError(worker.name)
        grace_s = float(pod["metadata"].get("deletionGracePeriodSeconds", 30))
        deadline = time.monotonic() + grace_s
        running = worker.container
        if running:
            self._event(worker, "Killing", f"Stopping container {pod['spec']['containers'][0]['name']}")
            if condition(pod, "Ready"):
                self._ready(worker, False, "PodTerminating")
            if "killed-not-drained" in self._faults(pod):
                running.kill()
            elif self.drained:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        await self.drained(worker.name)
            running.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await running.process.wait()
            running.kill()
            await running.process.wait()
            worker.container = None
        self.store.remove(PODS, worker.namespace, worker.name)

    # Logs

    def log_path(self, worker: Worker, container: str, restarts: int) -> Path:
        return worker.directory / "logs" / (f"{container}.{restarts}.log" if restarts else f"{container}.log")

    def _log_files(self, namespace: str, pod: str, container: str) -> list[Path]:
        """Oldest run first. Raises ApiError 404 for a pod without a directory."""
        found = self.store.find("Pod", namespace, pod)
        if found is None:
            raise ApiError(404, "NotFound", f'pods "{pod}" not found')
        directory = self.directory / namespace / f"{pod}-{found['metadata']['uid'][:8]}" / "logs"
        numbered = sorted(directory.glob(f"{container}.*.log"), key=lambda file: int(file.name.split(".")[-2]))
        first = directory / f"{container}.log"
        return [first, *numbered] if first.exists() else numbered

    def last_lines(self, namespace: str, pod: str, count: int) -> str:
        found = self.store.find("Pod", namespace, pod)
        if found is None:
            return ""
        files = self._log_files(namespace, pod, found["spec"]["containers"][0]["name"])
        if not files:
            return ""
        with files[-1].open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])

    async def read(
        self, namespace: str, pod: str, container: str, *, previous: bool, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        files = self._log_files(namespace, pod, container)
        place = -2 if previous else -1
        if len(files) < -place:
            return
        with files[place].open("rb") as file:
            if tail_lines is not None:
                file.seek(_tail_offset(files[place], tail_lines))
            while True:
                chunk = await asyncio.to_thread(file.read, 1 << 16)
                if chunk:
                    yield chunk
                elif not follow or self._log_ended(namespace, pod, files[place], container):
                    rest = file.read()
                    if rest:
                        yield rest
                    return
                else:
                    await asyncio.sleep(0.1)

    def _log_ended(self, namespace: str, pod: str, file: Path, container: str) -> bool:
        found = self.store.find("Pod", namespace, pod)
        if found is None:
            return True
        if self._log_files(namespace, pod, container)[-1] != file:
            return True
        for key in ("containerStatuses", "initContainerStatuses"):
            for status in path(found, "status", key, default=[]):
                if status["name"] == container:
                    return "running" not in status["state"]
        return True


def _added_arguments(runtime: Runtime, container: Object) -> list[str]:
    """What the InferenceService adds to the runtime's own arguments, which the local command stands for."""
    own = runtime.spec.serving_runtime["containers"][0].get("args", [])
    return [str(argument) for argument in container.get("args", [])[len(own) :]]


def _used(worker: Worker, *, memory: bool = False) -> tuple[float, int] | None:
    """Processor seconds and bytes of a pod's processes, each shared page counted once; None where none runs."""
    if worker.container is None:
        return None
    cpu_s, held = 0.0, 0
    try:
        processes = psutil.Process(worker.container.process.pid).children(recursive=True)
    except psutil.Error:
        return None
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            cpu_s += times.user + times.system
            if memory:
                held += int(process.memory_full_info().pss)
    return cpu_s, held


def _slowed(command: list[str], faults: Faults) -> list[str]:
    """The faults of a model that takes long to load, or for ever: the process is there, and nobody listens yet."""
    if "hanging-load" in faults:
        wait = "infinity"
    elif "slow-load" in faults:
        wait = f"{faults.value('slow-load'):g}"
    else:
        return command
    return ["/bin/sh", "-c", 'sleep "$0"; exec "$@"', wait, *command]


def _tail_offset(file: Path, lines: int) -> int:
    data = file.read_bytes()
    position = len(data)
    if data.endswith(b"\n"):
        position -= 1
    for _ in range(lines):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return position + 1
