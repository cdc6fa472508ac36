"""How variants differ in what they answer: numbers, and requirements of the protocol that they meet."""

from __future__ import annotations

from collections.abc import Mapping

from harness.base.errors import MeasurementError, ProtocolError
from harness.results.records import CheckResult, Level, ParityResult
from harness.target.numeric import EXACT, TOLERANCES, distance
from scenarios.suites.compare.contenders import Contender, Taken
from scenarios.suites.parity.suite import outputs_beside
from scenarios.suites.shared.judging import Judge
from scenarios.suites.shared.stage.requests import Encoded

MOST_NAMED = 12


def _same_inputs(one: Encoded, other: Encoded) -> bool:
    if [(item.name, item.datatype) for item in one.inputs] != [(item.name, item.datatype) for item in other.inputs]:
        return False
    try:
        return all(distance(a, b, EXACT).within for a, b in zip(one.inputs, other.inputs, strict=True))
    except ValueError:
        return False


def parity_beside(
    judge: Judge, baseline: Contender, base: Taken, contender: Contender, found: Taken, level: Level, step: str
) -> list[ParityResult | CheckResult]:
    """What a variant answered alone beside what the baseline answered to the same request."""
    name = f"{contender.name}.parity"
    requirement = f"{contender.name} gives the numbers that {baseline.name} gives."
    same_number = len(base.encoded) == len(found.encoded)
    pairs = list(zip(base.encoded, found.encoded, strict=False))
    if not same_number or not all(_same_inputs(one, other) for one, other in pairs):
        reason = "they take different inputs, so there is nothing to compare"
        return [_not_compared(judge, name, requirement, reason, level)]
    if not all(one.expected and other.expected for one, other in pairs):
        return [_not_compared(judge, name, requirement, "the model does not repeat itself", level)]
    answers = [(one.alone.outputs, other.alone) for one, other in pairs if one.alone and other.alone]
    if len(answers) < len(pairs):
        return [_not_compared(judge, name, requirement, "a request got no answer before the load", level)]
    try:
        results = outputs_beside(contender.described, f"beside {baseline.name}", answers, TOLERANCES, step)
    except MeasurementError as error:
        return [_not_compared(judge, name, requirement, str(error), level)]
    except (ProtocolError, ValueError) as error:
        return [judge.check(name, requirement, False, level=level, expected="the same outputs", observed=str(error))]
    wrong = [item for item in results if not item.within]
    elements = sum(item.elements for item in results)
    observed = f"{elements} elements within tolerance"
    if wrong:
        worst = max(wrong, key=lambda item: item.rank)
        observed = (
            f"{worst.output}{list(worst.worst_index)}: {worst.worst_observed} beside {worst.worst_expected};"
            f" {len(wrong)} of {len(results)} outputs differ"
        )
    check = judge.check(
        name, requirement, not wrong, level=level, expected="within the tolerances of parity", observed=observed
    )
    return [*results, check]


def conformance_beside(
    judge: Judge,
    baseline: Contender,
    base: Mapping[str, str],
    contender: Contender,
    found: Mapping[str, str],
    level: Level,
) -> CheckResult:
    """Which checks come out differently."""
    name = f"{contender.name}.conformance"
    requirement = f"{contender.name} meets every requirement that {baseline.name} meets."
    if not base or not found:
        return _not_compared(judge, name, requirement, "no check was carried out on one of them", level)
    now = {check: found.get(check, "not run") for check in base}
    failed = ("failed", "error", "undecided")
    worse = [check for check, outcome in base.items() if outcome == "passed" and now[check] in failed]
    lost = [check for check, outcome in base.items() if outcome == "passed" and now[check] in ("skipped", "not run")]
    better = [check for check, outcome in base.items() if outcome in failed and now[check] == "passed"]
    parts = [
        f"{len(names)} {word} ({', '.join(names[:MOST_NAMED])}{', …' if len(names) > MOST_NAMED else ''})"
        for word, names in (("worse", worse), ("met before, and not checked now", lost), ("better", better))
        if names
    ]
    return judge.check(
        name,
        requirement,
        not worse and not lost,
        level=level,
        expected="none worse, and all of them checked",
        observed="; ".join(parts) or f"{len(base)} checks, the same outcomes",
    )


def _not_compared(judge: Judge, name: str, requirement: str, reason: str, level: Level) -> CheckResult:
    """What was asked for and could not be compared is an error; a report says why there is nothing."""
    if level is Level.MUST:
        return judge.unjudged(name, requirement, reason)
    return judge.skipped(name, requirement, reason, level=level)
