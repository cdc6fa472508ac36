"""Whether the median of all cold starts is within a budget, from a few trials. Pure functions.

Five trials or more are judged by how many are within: the sign test, which assumes nothing. With a median beyond the
budget, five of five trials are within once in 32 times. Two to four trials are too few for that. They decide where all
lie on one side of the budget, and farther from it than they lie apart: by Student's t of their logarithms, which
assumes that cold starts are about log-normal. One trial decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.results.records import Outcome
from harness.results.stats import binomial_sf
from scenarios.suites.cold_start.phases import Span

CONFIDENCE = 0.95
ENOUGH = 5
"""The fewest trials of which all being within says enough without an assumption."""
MOST = 1000
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182}
"""97.5 % quantiles of Student's t of one, two and three degrees of freedom, by the number of trials: more than the
confidence, so that it holds for times with a longer tail, too."""
LEAST_SHARE = 0.01
"""Of the budget: what is shorter counts as this, so that nothing is far from no time at all."""


@dataclass(frozen=True)
class Judged:
    """``within`` and ``beyond`` trials are so however exact their measurement is."""

    outcome: Outcome
    within: int
    beyond: int
    trials: int
    reason: str = ""


def judge_budget(values: Sequence[Span], limit_s: float) -> Judged:
    """``values`` are what each trial took; one that had no answer took for ever."""
    n = len(values)
    within = sum(value.most <= limit_s for value in values)
    beyond = sum(value.least > limit_s for value in values)
    if _decided(within, [value.most for value in values], limit_s, above=False):
        return Judged(Outcome.PASSED, within, beyond, n)
    if _decided(beyond, [value.least for value in values], limit_s, above=True):
        return Judged(Outcome.FAILED, within, beyond, n)
    unsure = n - within - beyond
    closest = max((value.resolution for value in values), default=0.0)
    if unsure:
        return Judged(
            Outcome.UNDECIDED,
            within,
            beyond,
            n,
            f"{unsure} of {n} trials are nearer to the budget than they are measured (±{closest:.1f} s); a budget that"
            " is farther from what a trial takes would be decided",
        )
    return Judged(Outcome.UNDECIDED, within, beyond, n, _needed(within, n))


def _decided(count: int, values: Sequence[float], limit_s: float, *, above: bool) -> bool:
    """Whether ``count`` of the trials on one side of the limit say that the median is there, too."""
    n = len(values)
    if binomial_sf(count - 1, n, 0.5) <= 1 - CONFIDENCE:
        return True
    if count < n or n not in STUDENT or not all(math.isfinite(value) for value in values):
        return False
    logs = [math.log(max(value / limit_s, LEAST_SHARE)) for value in values]
    mean = math.fsum(logs) / n
    spread = math.sqrt(math.fsum((item - mean) ** 2 for item in logs) / (n - 1))
    margin = STUDENT[n] * spread / math.sqrt(n)
    return mean - margin > 0 if above else mean + margin <= 0


def _needed(within: int, n: int) -> str:
    """How many trials would decide, if as great a share of them came to lie within."""
    share = max(within, n - within) / max(n, 1)
    if share == 1:
        return (
            f"{ENOUGH} trials on one side of the budget decide; fewer do where they scatter less than they are from it"
        )
    for more in range(n + 1, MOST + 1):
        if share > 0.5 and binomial_sf(math.floor(share * more) - 1, more, 0.5) <= 1 - CONFIDENCE:
            return f"{more} trials would decide, if {share:.0%} of them stay on that side of the budget"
    return "half of the trials are within the budget: the median is too close to it to be told"
