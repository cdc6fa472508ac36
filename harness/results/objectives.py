"""Whether a stage shows that an objective is met, that it is not, or neither. Pure functions.

A request that failed is later than any bound: a server cannot become faster by failing. An objective on a percentile
is one on the share of requests beyond its bound, and is decided where a one-sided bound of that share (95 %, for
requests that depend on each other, ``dependence.py``) lies on one side of what is allowed. ``max``,
``errors <= 0%`` and the rate of an open loop are statements about the stage itself, and always decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from harness.base.units import format_duration
from harness.results.dependence import DECIDING, LEAST_LATENCIES, Late, late, later_than, mean_bounds
from harness.results.slo import Objective
from harness.results.stats import PERCENTILES, percentile

Samples = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
CONFIDENCE_TEXT = f"{DECIDING:.0%}".replace("%", " %")


class Answer(StrEnum):
    MET = "met"
    NOT_MET = "not met"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Seen:
    """What a stage gives objectives to judge, a row a request in the order of the due times."""

    latency_s: Samples
    """Infinite where the request failed."""
    failed: Flags
    length_s: float
    """Of the measured window."""
    steady: bool
    """Whether the same load was offered all the time."""
    rate_per_s: float
    """Successes a second within it."""
    rates_per_s: Samples | None = None
    """Of a closed loop: the same in equal pieces of the window. None of an open loop, whose rate is the schedule's."""
    ttft_s: Samples | None = None
    """Of streamed answers; infinite where no token came or the request failed."""
    gap_s: Samples | None = None
    """Between tokens, in the order of their requests; a request that failed has one that never ended."""

    def of(self, kind: str) -> Samples | None:
        return {"latency": self.latency_s, "ttft": self.ttft_s, "gap": self.gap_s}[kind]


def joined(stages: Sequence[Seen]) -> Seen:
    """Several stages of one rate, one after the other, as one."""

    def together(parts: list[Samples | None]) -> Samples | None:
        there = [part for part in parts if part is not None]
        return np.concatenate(there) if there else None

    length_s = sum(stage.length_s for stage in stages)
    return Seen(
        latency_s=np.concatenate([stage.latency_s for stage in stages]),
        failed=np.concatenate([stage.failed for stage in stages]),
        length_s=length_s,
        steady=all(stage.steady for stage in stages),
        rate_per_s=sum(stage.rate_per_s * stage.length_s for stage in stages) / length_s,
        rates_per_s=together([stage.rates_per_s for stage in stages]),
        ttft_s=together([stage.ttft_s for stage in stages]),
        gap_s=together([stage.gap_s for stage in stages]),
    )


@dataclass(frozen=True)
class Judged:
    answer: Answer
    observed: str
    reason: str = ""
    """Of an undecided one: what was seen against what is allowed, and what would decide it."""


def observed(objective: Objective, seen: Seen) -> float:
    """The value of the sample; infinite for a latency of which there is none."""
    if objective.kind == "errors":
        return float(np.count_nonzero(seen.failed)) / seen.failed.size if seen.failed.size else math.inf
    if objective.kind == "rate":
        return seen.rate_per_s
    values = seen.of(objective.kind)
    if values is None or not values.size:
        return math.inf if objective.upper else 0.0
    if objective.statistic in PERCENTILES:
        return percentile(np.sort(values), PERCENTILES[objective.statistic])
    return float(values.max() if objective.statistic == "max" else values.mean())


def judge(objective: Objective, seen: Seen, chance: float = 1 - DECIDING) -> Judged:
    """``chance`` that it is called met, or not met, and is not; each."""
    if objective.kind == "errors":
        return _judge_errors(objective, seen, chance)
    if objective.kind == "rate":
        return _judge_rate(objective, seen, chance)
    values = seen.of(objective.kind)
    if values is None or not values.size:
        nothing = "no streamed answer" if values is None else f"no {objective.kind} of any request"
        return Judged(Answer.UNDECIDED, nothing, f"{nothing} was there to judge")
    if objective.statistic in PERCENTILES:
        return _judge_percentile(objective, seen, values, chance)
    if objective.statistic == "max":
        value = float(values.max())
        return Judged(_plain(objective, value), _told(objective, value, seen))
    return _judge_mean(objective, seen, values, chance)


def _plain(objective: Objective, value: float) -> Answer:
    return Answer.MET if objective.holds(value) else Answer.NOT_MET


def _told(objective: Objective, value: float, seen: Seen) -> str:
    """A latency in words; where requests failed, what those that did not show alone."""
    failed = int(np.count_nonzero(seen.failed))
    text = objective.describe(value)
    if not failed:
        return text
    return f"{text} (a failed request counts as never answered, and {failed} of {seen.failed.size} failed)"


