"""Runs one suite on a service of an embedded cluster of its own, sound or broken, and says what the suite found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.results.records import Record
from harness.results.runstore import Run, RunStore, read_run
from harness.results.verdict import judge
from scenarios.engine.engine import Engine
from scenarios.file.scenario import Scenario

WINDOW = {"autoscaling.knative.dev/window": "6s"}
WORK = ["--work-ms", "100"]
ELASTIC: dict[str, Any] = {
    "minReplicas": 0,
    "maxReplicas": 5,
    "scaleTarget": 2,
    "model": {"args": WORK},
    "annotations": WINDOW,
}
CANDIDATE = {"predictor": {"model": {"args": ["--model-version", "2"]}}}
NEXT = {"predictor": {"model": {"args": ["--model-version", "3"]}}}

STEPS: dict[str, dict[str, Any]] = {
    "cold-start": {
        "trials": 3,
        "within": "15s",
        "zero_within": "40s",
        "warm": 10,
        "budget": {"total": "8s", "ready": "6s"},
    },
    "autoscaling": {
        "shape": "steps 4/s 40/s 40/s 4/s",
        "duration": "32s",
        "scale_out_within": "10s",
        "back_within": "15s",
        "zero_within": "20s",
    },
    "canary-rollback": {
        "rate": "200/s",
        "percents": [50],
        "resolution": 0.12,
        "guards": {"errors": 0.005, "latency_ratio": 2.5},  # several clusters share the processors
        "candidates": [CANDIDATE],
        "broken": False,
        "ready_within": "8s",
    },
    "probes": {"duration": "4s", "rate": "50/s", "busy": 8, "ready_within": "10s"},
}


class Silent:
    live = False

    def phase(self, text: str) -> None: ...

    def status(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def record(self, record: Record) -> None: ...

    def step_done(self, name: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Found:
    run: Run
    failed: set[str]
    """Ids of checks that failed or could not be judged, without their suite."""
    errors: list[str]

    @property
    def passed(self) -> bool:
        return judge(self.run).passed

    def words(self) -> str:
        lines = [
            f"{check.id}: {check.expected} / {check.observed or check.reason}"
            for check in self.run.checks
            if check.fails_run
        ]
        return "\n".join([*lines, *self.errors]) or "nothing failed"


def scenario(
    suite: str, faults: list[str] | None = None, standard: bool = False, header: str = "", **step: Any
) -> Scenario:
    """``header``: versions are told apart by it, and not by what answers say."""
    if header:
        told = ["--model-version", "2", "--version-header", header]
        step |= {"told_apart": {"header": header}, "candidates": [{"predictor": {"model": {"args": told}}}]}
    elastic = suite in ("cold-start", "autoscaling")
    plain = {
        "maxReplicas": 1,
        "annotations": WINDOW,
        **({"model": {"args": ["--version-header", header]}} if header else {}),
    }
    service = {
        "runtime": "reference",
        "model": "identity",
        "predictor": ELASTIC if elastic else plain,
        "faults": faults or [],
        "annotations": {"serving.kserve.io/deploymentMode": "Standard"} if standard else {},
        "ready_within": "10s",
    }
    data = {
        "name": "faults",
        "services": {"m": service},
        "steps": [{"suite": suite, "service": "m", **STEPS[suite], **step}],
    }
    return Scenario.model_validate(data)


async def carry_out(wanted: Scenario, directory: Path) -> Found:
    store = RunStore(directory, wanted.name, seed=wanted.seed)
    try:
        await Engine(wanted, store, Silent()).run()
        store.finish(0)
    finally:
        store.close()
    run = read_run(directory)
    failed = {check.id.partition(".")[2] for check in run.checks if check.fails_run}
    return Found(run, failed, [str(error["message"]) for error in run.info["errors"]])
