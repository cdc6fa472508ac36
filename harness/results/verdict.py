"""The verdict on a run: a pure function of its records, so that a copied run directory gives the same one."""

from __future__ import annotations

from dataclasses import dataclass

from harness.base.errors import EXIT_BRING_UP, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PASSED
from harness.results.records import CheckResult, Outcome
from harness.results.runstore import Run

WORDS = {
    EXIT_PASSED: "passed",
    EXIT_FAILED: "failed",
    EXIT_BRING_UP: "could not be brought up",
    EXIT_INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class Verdict:
    exit_code: int
    reasons: tuple[str, ...]
    """Most important first; empty when the run passed."""

    @property
    def passed(self) -> bool:
        return self.exit_code == EXIT_PASSED

    @property
    def word(self) -> str:
        return WORDS.get(self.exit_code, "failed")


@dataclass(frozen=True)
class Tally:
    """How the checks of some group came out. ``failed`` counts those that decide; ``known`` are listed deviations."""

    passed: int = 0
    failed: int = 0
    known: int = 0
    advisory: int = 0
    """SHOULD and MAY that failed: reported, never deciding."""
    skipped: int = 0

    @property
    def total(self) -> int:
        return self.passed + self.failed + self.known + self.advisory + self.skipped


def tally(checks: list[CheckResult]) -> Tally:
    passed = failed = known = advisory = skipped = 0
    for check in checks:
        if check.fails_run:
            failed += 1
        elif check.known:
            known += 1
        elif check.outcome is Outcome.SKIPPED:
            skipped += 1
        elif check.outcome in (Outcome.FAILED, Outcome.UNDECIDED):
            advisory += 1
        else:
            passed += 1
    return Tally(passed, failed, known, advisory, skipped)


def describe(check: CheckResult) -> str:
    """A failed check in one line."""
    where = f"{check.service}: " if check.service else ""
    if check.gone:
        return (
            f"{where}{check.id} passed, and is listed as a known deviation: update the list ({check.deviation_reason})"
        )
    if check.outcome is Outcome.ERROR:
        return f"{where}{check.id} could not be judged: {check.reason}"
    if check.outcome is Outcome.UNDECIDED:
        return f"{where}{check.id} is undecided: expected {check.expected}, observed {check.observed}; {check.reason}"
    return f"{where}{check.id}: expected {check.expected}, observed {check.observed}"


def judge(run: Run) -> Verdict:
    """Missing data never pass: a step without a single judged check is a failure, and so is a run without checks."""
    reasons: list[str] = []
    if run.interrupted:
        code = EXIT_INTERRUPTED
        reasons.append("the run was interrupted; what is here was measured before that")
    else:
        code = EXIT_PASSED
    errors = run.info.get("errors", [])
    reasons += [str(error["message"]) for error in errors]
    failed = [check for check in run.checks if check.fails_run]
    reasons += [describe(check) for check in failed]
    if code != EXIT_INTERRUPTED:
        for step in run.info.get("steps", []):
            mine = [check for check in run.checks if check.step == step["name"]]
            if step.get("state") != "done":
                reasons.append(f"step {step['name']} was not carried out")
                code = max(code, EXIT_FAILED)
            elif not any(check.outcome is not Outcome.SKIPPED for check in mine):
                reasons.append(f"step {step['name']} judged nothing: every check was skipped")
                code = max(code, EXIT_FAILED)
        if not run.checks:
            reasons.append("nothing was checked")
            code = max(code, EXIT_FAILED)
        if failed:
            code = max(code, EXIT_FAILED)
        for error in errors:
            code = max(code, int(error.get("exit_code", EXIT_FAILED)))
    return Verdict(code, tuple(dict.fromkeys(reasons)))
