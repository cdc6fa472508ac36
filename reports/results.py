"""``results.json``: the whole run for machines."""

from __future__ import annotations

from typing import Any

from harness.records import CheckResult, LoadResult, to_json
from harness.runstore import Run
from harness.verdict import Verdict


def check_json(check: CheckResult) -> dict[str, Any]:
    return {**to_json(check), "group": check.group, "fails_run": check.fails_run}


def load_json(load: LoadResult) -> dict[str, Any]:
    return to_json(load)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.word,
        "passed": verdict.passed,
        "exit_code": verdict.exit_code,
        "reasons": list(verdict.reasons),
    }


def results(run: Run, verdict: Verdict) -> dict[str, Any]:
    return {
        **verdict_json(verdict),
        "run": run.info,
        "checks": [check_json(check) for check in run.checks],
        "parity": [to_json(item) for item in run.parity],
        "loads": [load_json(item) for item in run.loads],
        "measurements": [to_json(item) for item in run.measurements],
    }