def _judge_percentile(objective: Objective, seen: Seen, values: Samples, chance: float) -> Judged:
    q = PERCENTILES[objective.statistic]
    value = percentile(np.sort(values), q)
    if objective.upper:
        allowed = 1 - q
        found = later_than(values, objective.threshold, allowed, objective.operator == "<", seen.steady, chance)
    else:
        allowed = q
        early = values <= objective.threshold if objective.operator == ">" else values < objective.threshold
        found = late(early, seen.steady, chance)
    answer = _decided(found, allowed)
    told = _told(objective, value, seen)
    if answer is not Answer.UNDECIDED:
        return Judged(answer, told)
    what = "gaps" if objective.kind == "gap" else "requests"
    return Judged(answer, told, _undecided(found, allowed, what, "beyond the bound", seen))


def _decided(found: Late, allowed: float) -> Answer:
    if found.high <= allowed:
        return Answer.MET
    return Answer.NOT_MET if found.low > allowed else Answer.UNDECIDED


def _undecided(found: Late, allowed: float, what: str, beyond: str, seen: Seen) -> str:
    text = (
        f"undecided: {found.count} of {found.n} {what} {beyond}, which is {found.low:.2%} to {found.high:.2%} of all"
        f" ({CONFIDENCE_TEXT} each side), where {allowed * 100:.3g} % is the limit"
    )
    if found.tau > 2:
        text += f"; {what} depend on those before them, so that {found.n} say as much as {found.n / found.tau:.0f}"
    return f"{text}; {_needs(found.needed(allowed), found.n, what, seen)}"


def _needs(needed: int | None, n: int, what: str, seen: Seen) -> str:
    if needed is None or not n:
        return f"what was seen is so near to the limit that no number of {what} is promised to decide it"
    if needed <= n:
        needed = n + 1
    return f"about {_rounded(needed)} {what} ({format_duration(needed / n * seen.length_s)} like this) would decide it"


def _rounded(number: int) -> str:
    """Two digits, upwards: it is an estimate."""
    step = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / step) * step:,}"


def _judge_errors(objective: Objective, seen: Seen, chance: float) -> Judged:
    failed = seen.failed
    if not failed.size:
        return Judged(Answer.UNDECIDED, "no request", "no request was there to judge")
    n, count = int(failed.size), int(np.count_nonzero(failed))
    share = count / n
    told = f"{share:.3%} ({count} of {n})"
    if objective.threshold in (0.0, 1.0):
        return Judged(_plain(objective, share), told)
    found = late(failed, seen.steady, chance)
    if not objective.upper:  # asks that a server does refuse
        low, high = found.low >= objective.threshold, found.high < objective.threshold
        answer = Answer.MET if low else Answer.NOT_MET if high else Answer.UNDECIDED
    else:
        answer = _decided(found, objective.threshold)
    if answer is not Answer.UNDECIDED:
        return Judged(answer, told)
    return Judged(answer, told, _undecided(found, objective.threshold, "requests", "failed", seen))


def _judge_mean(objective: Objective, seen: Seen, values: Samples, chance: float) -> Judged:
    mean = float(values.mean())
    told = _told(objective, mean, seen)
    if not math.isfinite(mean):
        return Judged(_plain(objective, mean), told)
    return _by_bounds(objective, mean, mean_bounds(values, chance), told, values.size, seen)


def _judge_rate(objective: Objective, seen: Seen, chance: float) -> Judged:
    told = objective.describe(seen.rate_per_s)
    if seen.rates_per_s is None:
        return Judged(_plain(objective, seen.rate_per_s), told)
    bounds = mean_bounds(seen.rates_per_s, chance)
    return _by_bounds(objective, seen.rate_per_s, bounds, told, seen.failed.size, seen)


def _by_bounds(
    objective: Objective, value: float, bounds: tuple[float, float] | None, told: str, n: int, seen: Seen
) -> Judged:
    if bounds is None:
        few = f"undecided: {n} requests are too few to say; at least {LEAST_LATENCIES} are needed"
        return Judged(Answer.UNDECIDED, told, few)
    low, high = bounds
    inside = [objective.holds(low), objective.holds(high)]
    if all(inside):
        return Judged(Answer.MET, told)
    if not any(inside):
        return Judged(Answer.NOT_MET, told)
    away = abs(value - objective.threshold)
    needed = math.ceil(n * ((high - low) / 2 / away) ** 2) if away else None
    reason = (
        f"undecided: it is {objective.describe(low)} to {objective.describe(high)} ({CONFIDENCE_TEXT} each side);"
        f" {_needs(needed, n, 'requests', seen)}"
    )
    return Judged(Answer.UNDECIDED, told, reason)
