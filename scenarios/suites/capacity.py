"""Capacity: the highest rate at which a service still meets its objectives."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from harness.endpoint import Endpoint
from harness.errors import MeasurementError
from harness.load.runner import Generators, Progress
from harness.records import CheckResult, Level, LoadResult, Measurement, Outcome, SampleBatch
from scenarios.suites.load import Plan, Within, open_generators, run_plan
from scenarios.suites.load.beforehand import brief, encode
from scenarios.suites.load.results import judge_objective

SUITE = "capacity"
MOST_TRIALS = 40


@dataclass(frozen=True)
class Search:
    """``plan`` is one trial; its rate is replaced. A rate counts as met when each of ``repeats`` trials met it."""

    plan: Plan
    start_per_s: float
    most_per_s: float
    tolerance: float = 0.05
    """The search ends when the lowest rate that failed is so much above the highest that was met."""
    repeats: int = 3


@dataclass(frozen=True)
class Trial:
    rate_per_s: float
    met: bool


def bracket(trials: Sequence[Trial], repeats: int) -> tuple[float | None, float | None]:
    """The highest rate that was met in all of its repeats, and the lowest above it that failed once."""
    failed = {trial.rate_per_s for trial in trials if not trial.met}
    counts: dict[float, int] = {}
    for trial in trials:
        counts[trial.rate_per_s] = counts.get(trial.rate_per_s, 0) + 1
    met = [rate for rate, count in counts.items() if count >= repeats and rate not in failed]
    low = max((rate for rate in met if not any(bad < rate for bad in failed)), default=None)
    high = min((rate for rate in failed if low is None or rate > low), default=None)
    return low, high


def next_rate(trials: Sequence[Trial], search: Search) -> float | None:
    """The rate to try next; None when the search is over. While everything is met the rate doubles, while nothing is
    it halves; then the bracket is bisected (geometrically, as rates are)."""
    if not trials:
        return search.start_per_s
    last = trials[-1]
    tried = sum(trial.rate_per_s == last.rate_per_s for trial in trials)
    if last.met and tried < search.repeats:
        return last.rate_per_s
    low, high = bracket(trials, search.repeats)
    if low is not None and low >= search.most_per_s:
        return None
    if high is None:
        return min((low or search.start_per_s) * 2, search.most_per_s)
    if low is None:
        return high / 2 if high > search.start_per_s / 256 else None
    return math.sqrt(low * high) if high > low * (1 + search.tolerance) else None


def knee(points: Sequence[tuple[float, float]]) -> float | None:
    """The rate where the latency curve bends: furthest below the chord from its first to its last point.

    Both axes are scaled to 0…1. None for fewer than three points or a curve that does not rise.
    Source: Satopää et al., Finding a "Kneedle" in a Haystack, 2011.
    """
    ordered = sorted(points)
    if len(ordered) < 3:
        return None
    (x0, y0), (x1, y1) = ordered[0], ordered[-1]
    if x1 <= x0 or y1 <= y0:
        return None
    below = [((x - x0) / (x1 - x0) - (y - y0) / (y1 - y0), x) for x, y in ordered]
    deepest, rate = max(below)
    return rate if deepest > 0 else None


async def capacity(
    endpoint: Endpoint,
    search: Search,
    samples_name: Callable[[str], str],
    progress: Callable[[Progress], None],
    note: Callable[[str], None],
    within: Within | None = None,
) -> AsyncIterator[LoadResult | SampleBatch | CheckResult | Measurement]:
    """Raises MeasurementError where the generator and not the service was the limit."""
    async with open_generators(search.plan, note, within) as generators:
        async for record in _search(endpoint, search, samples_name, progress, note, generators):
            yield record


async def _search(
    endpoint: Endpoint,
    search: Search,
    samples_name: Callable[[str], str],
    progress: Callable[[Progress], None],
    note: Callable[[str], None],
    generators: Generators,
) -> AsyncIterator[LoadResult | SampleBatch | CheckResult | Measurement]:
    encoded = await encode(endpoint, search.plan, brief(search.plan))
    trials: list[Trial] = []
    points: list[tuple[float, float]] = []
    while (rate := next_rate(trials, search)) is not None and len(trials) < MOST_TRIALS:
        name = f"{search.plan.name}-{len(trials) + 1:02d}"
        plan = replace(search.plan, name=name, rate_per_s=rate, seed=search.plan.seed + len(trials))
        result: LoadResult | None = None
        wrong = ""
        async for record in run_plan(endpoint, plan, samples_name(name), progress, generators, note, encoded):
            if isinstance(record, CheckResult):
                if record.id == "load.answers" and record.outcome is Outcome.FAILED:
                    wrong = record.observed
                continue
            if isinstance(record, LoadResult):
                result = record
            yield record
        assert result is not None
        judged = [judge_objective(objective, result) for objective in plan.objectives]
        if any(outcome is Outcome.ERROR for outcome, _ in judged):
            raise MeasurementError(f"{plan.name}: at {rate:.4g}/s the trial is not valid: {result.invalid_reason}")
        met = not wrong and all(outcome is Outcome.PASSED for outcome, _ in judged)
        trials.append(Trial(rate, met))
        points.append((rate, result.latency_s["p99"]))
        seen = "; ".join(f"{fields['expected']}: {fields['observed']}" for _, fields in judged)
        note(f"{rate:8.1f}/s {'met' if met else 'not met'}: {wrong or seen}")
    for conclusion in _conclude(endpoint, search, trials, points):
        yield conclusion


def _conclude(
    endpoint: Endpoint, search: Search, trials: Sequence[Trial], points: Sequence[tuple[float, float]]
) -> list[Measurement | CheckResult]:
    low, high = bracket(trials, search.repeats)
    step, service = search.plan.name, endpoint.service
    objectives = ", ".join(objective.text for objective in search.plan.objectives)
    requirement = f"There is a rate at which {objectives} is met."
    common = {"suite": SUITE, "level": Level.MUST, "service": service, "runtime": endpoint.runtime, "step": step}
    if low is None:
        tried = min(trial.rate_per_s for trial in trials)
        return [
            CheckResult(
                id="capacity.found",
                outcome=Outcome.FAILED,
                requirement=requirement,
                source="scenario",
                expected=objectives,
                observed=f"not met at {tried:.4g}/s, the lowest rate tried",
                **common,  # type: ignore[arg-type]
            )
        ]
    records: list[Measurement | CheckResult] = [
        Measurement("capacity", low, "1/s", len(trials), service, step, ci_low=low, ci_high=high)
    ]
    bend = knee(points)
    if bend is not None:
        records.append(Measurement("capacity.knee", bend, "1/s", len(points), service, step))
    above = f"failed at {high:.4g}/s" if high is not None else "nothing higher was asked for"
    observed = f"{low:.4g}/s, met in {search.repeats} of {search.repeats} trials; {above}; {len(trials)} trials"
    records.append(
        CheckResult(
            id="capacity.found",
            outcome=Outcome.PASSED,
            requirement=requirement,
            source="scenario",
            observed=observed,
            **common,  # type: ignore[arg-type]
        )
    )
    return records
