"""GPUs of the embedded cluster: a pod has those that it asks for, for itself. The driver's tool is a stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from kubernetes import client, config

from cluster.local.provider import LocalCluster, LocalSpec
from harness.base.gpus import Gpu, gpus
from harness.kubernetes.kube import Kube
from runtimes.catalog import BuiltModel
from scenarios.engine.preflight import Answer, gpus_preflight
from scenarios.file.reading import load_scenario
from tests.cluster.conftest import condition_of, get_isvc, isvc_manifest, ready_isvc
from tests.cluster.standins import StandIns
from tests.helpers import servecert, wait_until

QUESTION = "nvidia-smi --query-gpu=uuid,name,memory.total,driver_version --format=csv,noheader,nounits"
ANSWER = "".join(f"GPU-{name}, NVIDIA H100 80GB HBM3, 81559, 580.159.04\n" for name in ("aaaa", "bbbb"))
DRIVER: dict[str, Any] = {"match": f"^{QUESTION}$", "stdout": ANSWER}


def nvidia_smi(directory: Path, *rules: dict[str, Any]) -> str:
    """PATH with it in front. What no rule is for is an error."""
    standins = StandIns(directory).install("nvidia-smi")
    standins.rule(*rules, {"match": "", "exit": 3})
    return standins.environment()["PATH"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    found = nvidia_smi(tmp_path / "tools", DRIVER)
    monkeypatch.setenv("PATH", found)
    return found


@pytest.fixture
def own(tmp_path: Path, path: str) -> Iterator[LocalCluster]:
    with LocalCluster.start(LocalSpec(tmp_path / "gpus")) as running:
        yield running


def test_what_the_driver_says(path: str) -> None:
    memory = 81559 << 20
    name, driver = "NVIDIA H100 80GB HBM3", "580.159.04"
    assert gpus() == [Gpu("GPU-aaaa", name, memory, driver), Gpu("GPU-bbbb", name, memory, driver)]


@pytest.mark.parametrize("rule", [{"stdout": "No devices were found\n"}, {"exit": 9}])
def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path, {"match": "", **rule}))
    assert gpus() == []


def test_a_tool_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path))
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/none\n")
    assert gpus() == []


def environment_of(core: Any, namespace: str, name: str) -> dict[str, str]:
    selector = f"serving.kserve.io/inferenceservice={name}"
    (pod,) = core.list_namespaced_pod(namespace, label_selector=selector).items
    port = json.loads(pod.metadata.annotations["local.servecert.io/ports"])["http"]
    (pid,) = {item.pid for item in psutil.net_connections("tcp") if item.laddr.port == port and item.status == "LISTEN"}
    return psutil.Process(pid).environ()


def test_a_gpu_is_one_pods(own: LocalCluster, identity: BuiltModel) -> None:
    api = config.new_client_from_config(str(own.kubeconfig))
    core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
    (node,) = core.list_node().items
    assert node.status.allocatable["nvidia.com/gpu"] == "2"
    assert node.metadata.labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    where = ("serving.kserve.io", "v1beta1", "default", "inferenceservices")

    def deploy(name: str, **resources: Any) -> None:
        manifest = isvc_manifest(name, "default", f"file://{identity.artifacts}", model={"resources": resources})
        custom.create_namespaced_custom_object(*where, manifest)

    one = {"nvidia.com/gpu": "1"}
    deploy("first", limits=one, requests=one)
    deploy("second", limits=one)
    deploy("none", limits={"cpu": "1"})
    for name in ("first", "second", "none"):
        ready_isvc(custom, "default", name)
    seen = {name: environment_of(core, "default", name)["CUDA_VISIBLE_DEVICES"] for name in ("first", "second")}
    assert set(seen.values()) == {"GPU-aaaa", "GPU-bbbb"}
    assert environment_of(core, "default", "none")["CUDA_VISIBLE_DEVICES"] == ""

    deploy("third", limits=one)

    def waits() -> Any:
        for pod in core.list_namespaced_pod("default").items:
            for item in pod.status.conditions or [] if pod.metadata.name.startswith("third") else []:
                if item.type == "PodScheduled" and item.status == "False":
                    return item
        return None

    unscheduled = wait_until(waits, what="the third pod to wait")
    assert unscheduled.reason == "Unschedulable"
    assert unscheduled.message == "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    assert condition_of(get_isvc(custom, "default", "third"), "Ready").get("status") != "True"
    custom.delete_namespaced_custom_object(*where, "first")
    ready_isvc(custom, "default", "third")
    assert environment_of(core, "default", "third")["CUDA_VISIBLE_DEVICES"] == seen["first"]


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"limits": {"nvidia.com/gpu": "half"}}, "nvidia.com/gpu must be an integer, got half"),
        ({"requests": {"nvidia.com/gpu": "1"}}, "the limit of nvidia.com/gpu must be set, and equal its request"),
    ],
)
def test_what_no_api_admits(
    custom: Any, namespace: str, identity: BuiltModel, resources: dict[str, Any], said: str
) -> None:
    manifest = isvc_manifest("bad", namespace, f"file://{identity.artifacts}", model={"resources": resources})
    custom.create_namespaced_custom_object("serving.kserve.io", "v1beta1", namespace, "inferenceservices", manifest)
    status = wait_until(lambda: (get_isvc(custom, namespace, "bad").get("status") or {}).get("modelStatus"))
    assert said in status["lastFailureInfo"]["message"]


def test_a_machine_without_them_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "tools"))
    limits = {"nvidia.com/gpu": "1"}
    service = {"runtime": "reference", "model": "identity", "predictor": {"model": {"resources": {"limits": limits}}}}
    steps = [{"suite": "parity", "service": "svc"}]
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump({"name": "gpus", "services": {"svc": service}, "steps": steps}))
    result = servecert("run", str(path), "--out", str(tmp_path / "run"), timeout_s=60)
    assert result.returncode == 3
    assert "needs 1 × nvidia.com/gpu; found 0 on 1 node; does nvidia-smi show them?" in result.stderr


@pytest.mark.parametrize(("deploy", "count"), [("in_turn", 1), ("side_by_side", 2)])
def test_services_that_have_turns_share_one(tmp_path: Path, cluster: LocalCluster, deploy: str, count: int) -> None:
    limits = {"nvidia.com/gpu": "1"}
    service = {"runtime": "reference", "model": "identity", "predictor": {"model": {"resources": {"limits": limits}}}}
    step = {"suite": "compare", "service": "one", "against": [{"service": "two"}], "deploy": deploy}
    data = {
        "name": "t",
        "services": {"one": service, "two": service},
        "steps": [{**step, "rate": "1/s", "duration": "1s"}],
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    (found,) = gpus_preflight(load_scenario(path), Kube(cluster.kubeconfig))
    assert found.needs == f"{count} × nvidia.com/gpu"
    assert found.answer is Answer.FAILED


def test_the_run_says_which(tmp_path: Path, path: str) -> None:
    service = {"runtime": "reference", "model": "identity"}
    steps = [{"suite": "parity", "service": "svc"}]
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump({"name": "gpus", "services": {"svc": service}, "steps": steps}))
    result = servecert("run", str(file), "--out", str(tmp_path / "run"), timeout_s=60)
    assert result.returncode == 0, result.stderr
    (first, _) = json.loads((tmp_path / "run" / "run.json").read_text())["host"]["gpus"]
    assert first == {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 81559 << 20, "driver": "580.159.04"}
    page = (tmp_path / "run" / "summary.md").read_text() + (tmp_path / "run" / "report.html").read_text()
    assert "2 × NVIDIA H100 80GB HBM3 (80 GiB, driver 580.159.04)" in page
