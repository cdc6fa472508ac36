"""On a cluster that is there: real Kubernetes, real Knative, real KServe.

``SERVECERT_TEST_KUBECONFIG`` names its kubeconfig, ``SERVECERT_TEST_REGISTRY`` where the project's images are (of the
reference server and of the load generators), ``SERVECERT_TEST_MODELS`` where models go (``pvc://models``, as in
``cluster.models.uri``). Two processors are enough. Nothing stays in its namespace but the claim and the
ServingRuntimes, which other runs may use at the same time.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.kubernetes.kube import Kube
from tests.helpers import servecert

KUBECONFIG = os.environ.get("SERVECERT_TEST_KUBECONFIG", "")
pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.alone,
    pytest.mark.skipif(not KUBECONFIG, reason="SERVECERT_TEST_KUBECONFIG does not name a cluster"),
]
NAMESPACE = "servecert-tests"
SMALL = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
Object = dict[str, Any]
LOAD = {"suite": "load", "service": "sound", "rate": "50/s", "duration": "10s", "slo": ["errors < 0.1%"]}


def scenario(tmp_path: Path, /, steps: list[Object], cluster: Object | None = None, **service: Any) -> Path:
    model = {"resources": SMALL, **service.pop("model", {})}
    predictor = {"model": model, **service.pop("predictor", {})}
    data = {
        "name": "kubernetes",
        "namespace": NAMESPACE,
        "cluster": {
            "provider": "existing",
            "kubeconfig": KUBECONFIG,
            "registry": os.environ.get("SERVECERT_TEST_REGISTRY", "registry.local/servecert"),
            "models": {"uri": os.environ.get("SERVECERT_TEST_MODELS", "pvc://models")},
            **(cluster or {}),
        },
        "services": {"sound": {"runtime": "reference", "model": "identity", "predictor": predictor, **service}},
        "steps": steps,
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def left() -> list[str]:
    kube = Kube(Path(KUBECONFIG))
    kinds = (
        ("serving.kserve.io/v1beta1", "inferenceservices"),
        *(("v1", plural) for plural in ("pods", "secrets", "services")),
        ("batch/v1", "jobs"),
    )
    return [item["metadata"]["name"] for version, plural in kinds for item in kube.list(version, plural, NAMESPACE)]


def results(run: Path) -> Object:
    found: Object = json.loads((run / "results.json").read_text())
    return found


def test_the_acceptance_scenario(tmp_path: Path) -> None:
    models = os.environ.get("SERVECERT_TEST_MODELS", "pvc://models")
    registry = os.environ.get("SERVECERT_TEST_REGISTRY", "registry.local/servecert")
    changes = (f"namespace={NAMESPACE}", f"cluster.kubeconfig={KUBECONFIG}")
    changes += (f"cluster.registry={registry}", f"cluster.models.uri={models}")
    options = [part for change in changes for part in ("--set", change)]
    run = tmp_path / "run"
    result = servecert("run", "acceptance", "--provider", "existing", *options, "--out", str(run), timeout_s=900)
    assert result.returncode == 0, result.stderr
    assert results(run)["passed"]
    assert left() == []


def test_load_from_inside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = scenario(tmp_path, [{**LOAD, "workers": "cluster://?expect=1"}])
    result = servecert("run", str(path), "--out", str(run), timeout_s=300)
    assert result.returncode == 0, result.stderr
    stage = results(run)["loads"][0]
    assert stage["generators"] == 1
    assert stage["requests"] == 500
    assert left() == []


def test_a_service_that_exposes_grpc(tmp_path: Path) -> None:
    """The ingress leads to one port, and what is answered at the other is had by a pod. A runtime of the same version
    that exposes HTTP is there beside it."""
    steps: list[Object] = [
        {"suite": "conformance", "service": "sound", "profiles": ["rest", "grpc"]},
        {"suite": "parity", "service": "sound"},
        {**LOAD, "protocol": "grpc", "rate": "20/s"},
    ]
    path = scenario(tmp_path, steps, expose="grpc")
    data = yaml.safe_load(path.read_text())
    data["services"]["http"] = {**data["services"]["sound"], "expose": "http"}
    data["steps"].append({**LOAD, "service": "http", "rate": "20/s"})
    path.write_text(yaml.safe_dump(data))
    run = tmp_path / "run"
    result = servecert("run", str(path), "--out", str(run), timeout_s=300)
    assert result.returncode == 0, result.stderr
    assert [stage["requests"] for stage in results(run)["loads"]] == [200, 200]
    restarted = [line for line in (run / "events.jsonl").read_text().splitlines() if "failed liveness probe" in line]
    assert restarted == [], "its probes get through"
    assert left() == []


@pytest.mark.parametrize(
    ("service", "section", "within_s", "said"),
    [
        ({"model": {"args": ["--no-such-option"]}}, {}, 90, "crashes at start: exit code 2"),
        ({"predictor": {"annotations": {"autoscaling.knative.dev/window": "1s"}}}, {}, 45, "denied the request"),
        ({}, {"registry": "registry.invalid/none"}, 90, "nable to fetch image|ErrImagePull|ImagePullBackOff"),
        (
            {"model": {"resources": {"requests": {"cpu": "999"}, "limits": {"cpu": "999"}}}, "ready_within": "20s"},
            {"preflight": False}, 90, "Insufficient cpu",
        ),
    ],
    ids=["crash", "webhook", "image", "unschedulable"],
)  # fmt: skip
def test_what_keeps_a_service_from_starting(
    tmp_path: Path, service: Object, section: Object, within_s: float, said: str
) -> None:
    begun = time.monotonic()
    run = tmp_path / "run"
    path = scenario(tmp_path, [{"suite": "parity", "service": "sound"}], section, **service)
    result = servecert("run", str(path), "--out", str(run), timeout_s=300)
    assert result.returncode == 3, result.stderr
    assert any(word in result.stderr for word in said.split("|")), result.stderr
    assert f"{NAMESPACE}/sound" in result.stderr, "the object is named"
    assert time.monotonic() - begun < within_s
    assert (run / "logs" / "sound.objects.yaml").exists()
    assert left() == []
