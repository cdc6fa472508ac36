"""``results.json``: the whole run for machines."""

from __future__ import annotations

from typing import Any

from harness.results.records import CheckResult, LoadResult, to_json
from harness.results.runstore import Run
from harness.results.verdict import Verdict
from reports.tables import LEVELS, scorecard

VERSION = 1
"""Rises when a field is taken away or means something else; new fields leave it as it is."""


def check_json(check: CheckResult) -> dict[str, Any]:
    return {**to_json(check), "group": check.group, "fails_run": check.fails_run}


def load_json(load: LoadResult) -> dict[str, Any]:
    return to_json(load)


def capacity_json(run: Run) -> dict[str, Any]:
    """``capacity_per_s`` is None where no rate met the objectives, ``failed_at_per_s`` where none above it failed."""
    values = {item.name: item.value for item in run.measurements}
    return {
        "capacity_per_s": values.get("capacity"),
        "failed_at_per_s": values.get("capacity.failed_at"),
        "converged": bool(values.get("capacity.converged", 0.0)),
        "knee_per_s": values.get("capacity.knee"),
        "trials": [load_json(load) for load in run.loads],
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.word,
        "passed": verdict.passed,
        "exit_code": verdict.exit_code,
        "reasons": list(verdict.reasons),
    }


def results(run: Run, verdict: Verdict) -> dict[str, Any]:
    """As ``servecert schema results`` describes it."""
    return {
        "schema_version": VERSION,
        **verdict_json(verdict),
        "run": run.info,
        "checks": [check_json(check) for check in run.checks],
        "parity": [to_json(item) for item in run.parity],
        "loads": [load_json(item) for item in run.loads],
        "scorecard": [
            {
                "service": row.service,
                "runtime": row.runtime,
                "profiles": {
                    name: {
                        level: {"passed": score.passed.get(level, 0), "applicable": score.applicable.get(level, 0)}
                        for level in LEVELS
                    }
                    for name, score in row.scores.items()
                },
            }
            for row in scorecard(run)
        ],
        "comparisons": [to_json(item) for item in run.comparisons],
        "measurements": [to_json(item) for item in run.measurements],
    }
