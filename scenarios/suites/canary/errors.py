"""Whether a candidate fails more requests than the version before it: shown, excluded, or not decided. Pure functions.

An answer that failed says who failed it only where it carries the header that tells versions apart. Two comparisons
follow from that:

- Every failure carries it: the candidate's requests against the other version's, in the same window.
- Otherwise: all requests of the window, of which a known share was the candidate's, against the requests
  before the candidate had any. The window fails more often by that share of what the candidate fails more often. This
  takes the version before it to fail as often as it did then.

The share is that of the answers that named the candidate. A failure that names nobody may be the candidate's or not, so
the share is known within bounds, and each decision takes the bound that speaks against it.

Sources: Fisher's exact test; Clopper and Pearson 1934 (limits of one share); Zou and Donner 2008, MOVER (limits of a
difference from those of its two parts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from harness.results.stats import binomial_quantile, fails_more_often

POWER = 0.95
"""How often a difference that is called the smallest to be found is found."""
KEPT = 0.95
"""How often a candidate that is equal is shown to be, with the requests that are planned."""


@dataclass(frozen=True)
class Count:
    """``failed`` of ``n`` requests."""

    failed: int
    n: int

    @property
    def share(self) -> float:
        return self.failed / self.n if self.n else 0.0

    def __add__(self, other: Count) -> Count:
        return Count(self.failed + other.failed, self.n + other.n)


@dataclass(frozen=True)
class Exposed:
    """Requests while the candidate had a part of them. ``candidate`` and ``stable`` are those whose answer named one of
    the two, failed ones included; the others named nobody."""

    every: Count
    candidate: Count
    stable: Count

    def __add__(self, other: Exposed) -> Exposed:
        return Exposed(self.every + other.every, self.candidate + other.candidate, self.stable + other.stable)

    @property
    def attributed(self) -> bool:
        """Whether every failure is one version's or the other's."""
        return self.every.failed == self.candidate.failed + self.stable.failed


NOTHING = Exposed(Count(0, 0), Count(0, 0), Count(0, 0))


@dataclass(frozen=True)
class Compared:
    """Two samples; the first one's requests were the candidate's by a share between ``least`` and ``most``."""

    one: Count
    other: Count
    least: float
    most: float


def compared(exposed: Exposed, before: Count, *, by_answer: bool) -> Compared:
    """``by_answer``: an answer that failed may say whose it is."""
    if by_answer and exposed.attributed:
        return Compared(exposed.candidate, exposed.stable, 1.0, 1.0)
    n = max(exposed.every.n, 1)
    unnamed = exposed.every.n - exposed.candidate.n - exposed.stable.n
    return Compared(exposed.every, before, exposed.candidate.n / n, (exposed.candidate.n + unnamed) / n)


def at_least(count: Count, alpha: float) -> float:
    """The exact lower limit of a share; it is wrong once in ``1 / alpha``."""
    from scipy.special import betaincinv

    return float(betaincinv(count.failed, count.n - count.failed + 1, alpha)) if count.failed else 0.0


def at_most(count: Count, alpha: float) -> float:
    """The exact upper limit; 1 of no requests."""
    from scipy.special import betaincinv

    if count.failed >= count.n:
        return 1.0
    return float(betaincinv(count.failed + 1, count.n - count.failed, 1 - alpha))


def excess(two: Compared) -> float:
    """The best guess of how much larger the share of failures of the candidate is."""
    middle = (two.least + two.most) / 2
    return (two.one.share - two.other.share) / middle if middle else 0.0


def excess_at_most(two: Compared, alpha: float) -> float:
    """1 where the candidate had no request."""
    up = at_most(two.one, alpha) - two.one.share
    down = two.other.share - at_least(two.other, alpha)
    limit = two.one.share - two.other.share + math.hypot(up, down)
    share = two.least if limit > 0 else two.most
    return min(1.0, limit / share) if share else 1.0


def excess_at_least(two: Compared, alpha: float) -> float:
    down = two.one.share - at_least(two.one, alpha)
    up = at_most(two.other, alpha) - two.other.share
    limit = two.one.share - two.other.share - math.hypot(down, up)
    share = two.most if limit > 0 else two.least
    return max(-1.0, limit / share) if share else -1.0


def shown_worse(two: Compared, guard: float, alpha: float) -> bool:
    """It fails more often than the version before it, and by more than the guard."""
    if not two.one.failed or fails_more_often(two.one.failed, two.one.n, two.other.failed, two.other.n) > alpha:
        return False
    return excess_at_least(two, alpha) > guard


def shown_no_worse(two: Compared, guard: float, alpha: float) -> bool:
    """It fails more often by at most the guard, or not at all."""
    return excess_at_most(two, alpha) <= guard


def smallest_found(two: Compared, guard: float, alpha: float) -> float:
    """The smallest excess that these numbers of requests show to be beyond the guard, with the chance ``POWER``; 1
    where none does."""
    from scipy.special import betaincinv

    def shown(failed: int) -> bool:
        return shown_worse(Compared(Count(failed, n), two.other, two.least, two.most), guard, alpha)

    n = two.one.n
    least = _first(0, n, shown)
    if least is None or not two.most:
        return 1.0
    share = float(betaincinv(least, n - least + 1, POWER))  # with which so many or more come that often
    return min(1.0, (share - two.other.share) / ((two.least + two.most) / 2 or 1.0))


def requests_needed(guard: float, share: float, before: Count, alpha: float, most: int) -> int | None:
    """How many requests, ``share`` of them the candidate's, show of an equal candidate that it is no worse, with the
    chance ``KEPT``, where the version before it fails as in ``before``. None where not even ``most`` do."""
    if guard <= 0:
        return None
    n = math.ceil(math.log(alpha) / math.log1p(-guard * share))
    while n <= most:
        usual = binomial_quantile(KEPT, n, before.share) if before.failed else 0
        if shown_no_worse(Compared(Count(usual, n), before, share, share), guard, alpha):
            return n
        n = math.ceil(n * 1.1)
    return None


def requests_that_decide(two: Compared, guard: float, alpha: float, alpha_worse: float) -> int | None:
    """How many requests, instead of those of the first sample, would decide it, if they and those they are compared
    with came in the same proportions. None where no number does: the candidate is worse by about the guard."""
    for step in range(1, 41):
        factor = 1.25**step
        larger = Compared(_times(two.one, factor), _times(two.other, factor), two.least, two.most)
        if shown_no_worse(larger, guard, alpha) or shown_worse(larger, guard, alpha_worse):
            return larger.one.n
    return None


def _times(count: Count, factor: float) -> Count:
    return Count(round(count.failed * factor), max(1, round(count.n * factor)))


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The first number for which ``holds``, which then holds for all above it; None where it does for none."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
