"""Load generators in a cluster: a stand-in for kubectl carries out here what would be carried out in the pods."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.local.provider import LocalCluster
from cluster.workloads import generators
from cluster.workloads.generators import ClusterGenerators, manifests
from cluster.workloads.waiting import waits_for
from harness.base.errors import ClusterError, UsageError
from harness.kubernetes.kube import Kube
from harness.load.distributed import Address
from harness.results.records import CheckResult, LoadResult, Outcome, SampleBatch
from harness.target.endpoint import Endpoint
from runtimes.catalog import BuiltModel
from scenarios.suites.shared.stage import Plan, load
from tests.cluster.standins import RUNS_HERE, running_pod
from tests.helpers import ROOT, Reference, free_port, load_workers, processes_mentioning, wait_until

Object = dict[str, Any]
NAMESPACE = "loaded"
KUBECTL = """#!{python} -S
import json, os, shutil, subprocess, sys
arguments = sys.argv[sys.argv.index("--namespace") + 2:]
with open({log!r}, "a") as file:
    file.write(json.dumps(arguments) + "\\n")
verb = arguments[0]
if verb == "apply":
    with open({applied!r}, "w") as file:
        file.write(sys.stdin.read())
elif verb == "exec":
    command = arguments[arguments.index("--") + 1:]
    if command[0] == "python":
        command = [{python!r}, *command[1:3], "127.0.0.1", {port!r}]
    os.execvp(command[0], command)
elif verb == "cp":
    source, target = (part.rpartition(":")[2] for part in arguments[-2:])
    shutil.copytree(source, target, dirs_exist_ok=True)
