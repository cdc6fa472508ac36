from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.results.records import CheckResult, Level, Outcome
from harness.results.runstore import Run
from harness.results.verdict import judge, tally
from tests.records import check


def run(*checks: CheckResult, exit_code: int | None = 0, **info: Any) -> Run:
    steps = [{"name": "1", "suite": "conformance", "service": "svc", "state": "done"}]
    return Run(Path("/run"), {"exit_code": exit_code, "steps": steps, "errors": [], **info}, list(checks))


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (check(), 0),
        (check(outcome=Outcome.FAILED), 1),
        (check(outcome=Outcome.FAILED, level=Level.SHOULD), 0),
        (check(outcome=Outcome.FAILED, deviation="known"), 0),
        (check(outcome=Outcome.PASSED, deviation="known"), 1),
        (check(outcome=Outcome.ERROR, level=Level.MAY), 1),
    ],
)
def test_one_check_decides(found: CheckResult, code: int) -> None:
    assert judge(run(found, check("other"))).exit_code == code


def test_nothing_measured_is_never_a_pass() -> None:
    assert judge(run()).exit_code == 1
    assert judge(run(check(outcome=Outcome.SKIPPED))).exit_code == 1
    planned = [{"name": "2", "suite": "load", "service": "svc", "state": "not run"}]
    verdict = judge(run(check(), steps=planned))
    assert verdict.exit_code == 1
    assert "not carried out" in verdict.reasons[0]


def test_bring_up_errors_and_interruptions_have_their_own_codes() -> None:
    error = {"message": "no cluster", "exit_code": 3}
    assert judge(run(check(), errors=[error])).exit_code == 3
    interrupted = judge(run(check(outcome=Outcome.FAILED), exit_code=None))
    assert interrupted.exit_code == 130
    assert interrupted.word == "interrupted"


def test_deviation_that_went_away_is_news() -> None:
    verdict = judge(run(check(deviation="an old reason")))
    assert "update the list" in verdict.reasons[0]
    assert "an old reason" in verdict.reasons[0]


def test_tally_tells_known_from_failed_from_advisory() -> None:
    counts = tally(
        [
            check(),
            check(outcome=Outcome.FAILED),
            check(outcome=Outcome.FAILED, deviation="x"),
            check(outcome=Outcome.FAILED, level=Level.MAY),
            check(outcome=Outcome.SKIPPED),
        ]
    )
    assert (counts.passed, counts.failed, counts.known, counts.advisory, counts.skipped) == (1, 1, 1, 1, 1)
    assert counts.total == 5
