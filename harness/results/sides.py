"""Two sides of a comparison, of one run directory or several each: what they measured in common, what they failed in,
and what cannot be compared. All functions are pure, but for reading samples.

The unit is a run: what changed between runs (the machine, its neighbours, the placement of pods) is the same for all
requests of one, so that two runs are two observations and not thousands. One run a side therefore only describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.results.comparison import (
    LEAST_BLOCKS,
    QUANTILES,
    Ratio,
    Values,
    Verdict,
    between_runs,
    compared,
    corrected,
    unpaired_ratio,
)
from harness.results.failures import Failed, chance_of_failures, failures_of, total
from harness.results.history import stages_of
from harness.results.records import CheckResult, Comparison, LoadResult
from harness.results.runstore import Run
from harness.results.stats import SEARCH_RESOLUTION, percentile
from harness.results.verdict import describe

BLOCKS = 12
LEAST_REQUESTS = LEAST_BLOCKS * 10
METRICS = (*QUANTILES, "cold_start", "capacity")
UNITS = {"capacity": "/s"}
HIGHER_IS_BETTER = ("capacity",)
RESOLUTIONS = {"capacity": SEARCH_RESOLUTION}
Key = tuple[str, str]
"""Service and step."""


@dataclass(frozen=True)
class Side:
    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class ErrorShares:
    """Failed requests of a stage on both sides, all runs of a side together; ``p_value`` is that of
    ``chance_of_failures``, and ``more`` whether the variant fails more often than chance explains."""

    service: str
    step: str
    baseline: str
    variant: str
    baseline_failed: int
    baseline_requests: int
    variant_failed: int
    variant_requests: int
    p_value: float
    more: bool


@dataclass(frozen=True)
class NotCompared:
    """``run`` is where the reason lies."""

    service: str
    step: str
    run: str
    reason: str

    def __str__(self) -> str:
        what = f"{self.service}, {self.step}: " if self.step or self.service else ""
        return f"{what}{self.reason} ({self.run})"


@dataclass
class Measured:
    """Of one run: a value a metric, and the values of its blocks, by stage."""

    values: dict[Key, dict[str, float]] = field(default_factory=dict)
    blocks: dict[Key, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[Key, Failed] = field(default_factory=dict)
    offered: dict[Key, str] = field(default_factory=dict)
    problems: list[NotCompared] = field(default_factory=list)


@dataclass(frozen=True)
class Beside:
    """What is to be said of a variant beside the baseline."""

    comparisons: list[Comparison]
    errors: list[ErrorShares]
    not_compared: list[NotCompared]


def measured(run: Run) -> Measured:
    found, name = Measured(), str(run.directory)
    if run.interrupted:
        found.problems.append(NotCompared("", "", name, "the run was interrupted, or did not finish"))
    for load in stages_of(run):
        key = load.service, load.step
        found.offered[key] = load.offered
        _read_stage(run, load, found)
    for series in run.series:
        if series.kind == "cold-start":
            trials = np.sum([np.array(column) for column in series.columns.values()], axis=0)
            trials = np.where(np.isfinite(trials), trials, np.inf)  # one that never came to its end
            if trials.size:
                key = series.service, series.step
                found.blocks.setdefault(key, {})["cold_start"] = [float(trial) for trial in trials]
                found.values.setdefault(key, {})["cold_start"] = percentile(np.sort(trials), 0.5)
    for item in run.measurements:
        if item.name == "capacity":
            found.values.setdefault((item.service, item.step), {})["capacity"] = item.value
    return found


def _read_stage(run: Run, load: LoadResult, found: Measured) -> None:
    """Percentiles of the stage and of equal stretches of its time. Failed requests are infinitely late: a server that
    fails fast is not fast."""
    key, name = (load.service, load.step), str(run.directory)
    batch = run.samples(load)
    found.failed[key] = failures_of(load, batch)
    reason = ""
    if not load.valid:
        reason = f"the stage is not valid: {load.invalid_reason or 'no reason was given'}"
    elif batch is None:
        reason = "the samples of the stage are missing"
    elif len(batch) < LEAST_REQUESTS:
        reason = f"{len(batch)} requests are too few, {LEAST_REQUESTS} are needed"
    if reason or batch is None:
        found.problems.append(NotCompared(*key, name, reason))
        return
    latency = batch.latency_s
    ordered = np.sort(latency)
    found.values.setdefault(key, {}).update({name: percentile(ordered, q) for name, q in QUANTILES.items()})
    found.blocks.setdefault(key, {}).update(_blocks(batch.due_ns, latency))


def _blocks(due_ns: Any, latency: Values) -> dict[str, list[float]]:
    count = max(LEAST_BLOCKS, min(BLOCKS, latency.size // 100))
    edges = np.linspace(due_ns.min(), due_ns.max() + 1, count + 1)
    place = np.clip(np.searchsorted(edges, due_ns, side="right") - 1, 0, count - 1)
    parts = [np.sort(latency[place == block]) for block in range(count)]
    return {name: [percentile(part, q) for part in parts if part.size >= 5] for name, q in QUANTILES.items()}


def beside(
    baseline: Side, variants: Sequence[Side], metrics: Sequence[str], margin: float, confidence: float
) -> Beside:
    """All intervals and all tests of errors hold together with ``confidence``."""
    read = {side.name: [measured(run) for run in side.runs] for side in (baseline, *variants)}
    base = read[baseline.name]
    problems = [problem for side in read.values() for run in side for problem in run.problems]
    plan: list[tuple[Side, Key, list[str]]] = []
    for side in variants:
        for key in dict.fromkeys(key for run in (*base, *read[side.name]) for key in (*run.values, *run.failed)):
            common, missing = _common(key, baseline, base, side, read[side.name], metrics)
            problems += missing
            plan.append((side, key, common))
    tests = sum(len(common) for _, _, common in plan)
    failing = [(side, key) for side, key, _ in plan if _same_failures(base, read[side.name], key)]
    tests += len(failing)
    each = corrected(confidence, tests)
    comparisons: list[Comparison] = []
    errors: list[ErrorShares] = []
    for side, key, common in plan:
        if (side, key) in failing:
            a, b = _failed(base, key), _failed(read[side.name], key)
            p_value = chance_of_failures(a, b)
            (bad_a, of_a), (bad_b, of_b) = total(a), total(b)
            errors.append(
                ErrorShares(*key, baseline.name, side.name, bad_a, of_a, bad_b, of_b, p_value, p_value <= 1 - each)
            )
        for metric in common:
            comparisons.append(_compared(key, metric, baseline, base, side, read[side.name], margin, each))
    return Beside(comparisons, errors, list(dict.fromkeys(problems)))


def _failed(runs: Sequence[Measured], key: Key) -> list[Failed]:
    return [run.failed.get(key, Failed()) for run in runs]


def _loads(runs: Sequence[Measured], key: Key) -> set[str]:
    return {run.offered[key] for run in runs if key in run.offered}


def _same_failures(base: Sequence[Measured], other: Sequence[Measured], key: Key) -> bool:
    """Whether both sides have requests whose failures can be compared: of the same load."""
    asked = all(any(run.requests for run in _failed(runs, key)) for runs in (base, other))
    return asked and len(_loads([*base, *other], key)) == 1


def _common(
    key: Key, baseline: Side, base: Sequence[Measured], side: Side, other: Sequence[Measured], metrics: Sequence[str]
) -> tuple[list[str], list[NotCompared]]:
    """The metrics that every run of both sides has, and what is to be said of runs that lack what others have."""
    runs = [
        (str(run.directory), found) for run, found in zip((*baseline.runs, *side.runs), (*base, *other), strict=True)
    ]
    offered = _loads([found for _, found in runs], key)
    if len(offered) > 1:
        reason = f"not the same load: {' and '.join(sorted(offered))}"
        return [], [NotCompared(*key, f"{baseline.name} and {side.name}", reason)]
    missing, common = [], []
    for name, found in runs:
        if key not in found.values and not any((item.service, item.step) == key for item in found.problems):
            missing.append(NotCompared(*key, name, "it was not measured here"))
    for metric in metrics:
        having = [name for name, found in runs if metric in found.values.get(key, {})]
        lacking = [name for name, found in runs if key in found.values and name not in having]
        if len(having) == len(runs):
            common.append(metric)
        elif having:
            missing += [NotCompared(*key, name, f"{metric} was not measured here") for name in lacking]
    return common, missing


def _compared(
    key: Key, metric: str, baseline: Side, base: Sequence[Measured], side: Side, other: Sequence[Measured],
    margin: float, confidence: float,
) -> Comparison:  # fmt: skip
    a, b = ([run.values[key][metric] for run in runs] for runs in (base, other))
    if len(a) > 1 and len(b) > 1:
        ratio, replicates = between_runs(
            a, b, margin=margin, confidence=confidence, higher_is_better=metric in HIGHER_IS_BETTER,
            resolution=RESOLUTIONS.get(metric, 0.0),
        ), "runs"  # fmt: skip
    else:
        ratio, replicates = _described(base, other, key, metric, a, b, margin, confidence), "one run"
    return compared(
        ratio, a, b, confidence=confidence, margin=margin, paired=False, replicates=replicates, service=key[0],
        step=key[1], baseline=baseline.name, variant=side.name, metric=metric, unit=UNITS.get(metric, "s"),
    )  # fmt: skip


def _described(
    base: Sequence[Measured], other: Sequence[Measured], key: Key, metric: str, a: list[float], b: list[float],
    margin: float, confidence: float,
) -> Ratio:  # fmt: skip
    """The quotient, and the spread within the two runs where there is one of each: no verdict, for chance between runs
    is not in it."""
    was, now = float(np.median(a)), float(np.median(b))
    ratio = now / was if 0 < was < np.inf and 0 < now < np.inf else float("nan")
    nothing = Ratio(ratio, float("nan"), float("nan"), Verdict.DESCRIPTIVE, min(len(a), len(b)), 0, float("nan"))
    if len(a) > 1 or len(b) > 1:
        return nothing
    blocks = [run.blocks.get(key, {}).get(metric, []) for run in (base[0], other[0])]
    if any(len(part) < LEAST_BLOCKS or not np.isfinite(part).all() or min(part) <= 0 for part in blocks):
        return nothing
    within = unpaired_ratio(blocks[0], blocks[1], margin=margin, confidence=confidence)
    return Ratio(within.ratio, within.low, within.high, Verdict.DESCRIPTIVE, 1, 0, within.spread)


def measured_once(baseline: Run, other: Run) -> list[dict[str, Any]]:
    """Capacities of the same step and service: one value each, so that nothing can be said of chance."""

    def capacities(run: Run) -> dict[Key, float]:
        return {(item.service, item.step): item.value for item in run.measurements if item.name == "capacity"}

    before, after = capacities(baseline), capacities(other)
    return [
        {"service": key[0], "step": key[1], "metric": "capacity", "was": before[key], "now": after[key]}
        for key in before
        if key in after
    ]


CheckKey = tuple[str, str, str]


def check_keys(side: Side) -> set[CheckKey]:
    return {(check.service, check.step, check.id) for run in side.runs for check in run.checks}


def _outcomes(side: Side) -> dict[CheckKey, list[CheckResult | None]]:
    """Of each check, run by run; None where a run has it not."""
    read = [{(check.service, check.step, check.id): check for check in run.checks} for run in side.runs]
    keys = dict.fromkeys(key for run in read for key in run)
    return {key: [run.get(key) for run in read] for key in keys}


def changed_checks(baseline: Side, other: Side) -> list[dict[str, Any]]:
    """Checks whose outcome differs, worse ones first; ones that only one of the sides has are named too. A check that
    fails the run in one run of a side, and in none of the other, differs."""
    before, after = _outcomes(baseline), _outcomes(other)
    found = []
    for key in dict.fromkeys([*before, *after]):
        one, two = before.get(key, [None] * len(baseline.runs)), after.get(key, [None] * len(other.runs))
        was, now = _in_words(one), _in_words(two)
        if was == now:
            continue
        failing = [check for check in two if check is not None and check.fails_run]
        shown = next(iter(failing), None) or next(check for check in (*two, *one) if check is not None)
        failed_before = any(check is not None and check.fails_run for check in one)
        lost = None in two and None not in one
        found.append(
            {
                "service": key[0],
                "step": key[1],
                "check": key[2],
                "was": was,
                "now": now,
                "worse": lost or (bool(failing) and not failed_before),
                "detail": describe(shown),
            }
        )
    return sorted(found, key=lambda item: not item["worse"])


def _in_words(checks: Sequence[CheckResult | None]) -> str:
    words = [str(check.outcome) if check else "not run" for check in checks]
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    if len(counts) == 1:
        return words[0]
    return ", ".join(f"{word} in {count} of {len(words)} runs" for word, count in sorted(counts.items()))