"""


@pytest.fixture
def place(
    tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> tuple[ClusterGenerators, Path, int]:
    """Generators, what kubectl was asked for, and the port of the master."""
    port = free_port()
    log, tool = tmp_path / "calls", tmp_path / "bin" / "kubectl"
    tool.parent.mkdir()
    text = KUBECTL.format(python=sys.executable, log=str(log), applied=str(tmp_path / "applied"), port=str(port))
    tool.write_text(text)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{'/usr/bin:/bin'}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return (
        ClusterGenerators(cluster.kubeconfig, NAMESPACE, "servecert/load:1", tmp_path / "log", threading.Event()),
        log,
        port,
    )


@pytest.fixture(scope="module")
def master_pod(cluster: LocalCluster, identity: BuiltModel) -> str:
    """And two workers: pods that run something, and are ready."""
    kube = Kube(cluster.kubeconfig)
    kube.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for name, role in (("master-x", "master"), ("worker-x", "worker"), ("worker-y", "worker")):
        kube.call("POST", PODS, generator_pod(f"servecert-load-{name}", role, identity))
    return "servecert-load-master-x"


PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def generator_pod(name: str, role: str, identity: BuiltModel, image: str = RUNS_HERE) -> Object:
    return running_pod(name, generators._labels(role), identity.artifacts, image)


def verbs(log: Path) -> list[str]:
    return [json.loads(line)[0] for line in log.read_text().splitlines()]


async def test_every_row_comes_back_from_the_pods(
    place: tuple[ClusterGenerators, Path, int], master_pod: str, reference: Reference, tmp_path: Path
) -> None:
    within, log, port = place
    endpoint = Endpoint(
        "s", "r", reference.url, reference.model, host="s.example", inside=f"127.0.0.1:{reference.http_port}"
    )
    plan = Plan("load", 1.0, rate_per_s=100, warmup_s=0.2, workers="cluster://?expect=2", timeout_s=20.0)
    with load_workers(port):
        found = [record async for record in load(endpoint, plan, "s", lambda progress: None, within=within)]
    batch = next(record for record in found if isinstance(record, SampleBatch))
    result = next(record for record in found if isinstance(record, LoadResult))
    assert result.generators == 2
    assert len(batch) == result.requests > 70
    assert result.errors == 0
    answers = next(item for item in found if isinstance(item, CheckResult) and item.id == "load.answers")
    assert answers.outcome is Outcome.PASSED
    called = verbs(log)
    assert called[:2] == ["delete", "apply"]
    assert called[-2:] == ["logs", "delete"], "what was started is taken away, its last words are kept"
    assert called.count("cp") == 2, "there and back"
    assert list(yaml.safe_load_all((tmp_path / "applied").read_text())) == manifests("servecert/load:1", 2)
    wait_until(lambda: not processes_mentioning(f"distributed.master 127.0.0.1 {port}"), what="the master's end")
    assert not [name for name in os.listdir("/tmp") if name.startswith("stage-servecert-fleet-")]


def test_generators_keep_away_from_models_and_do_not_stay() -> None:
    service, master, worker = manifests("servecert/load:1", 3)
    assert service["spec"]["clusterIP"] == "None"
    assert worker["spec"]["parallelism"] == worker["spec"]["completions"] == 3
    for job in (master, worker):
        pod = job["spec"]["template"]["spec"]
        terms = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        first = terms[0]["podAffinityTerm"]
        assert first["topologyKey"] == "kubernetes.io/hostname"
        assert first["labelSelector"]["matchExpressions"][0]["key"] == "serving.kserve.io/inferenceservice"
        assert job["spec"]["activeDeadlineSeconds"] > 0
        assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert worker["spec"]["template"]["spec"]["containers"][0]["command"][-1] == "locust://servecert-load:5557"


async def test_nodes_that_both_are_on_are_named(
    place: tuple[ClusterGenerators, Path, int], cluster: LocalCluster, master_pod: str
) -> None:
    within, _, _ = place
    kube = Kube(cluster.kubeconfig)
    assert within.beside_the_model() == []
    where = f"/api/v1/namespaces/{NAMESPACE}/pods"
    wait_until(lambda: kube.call("GET", f"{where}/{master_pod}")["spec"].get("nodeName"))
    labels = {"serving.kserve.io/inferenceservice": "m"}
    model = {"metadata": {"name": "m-1", "labels": labels}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    kube.call("POST", where, model)
    try:
        wait_until(lambda: within.beside_the_model() == ["servecert-local"])
    finally:
        kube.call("DELETE", f"{where}/m-1")


async def test_what_fails_leaves_nothing(
    place: tuple[ClusterGenerators, Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    within, log, _ = place
    monkeypatch.setattr(generators, "WITHIN_S", 1.0)
    empty = ClusterGenerators(within.kubeconfig, "nobody-here", within.image, within.log, within.stop)
    with pytest.raises(ClusterError, match="load generators: 2 were not ready within 1 s: 0 pods were created"):
        async with empty.open(1):
            pytest.fail("there is no master")
    assert verbs(log)[-1] == "delete"


async def test_a_generator_that_cannot_start_is_named_at_once(
    place: tuple[ClusterGenerators, Path, int], cluster: LocalCluster, master_pod: str, identity: BuiltModel
) -> None:
    within, log, _ = place
    kube = Kube(cluster.kubeconfig)
    kube.call("POST", PODS, generator_pod("servecert-load-worker-z", "worker", identity, "nowhere.example/load:1"))
    try:
        with pytest.raises(
            ClusterError, match=f"{NAMESPACE}/servecert-load-worker-z: (ErrImagePull|ImagePullBackOff): "
        ):
            async with within.open(3):
                pytest.fail("a worker's image cannot be pulled")
    finally:
        kube.call("DELETE", f"{PODS}/servecert-load-worker-z")
    assert verbs(log)[-1] == "delete"


def test_what_a_generator_waits_for() -> None:
    def pod(phase: str = "Pending", *conditions: tuple[str, str, str], **status: Any) -> Object:
        said = [{"type": kind, "status": value, "message": message} for kind, value, message in conditions]
        return {"metadata": {}, "status": {"phase": phase, "conditions": said, **status}}

    assert waits_for(pod("Running", ("Ready", "True", ""))) == ""
    no_room = pod("Pending", ("PodScheduled", "False", "0/1 nodes are available: 1 Insufficient cpu."))
    assert waits_for(no_room) == "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."
    assert waits_for(pod("Failed", message="evicted")) == "Failed: evicted"
    assert waits_for(pod()) == "Pending"


async def test_without_a_cluster_it_is_a_mistake(reference: Reference) -> None:
    plan = Plan("load", 1.0, rate_per_s=5, workers="cluster://?expect=1")
    endpoint = Endpoint("s", "r", reference.url, reference.model)
    with pytest.raises(UsageError, match="need a scenario on a real cluster"):
        async for _ in load(endpoint, plan, "s", lambda progress: None):
            pass


def test_addresses() -> None:
    assert Address.parse("cluster://?expect=4") == Address("", 5557, 4, in_cluster=True)
    for wrong in ("cluster://host?expect=1", "cluster://?expect=0", "locust://?expect=1"):
        with pytest.raises(ValueError, match="or cluster://"):
            Address.parse(wrong)
