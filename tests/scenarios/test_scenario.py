from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from harness.base.errors import ScenarioError, UsageError
from scenarios.file.reading import CATALOG, find_scenario, json_schema, load_scenario, resolved
from scenarios.suites.conformance.model import ConformanceStep
from scenarios.suites.load.model import LoadStep

GOOD = """\
name: good
services:
  iris: {runtime: mlserver, model: iris, predictor: {minReplicas: 2}}
steps:
  - {suite: conformance, service: iris}
  - suite: load
    service: iris
    rate: 600/m
    duration: 1m30s
    slo: [p99 < 50ms]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str) -> list[tuple[int, str]]:
    with pytest.raises(ScenarioError) as error:
        load_scenario(write(tmp_path, text))
    assert error.value.exit_code == 2
    return error.value.problems


def test_good_scenario_is_read_with_units(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, GOOD))
    step = scenario.steps[1]
    assert isinstance(step, LoadStep)
    assert (step.rate, step.duration, step.warmup) == (10, 90, 1)
    assert scenario.step_name(1) == "2-load-iris"
    assert scenario.services["iris"].predictor == {"minReplicas": 2}


def test_resolved_scenario_is_the_same_scenario(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, GOOD))
    again = load_scenario(write(tmp_path, resolved(scenario)))
    assert again == scenario


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("model: iris,", "model: iris, colour: red,", 3, ["colour", "unknown field", "runtime, model"]),
        (
            "suite: conformance",
            "suite: conformity",
            5,
            ["conformity", "expected one of autoscaling", "load, parity"],
        ),
        ("{suite: conformance, service: iris}", "{service: iris}", 5, ["suite"]),
        ("duration: 1m30s", "duration: 90", 9, ["duration with a unit", "90"]),
        ("rate: 600/m", "rate: fast", 8, ["expected a rate", "fast"]),
        ("    rate: 600/m\n", "", 6, ["rate", "concurrency"]),
        ("slo: [p99 < 50ms]", "slo: [p98 < 50ms]", 10, ["p98", "p99"]),
        ("service: iris}", "service: irises}", 5, ["irises", "iris"]),
        ("runtime: mlserver", "runtime: mlserver@0.1", 3, ["0.1", "1.7.1"]),
        ("runtime: mlserver", "runtime: tritium", 3, ["tritium", "mlserver"]),
        ("model: iris", "model: cnn", 3, ["torchscript", "kserve"]),
        ("name: good", "name: Good Name", 1, ["name"]),
        ("name: good\n", "", 1, ["name", "required"]),
        ("suite: conformance, service: iris", "suite: conformance, service: iris, profiles: [soap]", 5, ["soap"]),
        ("name: good", "name: good\nname: bad", 2, ["twice"]),
        ("steps:", "steps: [", 5, ["not YAML"]),
    ],
)
def test_mistakes_are_reported_with_line_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, line: int, words: list[str]
) -> None:
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    text = " ".join(message for _, message in found)
    assert line in [number for number, _ in found], found
    for word in words:
        assert word in text, found


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("runtime: mlserver", "runtime: mlserver, x: 1").replace("rate: 600/m", "rate: fast")
    assert len(problems(tmp_path, text)) == 2


def test_settings_change_fields_by_path(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    scenario = load_scenario(path, ["steps.1.rate=50/s", "services.iris.runtime=mlserver@1.7.1", "seed=7"])
    step = scenario.steps[1]
    assert isinstance(step, LoadStep)
    assert (step.rate, scenario.seed) == (50, 7)
    for bad in ("steps.9.rate=5/s", "seed", "name.first=x"):
        with pytest.raises(UsageError, match="--set"):
            load_scenario(path, [bad])


def test_manifest_replaces_runtime_and_model(tmp_path: Path) -> None:
    text = (
        "name: m\nservices:\n  a: {manifest: {kind: InferenceService, spec: {}}}\n"
        "steps: [{suite: conformance, service: a}]\n"
    )
    assert load_scenario(write(tmp_path, text)).services["a"].manifest
    assert "golden" in str(problems(tmp_path, text.replace("conformance", "parity")))
    assert "Deployment" in str(problems(tmp_path, text.replace("InferenceService", "Deployment")))


def test_unknown_scenario_lists_the_catalog() -> None:
    with pytest.raises(UsageError, match="quickstart"):
        find_scenario("quikstart")


def test_fuzz_of_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="expected more than 0s"):
        ConformanceStep(suite="conformance", service="s", fuzz="0s")  # type: ignore[arg-type]


def test_published_schema_is_current_and_accepts_the_catalog() -> None:
    published = json.loads((CATALOG.parent / "scenario.schema.json").read_text())
    assert published == json_schema(), "run: servecert schema > scenarios/scenario.schema.json"
    validator = jsonschema.Draft202012Validator(published)
    validator.check_schema(published)
    catalog = sorted(CATALOG.glob("*.yaml"))
    assert catalog
    for path in catalog:
        validator.validate(yaml.safe_load(path.read_text()))
        load_scenario(path)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"name": "x", "services": {}, "steps": [], "more": 1})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("suite: canary-rollback\n    candidates: []", "at least 1 item"),
        ("suite: canary-rollback\n    candidates: [{}]", "expected a 'runtime', a 'model' or fields of a 'predictor'"),
        ("suite: canary-rollback\n    candidates: [{model: iris}]\n    percents: [50, 10]", "to rise"),
        ("suite: autoscaling\n    duration: 10s", "expected one of 'rate' and 'shape'"),
        (
            "suite: autoscaling\n    rate: 5/s\n    duration: 10s\n    workers: locust://h:1?expect=2",
            "leave 'workers' out",
        ),
        ("suite: autoscaling\n    shape: pulse 5/s to 60/s for 9s every 3s\n    duration: 10s", "do not fit"),
        ("suite: cold-start\n    budget: {reddy: 3s}", "reddy"),
        ("suite: cold-start\n    within: 0s", "more than 0s"),
        ("suite: cold-start\n    budget: {total: 0s}", "total: expected more than 0s"),
        ("suite: cold-start\n    budget: {ready: 3s, image: 0s}", "image: expected more than 0s"),
    ],
)
def test_mistakes_in_cluster_steps_are_named(tmp_path: Path, step: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        f"name: wrong\nservices:\n  m: {{runtime: mlserver, model: iris}}\nsteps:\n  - service: m\n    {step}\n"
    )
    with pytest.raises(ScenarioError) as error:
        load_scenario(path)
    assert message in str(error.value)
    assert ":4" in str(error.value) or ":5" in str(error.value) or ":6" in str(error.value) or ":7" in str(error.value)


@pytest.mark.parametrize("value", [".inf", ".nan", "-1e-3"])
@pytest.mark.parametrize("name", ["relative", "absolute"])
def test_a_tolerance_that_is_no_bound_is_refused(tmp_path: Path, name: str, value: str) -> None:
    step = f"suite: parity, service: iris, tolerances: {{FP32: {{{name}: {value}}}}}"
    assert problems(tmp_path, GOOD.replace("suite: conformance, service: iris", step, 1))
