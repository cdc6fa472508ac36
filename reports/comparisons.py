"""Comparisons as people read them. Pure functions of records."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.base.units import format_duration
from harness.results.records import CheckResult, Comparison
from harness.results.runstore import Run

TITLES = {
    "cpu": "CPU a request",
    "capacity": "throughput at the objectives",
    "cold_start": "cold start",
    "cost": "cost of a million requests",
}
LESS_IS_NOT_FASTER = ("cpu", "memory", "cost")
_WORDS = {"faster": "less", "slower": "more"}


@dataclass(frozen=True)
class ComparisonPart:
    """One variant beside the baseline, in one step."""

    step: str
    baseline: str
    variant: str
    rows: list[Comparison]
    checks: list[CheckResult]

    @property
    def sentence(self) -> str:
        """The answer, metric by metric."""
        groups: dict[str, list[str]] = {}
        for row in self.rows:
            groups.setdefault(word_of(row), []).append(title_of(row))
        order = ("faster", "slower", "less", "more", "equivalent", "undecided", "descriptive")
        words = [f"{verdict} in {', '.join(groups[verdict])}" for verdict in order if verdict in groups]
        return f"{self.variant} beside {self.baseline}: {'; '.join(words)}"


def comparison_parts(run: Run) -> list[ComparisonPart]:
    return parts_of(run.comparisons, [check for check in run.checks if check.suite == "compare"])


def parts_of(comparisons: list[Comparison], checks: list[CheckResult]) -> list[ComparisonPart]:
    groups: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for item in comparisons:
        groups.setdefault((item.step, item.service, item.baseline, item.variant), []).append(item)
    return [
        ComparisonPart(
            step, baseline, variant, rows,
            [check for check in checks if check.step == step and not _of_another(check, variant)],
        )
        for (step, _, baseline, variant), rows in groups.items()
    ]  # fmt: skip


def _of_another(check: CheckResult, variant: str) -> bool:
    name = check.id.removeprefix("compare.")
    return "." in name and not name.startswith(f"{variant}.")


def title_of(row: Comparison) -> str:
    return TITLES.get(row.metric, row.metric)


def value(row: Comparison, amount: float) -> str:
    if math.isinf(amount):
        return "failed"
    if row.unit == "s":
        return format_duration(amount)
    if row.unit == "bytes":
        return f"{amount / 2**20:.0f} MiB"
    if row.metric == "cost":
        return f"{amount:.4g}"
    return f"{amount:.1f}{row.unit}"


def ratio_text(row: Comparison) -> str:
    """A quotient with an infinite side is no number to print."""
    if not math.isfinite(row.ratio):
        return "–"
    if not math.isfinite(row.low) or not math.isfinite(row.high):
        return f"{row.ratio:.3f}"
    return f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})"


def word_of(row: Comparison) -> str:
    """The verdict as one says it of this metric."""
    return _WORDS.get(row.verdict, row.verdict) if row.metric in LESS_IS_NOT_FASTER else row.verdict


def verdict_text(row: Comparison) -> str:
    return f"{word_of(row)}: about {row.needed} {row.replicates} would decide it" if row.needed else word_of(row)


def how(rows: list[Comparison]) -> str:
    """What the numbers are, in one sentence."""
    first = rows[0]
    if first.replicates == "one run":
        return (
            "Ratios of the variant over the baseline, one run a side: the figures describe these runs. Intervals are of"
            " what varied within them; what varies between runs is not known, so that there is no verdict."
        )
    taken = (
        f"{first.blocks} blocks in turns, so that drift is not in them"
        if first.paired
        else f"{first.blocks} runs a side, one value a run: whatever else changed between the two sides, such as the"
        " machine, is in the ratio too"
    )
    return (
        f"Ratios of the variant over the baseline, {taken}; intervals of {first.confidence:.1%} each,"
        f" so that all of them hold together; equivalent means within {first.margin:.3g} of 1."
    )


HEAD = ["metric", "baseline", "variant", "ratio", "verdict"]


def cells(row: Comparison) -> list[str]:
    return [
        title_of(row),
        value(row, row.baseline_value),
        value(row, row.variant_value),
        ratio_text(row),
        verdict_text(row),
    ]
