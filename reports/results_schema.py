"""The JSON schema of ``results.json``, from the records that it holds.

``schema_version`` rises when a field is taken away or means something else; new fields leave it as it is.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.results.records import CheckResult, Comparison, LoadResult, Measurement, ParityResult

_NOT_FINITE = ["nan", "inf", "-inf"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class StepInfo(_Model):
    """A step of the scenario."""

    name: str
    suite: str
    service: str
    state: Literal["planned", "running", "done", "broken", "not run"]
    """``broken``: it began and could not be carried out."""
    seconds: float | None = None


class ServiceInfo(_Model):
    """A service that was measured."""

    runtime: str
    model: str
    url: str = ""
    ready_s: float | None = None
    """From the request to deploy it until it was ready."""


class RunError(_Model):
    """What kept the run, or one service of it, from being measured."""

    kind: str
    message: str
    exit_code: int
    service: str
    log: str


class GpuInfo(_Model):
    """A GPU of the machine that servecert ran on."""

    name: str
    memory_bytes: int
    driver: str


class RunInfo(BaseModel):
    """What was run, when, where, and by which versions."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    format: int
    """Of the run directory."""
    name: str
    command: list[str]
    started: str
    """UTC, ISO 8601."""
    finished: str | None
    """null of a run that was killed."""
    exit_code: int | None
    seed: int
    host: dict[str, str | int | list[GpuInfo]]
    versions: dict[str, str]
    services: dict[str, ServiceInfo]
    errors: list[RunError]
    steps: list[StepInfo]


class Score(_Model):
    passed: int
    applicable: int


class ScoreCard(_Model):
    """How much of each conformance profile a service has, by profile and level (must, should, may)."""

    service: str
    runtime: str
    profiles: dict[str, dict[str, Score]]


class Results(_Model):
    """Everything that a run of servecert found, samples and events apart. Seconds unless a name says otherwise."""

    schema_version: Literal[1]
    verdict: str
    passed: bool
    exit_code: int
    """0 passed, 1 failed, 2 usage, 3 something could not be brought up or measured, 130 interrupted."""
    reasons: list[str]
    """Why it did not pass."""
    run: RunInfo
    checks: list[CheckResult]
    parity: list[ParityResult]
    loads: list[LoadResult]
    scorecard: list[ScoreCard]
    comparisons: list[Comparison]
    measurements: list[Measurement]


class _Derived(_Model):
    """What checks carry besides their own fields."""

    group: str = Field(description="the first two parts of the id")
    fails_run: bool = Field(description="whether this check alone makes the run fail")


def results_schema() -> dict[str, Any]:
    schema = Results.model_json_schema(mode="serialization")
    derived = _Derived.model_json_schema(mode="serialization")
    check = schema["$defs"]["CheckResult"]
    check["properties"] |= derived["properties"]
    for name in ("CheckResult", "ParityResult", "LoadResult", "Comparison", "Measurement"):
        schema["$defs"][name] |= {
            "additionalProperties": False,
            "required": sorted(schema["$defs"][name]["properties"]),
        }
    numbers: dict[str, Any] = _with_not_finite(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **numbers}


def _with_not_finite(node: Any) -> Any:
    """JSON has no infinity: such numbers stand as text."""
    if isinstance(node, dict):
        if node.get("type") == "number":
            rest = {key: value for key, value in node.items() if key != "type"}
            return {**rest, "anyOf": [{"type": "number"}, {"enum": _NOT_FINITE}]}
        return {key: _with_not_finite(value) for key, value in node.items()}
    return [_with_not_finite(item) for item in node] if isinstance(node, list) else node
