"""What the suites that change a cluster share: how a check is made of what they saw."""

from __future__ import annotations

from dataclasses import dataclass

from harness.results.records import CheckResult, Level, Measurement, Outcome
from harness.target.endpoint import Endpoint


@dataclass(frozen=True)
class Judge:
    """Makes the records of one step."""

    suite: str
    endpoint: Endpoint
    step: str

    def check(
        self,
        name: str,
        requirement: str,
        passed: bool,
        *,
        source: str = "scenario",
        level: Level = Level.MUST,
        expected: str = "",
        observed: str = "",
    ) -> CheckResult:
        return self._result(
            name,
            requirement,
            Outcome.PASSED if passed else Outcome.FAILED,
            source=source,
            level=level,
            expected=expected,
            observed=observed,
        )

    def skipped(self, name: str, requirement: str, reason: str, *, level: Level = Level.MUST) -> CheckResult:
        return self._result(name, requirement, Outcome.SKIPPED, source="scenario", level=level, reason=reason)

    def unjudged(self, name: str, requirement: str, reason: str) -> CheckResult:
        """Nothing was measured that could decide it: an error, never a pass."""
        return self._result(name, requirement, Outcome.ERROR, source="scenario", level=Level.MUST, reason=reason)

    def undecided(
        self, name: str, requirement: str, *, expected: str, observed: str, reason: str, level: Level = Level.MUST
    ) -> CheckResult:
        """It was measured, and not often enough to say; ``reason`` says what would decide it. Never a pass."""
        return self._result(
            name,
            requirement,
            Outcome.UNDECIDED,
            source="scenario",
            level=level,
            expected=expected,
            observed=observed,
            reason=reason,
        )

    def _result(
        self,
        name: str,
        requirement: str,
        outcome: Outcome,
        *,
        level: Level,
        source: str,
        expected: str = "",
        observed: str = "",
        reason: str = "",
    ) -> CheckResult:
        check_id = f"{self.suite}.{name}"
        return CheckResult(
            id=check_id,
            suite=self.suite,
            level=level,
            outcome=outcome,
            service=self.endpoint.service,
            runtime=self.endpoint.runtime,
            requirement=requirement,
            deviation=self.endpoint.deviations.get(check_id),
            step=self.step,
            source=source,
            expected=expected,
            observed=observed,
            reason=reason,
        )

    def measurement(self, name: str, value: float, unit: str, n: int) -> Measurement:
        return Measurement(f"{self.suite}.{name}", value, unit, n, self.endpoint.service, self.step)
