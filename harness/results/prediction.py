"""Whether a new value is worse than earlier ones let one expect. All functions are pure.

One run gives one value. The next one lies within a prediction interval of Student's, whose width holds the spread of a
single run and the error of the mean (the factor ``1 + 1/n``). Nights have outliers: what lies outermost among many
earlier runs is pulled in (winsorized), and the tail of the next one is taken to be as heavy as that of Student's
distribution with three degrees of freedom, however many runs there are.

Source: Hahn and Meeker, Statistical Intervals, 4.8 (prediction of one new value); Tukey and McLaughlin 1963 (spread of
winsorized samples); Holm 1979 (several tests at once).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.results.stats import fails_more_often

TAIL_DF = 3
"""Degrees of freedom of what a single run is drawn from, at most."""
WIDER = 1.16
"""So much wider is the interval than Student's: with five runs of noise with such tails it still errs as promised."""
OUTERMOST = 0.1
"""The share of earlier runs on either side that are pulled in; none of fewer than ten."""
FEW_SAME = 3
"""So few values that are the same tell nothing of how the next one may differ."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """What earlier values say of the next one, on one scale: its centre, the standard error of a new value, and the
    degrees of freedom of that."""

    centre: float
    error: float
    df: int


def expected_of(values: Values, resolution: float = 0.0) -> Expected:
    """Of at least two finite values, which are known no better than to ``resolution`` (a standard deviation)."""
    n = int(values.size)
    pulled = int(OUTERMOST * n + 1e-9)
    ordered = np.sort(values)
    if pulled:
        ordered = np.clip(ordered, ordered[pulled], ordered[-pulled - 1])
    spread = float(ordered.std(ddof=1)) / (1 - 2 * pulled / n)
    # Equal values differ in their last digit once a mean has been taken from them.
    spread = max(0.0 if spread <= 1e-12 * abs(float(ordered[0])) else spread, resolution)
    return Expected(float(ordered.mean()), WIDER * spread * math.sqrt(1 + 1 / n), min(n - 2 * pulled - 1, TAIL_DF))


def chance_of_worse(before: Values, newest: float, higher_is_better: bool = False, resolution: float = 0.0) -> float:
    """The chance that a run like those ``before`` is as bad as the newest, or worse.

    Values above zero are looked at as they are and as logarithms, and the larger chance counts: whichever of the two
    fits their noise, it is not understated. ``resolution`` is that of logarithms, as of a search on a grid: values that
    came out the same are known no better. Without one, values that never varied let nothing else be expected.
    """
    if not resolution and before.size <= FEW_SAME and np.ptp(before) == 0:
        return 1.0
    chance = _chance(before, newest, higher_is_better, resolution * abs(float(before.mean())))
    if newest > 0 and (before > 0).all():
        chance = max(chance, _chance(np.log(before), math.log(newest), higher_is_better, resolution))
    return chance


def _chance(before: Values, newest: float, higher_is_better: bool, resolution: float = 0.0) -> float:
    from scipy.special import stdtr

    expected = expected_of(before, resolution)
    beyond = expected.centre - newest if higher_is_better else newest - expected.centre
    if expected.error == 0:
        return 0.0 if beyond > 1e-12 * abs(expected.centre) else 1.0
    return float(stdtr(expected.df, -beyond / expected.error))


def limit_of(before: Values, alpha: float, higher_is_better: bool = False, resolution: float = 0.0) -> float:
    """The best value whose ``chance_of_worse`` is at most ``alpha``: what is not this bad is not noticed."""
    from scipy.special import stdtrit

    sign = -1 if higher_is_better else 1
    found = []
    for logs in (False, True):
        if logs and (before <= 0).any():
            continue
        scale = 1.0 if logs else abs(float(before.mean()))
        expected = expected_of(np.log(before) if logs else before, resolution * scale)
        end = expected.centre + sign * float(stdtrit(expected.df, 1 - alpha)) * expected.error
        found.append(math.exp(min(end, 700.0)) if logs else end)
    return min(found) if higher_is_better else max(found)


def chance_of_more(bad: Sequence[int], of: Sequence[int]) -> float:
    """The same of counts: ``bad`` events in ``of`` trials, a run each, the newest last. By Fisher's exact test beside
    all earlier runs together, and by what those differ among themselves where that is more."""
    newest, total = bad[-1], of[-1]
    chance = fails_more_often(newest, total, sum(bad[:-1]), sum(of[:-1]))
    return max(chance, _chance(shares_of(bad[:-1], of[:-1]), newest / max(total, 1), False))


def limit_of_counts(bad: Sequence[int], of: Sequence[int], alpha: float) -> int | None:
    """The fewest bad events in the newest run's trials that would be noticed; None where not even all of them."""
    low, high = 0, of[-1] + 1
    while low < high:
        middle = (low + high) // 2
        # More events are never less striking.
        if chance_of_more([*bad[:-1], middle], of) <= alpha:
            high = middle
        else:
            low = middle + 1
    return low if low <= of[-1] else None


def shares_of(bad: Sequence[int], of: Sequence[int]) -> Values:
    return np.array([some / max(all_, 1) for some, all_ in zip(bad, of, strict=True)])


def holm(chances: Sequence[float], alpha: float) -> list[bool]:
    """Which of several tests reject, so that all of them together err with a chance of at most ``alpha``."""
    rejected = [False] * len(chances)
    for place, which in enumerate(sorted(range(len(chances)), key=lambda item: chances[item])):
        if chances[which] > alpha / (len(chances) - place):
            break
        rejected[which] = True
    return rejected
