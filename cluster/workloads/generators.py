"""Load from inside the cluster: Locust's master and workers as Jobs, so that neither the network nor this machine is in
the way of what is measured.

The master is driven as on this machine, by lines on its standard input and output (``kubectl exec -i``); the folders of
a stage are copied there and back, so that every row comes home as it was written. Source: harness.load.distributed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.commands import Command, Progress, require_tools, run
from cluster.workloads.waiting import await_pods
from harness.base.errors import ClusterError
from harness.base.version import __version__
from harness.kubernetes.kube import Kube

Object = dict[str, Any]
NAME = "servecert-load"
IMAGE = f"servecert/load:{__version__}"
PORT = 5557
WITHIN_S = 300.0
WORKER_CPU = "1"
LIMIT_S = 6 * 3600
"""The cluster itself ends what a crash has left, after this."""
SELECTOR = "app.kubernetes.io/name=servecert-load"


@dataclass(frozen=True)
class InPods:
    """Where Locust's master runs: a pod. What ``harness.load.distributed.fleet`` asks of a place."""

    base: tuple[str, ...]
    pod: str
    log: Path
    stop: threading.Event

    def command(self) -> list[str]:
        return [*self.base, "exec", "-i", self.pod, "--", *_master()]

    async def send(self, directory: Path) -> str:
        """The folder as the master sees it."""
        there = f"/tmp/stage-{directory.name}"  # noqa: S108 - of the pod, which is ours alone
        await self._run("make the stage's folder", "exec", self.pod, "--", "mkdir", "-p", there)
        await self._run("copy the stage to the master", "cp", f"{directory}/.", f"{self.pod}:{there}")
        return there

    async def fetch(self, directory: Path) -> None:
        there = f"/tmp/stage-{directory.name}"  # noqa: S108
        await self._run("bring the rows back", "cp", "--retries=5", f"{self.pod}:{there}/.", str(directory))
        await self._run("remove the stage's folder", "exec", self.pod, "--", "rm", "-rf", there)

    async def _run(self, does: str, *arguments: str) -> None:
        command = Command((*self.base, *arguments), does, timeout_s=600, attempts=2)
        await asyncio.to_thread(run, command, self.log, self.stop)


def _master() -> list[str]:
    return ["python", "-m", "harness.load.distributed.master", "0.0.0.0", str(PORT)]  # noqa: S104 - in its pod


@dataclass(frozen=True)
class ClusterGenerators:
    """``image`` is this project's own, from ``harness/load/distributed/Dockerfile``."""

    kubeconfig: Path
    namespace: str
    image: str
    log: Path
    stop: threading.Event
    progress: Progress = lambda line: None

    @contextlib.asynccontextmanager
    async def open(self, workers: int) -> AsyncIterator[InPods]:
        """Master and workers run when it is entered, and are gone when it is left. Raises ClusterError."""
        base = ("kubectl", "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace)
        text = yaml.safe_dump_all(manifests(self.image, workers), sort_keys=False)
        gone = Command(
            (*base, "delete", "job,service", "--selector", SELECTOR, "--ignore-not-found", "--wait"),
            "delete the load generators",
            timeout_s=120,
            attempts=2,
        )
        commands = [
            gone,  # of a run that was killed
            Command((*base, "apply", "-f", "-"), "start the load generators", stdin=text),
        ]
        require_tools(commands)
        try:
            for command in commands:
                await asyncio.to_thread(run, command, self.log, self.stop)
            await asyncio.to_thread(self._await_pods, 1 + workers)
            yield InPods(base, await asyncio.to_thread(self._pod), self.log, self.stop)
        finally:
            # Shielded, and not to be stopped: what is left behind goes on using the cluster.
            await asyncio.shield(asyncio.to_thread(self._end, base, gone))

    def _end(self, base: tuple[str, ...], gone: Command) -> None:
        words = (*base, "logs", "--selector", SELECTOR, "--prefix", "--tail=100", "--ignore-errors")
        with contextlib.suppress(ClusterError):  # a pod that never started has none
            run(Command(words, "read what the load generators said"), self.log, threading.Event())
        run(gone, self.log, threading.Event())

    def _await_pods(self, count: int) -> None:
        await_pods(
            Kube(self.kubeconfig), self.namespace, SELECTOR, count, "load generators",
            within_s=WITHIN_S, stop=self.stop, progress=self.progress,
        )  # fmt: skip

    def _pod(self) -> str:
        found = Kube(self.kubeconfig).list("v1", "pods", self.namespace, f"{SELECTOR},role=master")
        if not found:
            raise ClusterError(f"the load master's pod is gone from namespace {self.namespace}")
        return str(found[0]["metadata"]["name"])

    def beside_the_model(self) -> list[str]:
        """Nodes that hold a generator and a model: there the one takes from the other what is measured."""
        kube = Kube(self.kubeconfig)

        def nodes(selector: str) -> set[str]:
            pods = kube.list("v1", "pods", self.namespace, selector)
            return {str((pod.get("spec") or {}).get("nodeName")) for pod in pods} - {"None"}

        return sorted(nodes(SELECTOR) & nodes("serving.kserve.io/inferenceservice"))


def manifests(image: str, workers: int) -> list[Object]:
    """A Service and two Jobs. Generators keep away from nodes with models, and from each other, where they can."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "labels": _labels("master")},
            "spec": {
                "clusterIP": "None",
                "selector": _labels("master"),
                "ports": [{"name": "locust", "port": PORT}],
                "publishNotReadyAddresses": True,
            },
        },
        # The master waits to be driven; a worker finds it as soon as there is one.
        _job("master", 1, image, ["sleep", "infinity"], "100m"),
        _job("worker", workers, image, ["servecert", "worker", f"locust://{NAME}:{PORT}"], WORKER_CPU),
    ]


def _labels(role: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/managed-by": "servecert",
        "role": role,
    }


def _job(role: str, count: int, image: str, command: list[str], cpu: str) -> Object:
    def away(selector: Object, weight: int) -> Object:
        term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
        return {"weight": weight, "podAffinityTerm": term}

    models = {"matchExpressions": [{"key": "serving.kserve.io/inferenceservice", "operator": "Exists"}]}
    affinity = [away(models, 100), away({"matchLabels": _labels(role)}, 10)]
    container: Object = {
        "name": role,
        "image": image,
        "command": command,
        "resources": {"requests": {"cpu": cpu, "memory": "512Mi"}},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": affinity}},
        "containers": [container],
    }
    # A sidecar of a service mesh would never let the Job end.
    metadata = {"labels": _labels(role), "annotations": {"sidecar.istio.io/inject": "false"}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{NAME}-{role}", "labels": _labels(role)},
        "spec": {
            "parallelism": count,
            "completions": count,
            "backoffLimit": 0,
            "activeDeadlineSeconds": LIMIT_S,
            "ttlSecondsAfterFinished": 600,
            "template": {"metadata": metadata, "spec": pod},
        },
    }
