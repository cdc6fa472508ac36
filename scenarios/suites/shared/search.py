"""Capacity: the highest rate at which a service still meets its objectives.

One trial may be unlucky, and so may two in a row, so that neither is final. A rate that failed is tried again at once,
and at the end of the search once more; a rate that is found is tried until it has met the objectives ``repeats`` times;
and where nothing above the rate that failed was ever tried, one that is well above it is: failing should have no end.
What the answer rests on (how many trials of how many, whether the search came to its end) is part of it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.load.runner import Generators, Progress
from harness.results.dependence import DECIDING
from harness.results.objectives import Answer, Judged, Seen, joined, judge
from harness.results.records import CheckResult, Level, LoadResult, Measurement, Outcome, SampleBatch
from harness.results.slo import with_errors
from harness.target.endpoint import Endpoint
from scenarios.suites.shared.stage import Plan, StageEnd, Within, open_generators, run_plan
from scenarios.suites.shared.stage.beforehand import brief, encode
from scenarios.suites.shared.stage.requests import Encoded
from scenarios.suites.shared.stage.trial import take

SUITE = "capacity"
LOWEST = 256
"""The search goes down to this part of the rate that it began with."""
LEAST_REQUESTS = 1
"""And no further than to where a trial has so many requests."""
PROBE = 1.5
"""So much above the lowest rate that failed, a last trial looks whether failing has an end."""
CONFIRMING = 6
"""Further trials, at most, of a rate that was met each time and in too few requests to say so."""


@dataclass(frozen=True)
class Search:
    """``plan`` is one trial; its rate is replaced."""

    plan: Plan
    start_per_s: float
    most_per_s: float
    tolerance: float = 0.05
    """The search ends when the lowest rate that failed is so much above the highest that was met."""
    repeats: int = 3
    """Trials that must meet the objectives at the rate that is found. 1 takes every trial as final."""

    @property
    def lowest_per_s(self) -> float:
        return max(self.start_per_s / LOWEST, LEAST_REQUESTS / self.plan.duration_s)

    @property
    def budget(self) -> int:
        """Trials that the search may take: all doublings and halvings, the bisection, and for each rate of it a trial
        more for luck."""
        doublings = math.ceil(math.log2(max(self.most_per_s / self.start_per_s, 1))) + int(math.log2(LOWEST))
        bisections = math.ceil(math.log2(math.log(2) / math.log1p(self.tolerance))) + 1
        return (doublings + bisections) * 2 + 3 * (self.repeats + CONFIRMING)


@dataclass(frozen=True)
class Trial:
    rate_per_s: float
    met: bool


@dataclass(frozen=True)
class Tried:
    """The trials of one rate."""

    met: int = 0
    failed: int = 0

    def state(self, repeats: int) -> bool | None:
        """Whether the rate is met, as far as is known; None where it must be tried again first. Of several trials most
        must agree: three failures make a failed rate, or two without one that met, and each failure asks for two that
        met."""
        if repeats == 1:
            return self.failed == 0
        if self.failed >= 3 or (self.failed == 2 and self.met == 0):
            return False
        if self.failed == 0 or self.met > 2 * self.failed:
            return True
        return None

    def confirmed(self, repeats: int) -> bool:
        return self.state(repeats) is True and self.met >= repeats + (2 * self.failed if repeats > 1 else 0)


def tried(trials: Sequence[Trial]) -> dict[float, Tried]:
    found: dict[float, Tried] = {}
    for trial in trials:
        before = found.get(trial.rate_per_s, Tried())
        found[trial.rate_per_s] = Tried(before.met + trial.met, before.failed + (not trial.met))
    return found


def bracket(trials: Sequence[Trial], repeats: int) -> tuple[float | None, float | None]:
    """The highest rate that is met, as far as is known, and the lowest above it that failed."""
    states = {rate: count.state(repeats) for rate, count in tried(trials).items()}
    bad = sorted(rate for rate, state in states.items() if state is False)
    good = [rate for rate, state in states.items() if state is True]
    if repeats == 1:  # every trial is final: nothing above one that failed counts
        good = [rate for rate in good if not bad or rate < bad[0]]
    low = max(good, default=None)
    high = next((rate for rate in bad if low is None or rate > low), None)
    return low, high


def contradictions(trials: Sequence[Trial], repeats: int) -> list[float]:
    """Rates that failed below one that was met."""
    low, _ = bracket(trials, repeats)
    return sorted(
        rate
        for rate, count in tried(trials).items()
        if low is not None and rate < low and count.state(repeats) is False
    )


def next_rate(trials: Sequence[Trial], search: Search) -> float | None:
    """The rate to try next; None when the search is over. While rates are met they double, while none is they halve;
    then the bracket is bisected (geometrically, as rates are), and what was found is confirmed."""
    if not trials:
        return search.start_per_s
    known, last = tried(trials), trials[-1].rate_per_s
    if known[last].state(search.repeats) is None:
        return last
    low, high = bracket(trials, search.repeats)
    if high is None:
        assert low is not None
        if low < search.most_per_s:
            return min(low * 2, search.most_per_s)
    elif low is None:
        return high / 2 if high / 2 >= search.lowest_per_s else None
    elif high > low * (1 + search.tolerance):
        return math.sqrt(low * high)
    if not known[low].confirmed(search.repeats):
        return low
    if search.repeats > 1 and high is not None:
        if _failed_at_once(trials, high):
            return high
        if high < search.most_per_s and not any(rate > high for rate in known):
            return min(high * PROBE, search.most_per_s)
    return None


def _failed_at_once(trials: Sequence[Trial], rate: float) -> bool:
    """Whether a rate has two trials, one after the other, so that one disturbance may be in both."""
    places = [place for place, trial in enumerate(trials) if trial.rate_per_s == rate]
    return len(places) == 2 and places[1] == places[0] + 1


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


@dataclass
class _Course:
    """What the search asks, and what it has seen so far."""

    encoded: Sequence[Encoded]
    trials: list[Trial] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    """Rate, and p99 in seconds where there was one."""
    seen: dict[float, list[Seen]] = field(default_factory=dict)
    """By rate."""
    connections: int = 0
    """What the last trial was allowed to open."""


async def _search(
    endpoint: Endpoint,
    search: Search,
    samples_name: Callable[[str], str],
    progress: Callable[[Progress], None],
    note: Callable[[str], None],
    generators: Generators,
) -> AsyncIterator[LoadResult | SampleBatch | CheckResult | Measurement]:
    course = _Course(await encode(endpoint, search.plan, brief(search.plan)))
    while (rate := next_rate(course.trials, search)) is not None and len(course.trials) < search.budget:
        async for record in _trial(endpoint, search, rate, course, samples_name, progress, note, generators):
            yield record
    converged = rate is None
    low, _ = bracket(course.trials, search.repeats)
    judged: list[Judged] = []
    if low is not None and converged:
        judged = confirm(search, course.seen[low])
        for _ in range(CONFIRMING):
            if all(item.answer is Answer.MET for item in judged):
                break
            note(f"{low:8.1f}/s: its trials together do not show that the objectives are met; once more")
            async for record in _trial(endpoint, search, low, course, samples_name, progress, note, generators):
                yield record
            judged = confirm(search, course.seen[low])
            if bracket(course.trials, search.repeats)[0] != low:
                judged, converged = [], False  # what was found does not hold
    for conclusion in _conclude(endpoint, search, course, judged, converged):
        yield conclusion


def confirm(search: Search, stages: Sequence[Seen]) -> list[Judged]:
    """The objectives over all trials of a rate, as if they were one stage. It is looked at several times, which share
    the chance to err."""
    together, chance = joined(stages), (1 - DECIDING) / (CONFIRMING + 1)
    return [judge(objective, together, chance) for objective in with_errors(search.plan.objectives)]


async def _trial(
    endpoint: Endpoint,
    search: Search,
    rate: float,
    course: _Course,
    samples_name: Callable[[str], str],
    progress: Callable[[Progress], None],
    note: Callable[[str], None],
    generators: Generators,
) -> AsyncIterator[LoadResult | SampleBatch]:
    number = len(course.trials) + 1
    name = f"{search.plan.name}-{number:02d}"
    connections = max(search.plan.connections, course.connections)
    seed = search.plan.seed + number - 1
    plan = replace(search.plan, name=name, rate_per_s=rate, seed=seed, connections=connections)
    kept: list[LoadResult | SampleBatch] = []

    async def stage(wanted: Plan) -> StageEnd:
        kept.clear()
        end: StageEnd | None = None
        course.connections = wanted.connections
        stages = run_plan(endpoint, wanted, samples_name(name), progress, generators, note, course.encoded)
        async for record in stages:
            if isinstance(record, StageEnd):
                end = record
            elif not isinstance(record, CheckResult):
                kept.append(record)
        assert end is not None
        return end

    taken = await take(stage, plan, note)
    for record in kept:
        yield record
    course.trials.append(Trial(rate, taken.met))
    course.seen.setdefault(rate, []).append(taken.end.seen)
    p99_s = taken.end.result.latency_s["p99"]
    if math.isfinite(p99_s):
        course.points.append((rate, p99_s))
    note(f"{rate:8.1f}/s {'met' if taken.met else 'not met'}: {taken.told}")


def _conclude(
    endpoint: Endpoint, search: Search, course: _Course, judged: Sequence[Judged], converged: bool
) -> list[Measurement | CheckResult]:
    trials = course.trials
    low, high = bracket(trials, search.repeats)
    step, service, count = search.plan.name, endpoint.service, len(trials)
    asked = with_errors(search.plan.objectives)
    texts = ", ".join(objective.text for objective in asked)

    def check(name: str, requirement: str, outcome: Outcome, level: Level = Level.MUST, **fields: Any) -> CheckResult:
        return CheckResult(
            id=f"{SUITE}.{name}",
            suite=SUITE,
            level=level,
            outcome=outcome,
            service=service,
            runtime=endpoint.runtime,
            requirement=requirement,
            source="scenario",
            step=step,
            **fields,
        )

    requirement = f"There is a rate at which {texts} is met."
    if low is None:
        lowest = min(trial.rate_per_s for trial in trials)
        seen = f"not met at {lowest:.4g}/s, the lowest of the rates that were tried"
        return [check("found", requirement, Outcome.FAILED, expected=texts, observed=seen)]
    records: list[Measurement | CheckResult] = [
        Measurement("capacity", low, "1/s", count, service, step),
        Measurement("capacity.converged", float(converged), "", count, service, step),
    ]
    if high is not None:
        records.append(Measurement("capacity.failed_at", high, "1/s", count, service, step))
    if (bend := knee(course.points)) is not None:
        records.append(Measurement("capacity.knee", bend, "1/s", len(course.points), service, step))
    found = tried(trials)[low]
    above = f"failed at {high:.4g}/s" if high is not None else "nothing higher was asked for"
    observed = f"{low:.4g}/s, met in {found.met} of {found.met + found.failed} trials; {above}; {count} trials"
    reason = next((item.reason or f"together: {item.observed}" for item in judged if item.answer is not Answer.MET), "")
    if not converged:
        reason = f"the search did not come to an answer within {count} trials; begin nearer to it"
    elif not found.confirmed(search.repeats):
        reason = f"{found.met} of {found.met + found.failed} trials met the objectives at {low:.4g}/s"
    outcome = Outcome.UNDECIDED if reason else Outcome.PASSED
    records.append(check("found", requirement, outcome, expected=texts, observed=observed, reason=reason))
    if search.repeats > 1:
        below = contradictions(trials, search.repeats)
        shown = ", ".join(f"{rate:.4g}/s" for rate in below)
        records.append(
            check(
                "monotone",
                "A rate below one that is met is met as well.",
                Outcome.FAILED if below else Outcome.PASSED,
                Level.SHOULD,
                expected="no rate that failed below one that was met",
                observed=f"failed at {shown}, and met at {low:.4g}/s" if below else f"none in {count} trials",
            )
        )
    return records
