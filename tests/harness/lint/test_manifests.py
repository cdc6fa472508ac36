"""What is deployed, by scenario and cluster: images, models, ports, tolerations."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from harness.base.errors import ScenarioError
from scenarios.engine.deployment import planned_manifests
from scenarios.file.reading import load_scenario
from scenarios.file.scenario import Scenario
from tests.helpers import servecert

AKS = {
    "provider": "aks",
    "location": "westeurope",
    "registry": "registry.example/servecert",
    "models": {"uri": "s3://models"},
    "nodes": {"type": "m"},
    "gpu": {"type": "g", "spot": True, "taints": ["nvidia.com/gpu=present:NoSchedule", "team:NoExecute"]},
}


def scenario(tmp_path: Any, cluster: dict[str, Any] | None = None, **service: Any) -> Scenario:
    data = {
        "name": "m",
        "services": {"svc": {"runtime": "reference", "model": "identity", **service}},
        "steps": [{"suite": "conformance", "service": "svc"}],
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump({**data, **({"cluster": cluster} if cluster else {})}))
    return load_scenario(path)


def test_on_this_machine_the_model_is_a_folder(tmp_path: Any) -> None:
    runtime, service = planned_manifests(scenario(tmp_path))
    assert runtime["spec"]["containers"][0]["image"] == "servecert/reference:1.0.0"
    assert service["spec"]["predictor"]["model"]["storageUri"].startswith("file:///")
    assert "tolerations" not in service["spec"]["predictor"]


def test_a_runtime_with_gpus_gets_onto_their_nodes(tmp_path: Any) -> None:
    model = {"storageUri": "hf://org/model"}
    loaded = scenario(tmp_path, AKS, runtime="vllm", model=None, predictor={"model": model})
    runtime, service = planned_manifests(loaded)
    container = runtime["spec"]["containers"][0]
    assert container["image"] == "docker.io/vllm/vllm-openai:v0.23.0", "not ours, so not in our registry"
    assert container["resources"]["requests"]["nvidia.com/gpu"] == container["resources"]["limits"]["nvidia.com/gpu"]
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["storageUri"] == "hf://org/model"
    assert predictor["model"]["modelFormat"] == {"name": "vLLM"}
    assert "protocolVersion" not in predictor["model"], "it speaks OpenAI's"
    assert predictor["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"},
        {"key": "team", "operator": "Exists", "effect": "NoExecute"},
        {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
    ]
    plain = planned_manifests(scenario(tmp_path, AKS))[1]
    assert "tolerations" not in plain["spec"]["predictor"], "what asks for no GPU stays away from them"


def test_our_images_come_from_the_registry(tmp_path: Any) -> None:
    runtime, _ = planned_manifests(scenario(tmp_path, AKS))
    assert runtime["spec"]["containers"][0]["image"] == "registry.example/servecert/reference:1.0.0"


def test_the_port_for_grpc(tmp_path: Any) -> None:
    """Its runtime's only one: KServe would add a port of the service to it, and Knative refuses two. Knative probes the
    port that it routes to, and HTTP/1 does not get through there."""
    runtime, service = planned_manifests(scenario(tmp_path, expose="grpc"))
    (container,) = runtime["spec"]["containers"]
    (port,) = container["ports"]
    assert (port["name"], port["containerPort"]) == ("h2c", 8081)
    assert container["readinessProbe"]["tcpSocket"] == container["livenessProbe"]["tcpSocket"] == {"port": 8081}
    assert "httpGet" not in container["readinessProbe"]
    assert container["readinessProbe"]["periodSeconds"] == 1, "its timing stays"
    assert "ports" not in service["spec"]["predictor"]["model"]
    assert (
        service["spec"]["predictor"]["model"]["runtime"]
        == runtime["metadata"]["name"]
        == "servecert-reference-1-0-0-grpc"
    )


def test_runtimes_of_a_namespace_are_chosen_by_name(tmp_path: Any) -> None:
    """KServe refuses two that may be chosen for a format with one priority, as two versions of a runtime would be."""
    runtime, service = planned_manifests(scenario(tmp_path))
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    formats = runtime["spec"]["supportedModelFormats"]
    assert formats
    assert all(item["autoSelect"] is False and "priority" not in item for item in formats)


HUGGING = {"runtime": "huggingface", "model": None, "predictor": {"model": {"storageUri": "hf://a/b"}}}


@pytest.mark.parametrize(
    ("service", "words"),
    [
        (HUGGING, "real clusters only"),
        ({"runtime": "reference", "model": None}, "or predictor.model.storageUri"),
    ],
)
def test_what_cannot_run_here(tmp_path: Any, service: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        scenario(tmp_path, None, **service)


def test_runtimes_of_real_clusters_are_listed_and_not_installed() -> None:
    assert "real clusters only" in servecert("runtimes", "list").stdout
    refused = servecert("runtimes", "install", "vllm")
    assert refused.returncode == 2
    assert "nothing to install" in refused.stderr
