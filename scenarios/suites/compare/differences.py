"""How variants differ in what they answer: numbers, and requirements of the protocol that they meet."""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import ProtocolError
from harness.numeric import EXACT, TOLERANCES, distance
from harness.records import CheckResult, Level, ParityResult
from scenarios.suites.compare.contenders import Contender, Taken
from scenarios.suites.judging import Judge
from scenarios.suites.load.requests import Encoded
from scenarios.suites.parity import outputs_beside

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
    pairs = list(zip(base.encoded, found.encoded, strict=False))
    if not all(_same_inputs(one, other) for one, other in pairs):
        reason = "they take different inputs, so there is nothing to compare"
        return [judge.skipped(name, requirement, reason, level=level)]
    if not all(one.expected and other.expected for one, other in pairs):
        return [judge.skipped(name, requirement, "the model does not repeat itself", level=level)]
    answers = [(one.alone.outputs, other.alone) for one, other in pairs if one.alone and other.alone]
    try:
        results = outputs_beside(contender.described, f"beside {baseline.name}", answers, TOLERANCES, step)
    except (ProtocolError, ValueError) as error:
        return [judge.check(name, requirement, False, level=level, expected="the same outputs", observed=str(error))]
    wrong = [item for item in results if not item.within]
    elements = sum(item.elements for item in results)
    observed = f"{elements} elements within tolerance"
    if wrong:
        worst = max(wrong, key=lambda item: item.max_rel_error)
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
    shared = [name for name in base if name in found]
    worse = [name for name in shared if base[name] == "passed" and found[name] in ("failed", "error")]
    better = [name for name in shared if base[name] in ("failed", "error") and found[name] == "passed"]
    parts = [
        f"{len(names)} {word} ({', '.join(names[:MOST_NAMED])}{', …' if len(names) > MOST_NAMED else ''})"
        for word, names in (("worse", worse), ("better", better))
        if names
    ]
    return judge.check(
        f"{contender.name}.conformance",
        f"{contender.name} meets every requirement that {baseline.name} meets.",
        not worse,
        level=level,
        expected="none worse",
        observed="; ".join(parts) or f"{len(shared)} checks, the same outcomes",
    )
