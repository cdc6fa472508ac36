"""The production checklist on manifests: each rule is shown to notice, and to say nothing of a sound service."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from harness.base.errors import UsageError
from harness.base.quantities import parse_quantity
from harness.cli.lint import measured
from harness.lint import RULES, Facts, lint, read_manifests, subjects_of
from harness.results.records import Measurement, Record
from harness.results.runstore import RunStore
from tests.helpers import servecert
from tests.records import load_result

RUNTIME: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ServingRuntime",
    "metadata": {"name": "server"},
    "spec": {
        "supportedModelFormats": [{"name": "sklearn", "version": "1", "autoSelect": True}],
        "protocolVersions": ["v2"],
        "containers": [
            {
                "name": "kserve-container",
                "image": "example/server:1.2.3",
                "ports": [{"containerPort": 8080, "name": "http1"}],
                "readinessProbe": {"httpGet": {"path": "/v2/models/{{.Name}}/ready", "port": 8080}},
                "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": 8080}, "initialDelaySeconds": 60},
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
            }
        ],
    },
}
SERVICE: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "iris", "annotations": {"serving.kserve.io/deploymentMode": "Knative"}},
    "spec": {
        "predictor": {
            "minReplicas": 2,
            "maxReplicas": 10,
            "scaleTarget": 4,
            "containerConcurrency": 8,
            "timeout": 60,
            "model": {
                "modelFormat": {"name": "sklearn"},
                "protocolVersion": "v2",
                "storageUri": "s3://models/iris",
                "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "2Gi", "cpu": "1"}},
            },
        }
    },
}
FACTS = Facts(model_bytes=2**29, p99_s=0.1, peak_per_s=200, cold_start_s=30, slo_s=0.2)
PREDICTOR = ("spec", "predictor")
MODEL = (*PREDICTOR, "model")
CONTAINER = ("spec", "containers", 0)
CASES: list[tuple[str, str, tuple[Any, ...], Any]] = [
    ("gpu.requests-equal-limits", "service", (*MODEL, "resources", "requests"), {"nvidia.com/gpu": "2"}),
    ("gpu.requests-equal-limits", "service", (*MODEL, "resources"), {"requests": {"nvidia.com/gpu": "1"}}),
    ("gpu.whole", "service", (*MODEL, "resources", "limits", "nvidia.com/gpu"), "0.5"),
    ("memory.limit", "runtime", (*CONTAINER, "resources", "limits"), None),
    ("memory.twice-the-model", "service", (*MODEL, "resources", "limits", "memory"), "1000Mi"),
    ("resources.requests", "runtime", (*CONTAINER, "resources"), {"limits": {"memory": "2Gi"}}),
    ("resources.order", "service", (*MODEL, "resources", "requests"), {"memory": "3Gi"}),
    ("probe.readiness", "runtime", (*CONTAINER, "readinessProbe"), None),
    ("probe.readiness-of-model", "runtime", (*CONTAINER, "readinessProbe", "httpGet", "path"), "/v2/health/ready"),
    (
        "probe.readiness-of-model",
        "runtime",
        (*CONTAINER, "readinessProbe", "httpGet", "path"),
        "/v2/models/other/ready",
    ),
    ("probe.liveness", "runtime", (*CONTAINER, "livenessProbe"), None),
    (
        "probe.liveness-is-not-readiness",
        "runtime",
        (*CONTAINER, "livenessProbe", "httpGet", "path"),
        "/v2/health/ready",
    ),
    ("probe.liveness-outlasts-loading", "runtime", (*CONTAINER, "livenessProbe", "initialDelaySeconds"), -5),
    ("port.one", "service", (*MODEL, "ports"), [{"containerPort": 9000, "name": "h2c"}]),
    ("port.probes-of-h2c", "runtime", (*CONTAINER, "ports"), [{"containerPort": 8081, "name": "h2c"}]),
    ("scale.max", "service", (*PREDICTOR, "maxReplicas"), 0),
    ("scale.order", "service", (*PREDICTOR, "minReplicas"), 11),
    ("scale.zero-against-slo", "service", (*PREDICTOR, "minReplicas"), 0),
    ("scale.one-pod", "service", (*PREDICTOR, "minReplicas"), 1),
    ("scale.concurrency-against-target", "service", (*PREDICTOR, "scaleTarget"), 9),
    ("scale.peak", "service", (*PREDICTOR, "maxReplicas"), 7),
    ("timeout.against-latency", "service", (*PREDICTOR, "timeout"), 0.1),
    ("timeout.against-cold-start", "service", PREDICTOR, {"minReplicas": 0, "timeout": 20, "maxReplicas": 90}),
    ("canary.percent", "service", (*PREDICTOR, "canaryTrafficPercent"), 120),
    ("canary.percent", "service", ("spec", "canary"), [{"trafficPercent": 60}, {"trafficPercent": 50}]),
    ("canary.left-at-100", "service", (*PREDICTOR, "canaryTrafficPercent"), 100),
    ("canary.mode", "service", ("spec", "canary"), [{"trafficPercent": 10}]),
    ("image.pinned", "runtime", (*CONTAINER, "image"), "example/server"),
    ("image.pinned", "runtime", (*CONTAINER, "image"), "registry.example:5000/server:latest"),
    ("storage.uri", "service", (*MODEL, "storageUri"), "models/iris"),
    ("storage.missing", "service", (*MODEL, "storageUri"), None),
    ("storage.file", "service", (*MODEL, "storageUri"), "file:///models/iris"),
    ("field.unknown", "service", (*PREDICTOR, "minReplica"), 1),
    ("field.unknown", "service", (*PREDICTOR, "mlflow"), {"storageUri": "s3://models/iris"}),  # a format, not a field
    ("field.deprecated", "service", ("apiVersion",), "serving.kserve.io/v1alpha2"),
    ("field.deprecated", "service", ("metadata", "annotations", "serving.kserve.io/deploymentMode"), "Serverless"),
    ("field.deprecated", "service", (*PREDICTOR, "sklearn"), {"storageUri": "s3://m/x"}),
    ("protocol.of-runtime", "service", (*MODEL, "protocolVersion"), "v1"),
    ("secret.in-the-open", "service", (*MODEL, "env"), [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]),
]


def changed(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(document)
    holder: Any = result
    for key in path[:-1]:
        holder = holder[key]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return result


def rules_of(service: dict[str, Any], runtime: dict[str, Any], facts: Facts = FACTS) -> set[str]:
    (subject,) = subjects_of([("a.yaml", runtime), ("a.yaml", service)], facts)
    return {finding.rule for finding in lint(subject)}


def test_a_sound_service_is_left_in_peace() -> None:
    assert rules_of(SERVICE, RUNTIME) == set()


@pytest.mark.parametrize(("name", "what", "path", "value"), CASES)
def test_a_rule_notices(name: str, what: str, path: tuple[Any, ...], value: Any) -> None:
    service = changed(SERVICE, path, value) if what == "service" else SERVICE
    runtime = changed(RUNTIME, path, value) if what == "runtime" else RUNTIME
    if name == "memory.limit":
        service = changed(service, (*MODEL, "resources"), {"requests": {"memory": "1Gi"}})
    if name == "resources.requests":
        service = changed(service, (*MODEL, "resources"), None)
    assert name in rules_of(service, runtime)


def test_every_rule_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(RULES)
    assert all(len(item.reason) > 30 for item in RULES.values())


def test_what_is_not_known_is_not_judged() -> None:
    alone = subjects_of([("a.yaml", SERVICE)], Facts())[0]
    assert not alone.runtime_known
    assert not any(finding.rule.startswith(("probe", "memory.limit")) for finding in lint(alone))


def test_standard_mode_has_its_own_canary() -> None:
    service = changed(SERVICE, ("metadata", "annotations", "serving.kserve.io/deploymentMode"), "Standard")
    assert "canary.mode" in rules_of(changed(service, (*PREDICTOR, "canaryTrafficPercent"), 10), RUNTIME)
    assert "canary.mode" not in rules_of(changed(service, ("spec", "canary"), [{"trafficPercent": 10}]), RUNTIME)


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("2Gi", 2**31), ("1.5G", 1.5e9), ("3", 3), ("2GB", 2e9), ("x", None), ("", None)]
)
def test_quantities(text: str, value: float | None) -> None:
    assert parse_quantity(text) == value


def test_the_command(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump_all([RUNTIME, SERVICE]))
    bad.write_text(yaml.safe_dump_all([RUNTIME, changed(SERVICE, (*PREDICTOR, "minReplica"), 3)]))
    passed = servecert("lint", str(good))
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "1 services" in passed.stdout
    junit = tmp_path / "junit.xml"
    failed = servecert("lint", str(bad), "--json", "-", "--junit", str(junit))
    assert failed.returncode == 1
    (finding,) = json.loads(failed.stdout)["findings"]
    assert finding["rule"] == "field.unknown"
    assert finding["fix"] == "did you mean minReplicas?"
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("failures"), suite.get("tests")) == ("1", str(len(RULES)))
    model = tmp_path / "model.bin"
    model.write_bytes(b"x" * 3000)
    stored = changed(SERVICE, (*MODEL, "storageUri"), f"file://{model}")
    small = changed(stored, (*MODEL, "resources", "limits", "memory"), "5k")
    bad.write_text(yaml.safe_dump_all([RUNTIME, small]))
    looked = servecert("lint", str(bad), "--check-storage")
    assert "[memory.twice-the-model]" in looked.stdout, "the size is looked at"
    bad.write_text(yaml.safe_dump(changed(SERVICE, (*MODEL, "storageUri"), f"file://{tmp_path}/none")))
    assert "[storage.reachable]" in servecert("lint", str(bad), "--check-storage").stdout


def a_run(directory: Path, *records: Record) -> Path:
    store = RunStore(directory, "r", seed=1)
    store.info["steps"] = [{"name": "search", "suite": "capacity", "service": "svc", "state": "done", "seconds": 1.0}]
    for record in records:
        store.add(record)
    store.finish(0)
    store.close()
    return directory


def test_what_a_run_measured(tmp_path: Path) -> None:
    """Its worst stage, and its cold starts by the name that the suite writes them under; trials of a search are meant
    to fail beyond what the service can take."""
    cold = Measurement("cold-start.first_byte.p50", 12.0, "s", 5, "svc", "cold")
    beyond = load_result(errors=500, step="search-3", latency_s={"p99": math.inf}, offered_rate_per_s=900.0)
    run = a_run(
        tmp_path / "fine",
        load_result(step="one", latency_s={"p99": 0.2}),
        load_result(step="two", latency_s={"p99": 0.1}),
        beyond,
        cold,
    )
    assert measured(run) == Facts(p99_s=0.2, peak_per_s=100.0, cold_start_s=12.0)
    run = a_run(tmp_path / "ready", Measurement("ready", 7.0, "s", 1, "svc"))
    assert measured(run) == Facts(cold_start_s=7.0)


def test_a_run_whose_worst_latency_is_no_number_is_refused(tmp_path: Path) -> None:
    failing = load_result(errors=20, step="two", latency_s={"p99": math.inf})
    run = a_run(tmp_path / "failing", load_result(step="one", latency_s={"p99": 0.2}), failing)
    with pytest.raises(UsageError, match=r"stage two has no 99th percentile: 20 of its 1000 requests failed"):
        measured(run)
    never = Measurement("cold-start.first_byte.p50", math.inf, "s", 5, "svc", "cold")
    with pytest.raises(UsageError, match="step cold: half of its cold starts had no answer"):
        measured(a_run(tmp_path / "never", never))


def test_a_folder_and_files_without_a_service(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(RUNTIME))
    with pytest.raises(UsageError, match="expected an InferenceService in the files, found ServingRuntime"):
        subjects_of(read_manifests([tmp_path]), Facts())
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        read_manifests([tmp_path])
    (tmp_path / "b.yaml").write_text("just text")
    with pytest.raises(UsageError, match="expected Kubernetes objects"):
        read_manifests([tmp_path])
