"""How much a row of requests says, where one follows the other: requests in a queue share what delays them.

A share of ``n`` dependent requests is as uncertain as one of ``n / tau`` independent ones; ``tau``, the correlation
time, is counted in requests. It comes from means of blocks: their variance, and how much a block resembles the one
before it (an autoregression of order one on the means), so that delays that outlast a block count too. All functions
are pure; rows are in the order of their due times.

Source: Law, Simulation Modeling and Analysis, 9.5 (batch means; autoregression); Clopper and Pearson 1934 (bounds of a
share), here with the effective number of requests. The promises are measured in ``tests/truth``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.results.stats import PERCENTILES, percentile

Samples = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

BLOCKS = (32, 64, 128)
"""The correlation time is the largest that comes out with so many blocks."""
MOST_ALIKE = 0.95
"""No block is taken to resemble the one before it more than that; beyond it there is no estimate."""
LEAST_CALM = 100
"""An interval needs a stage of so many correlation times of its median."""
LEAST_BEYOND = 5
"""And so many independent requests beyond the percentile."""
TAIL = 4.0
"""The tail of a queue's latency is correlated for longer than its median: three times in M/M/1. A short sample does not
show it, so that intervals take at least this many times what the median has beyond one."""
DECIDING = 0.95
"""Confidence of an objective that is called met, or not met: one-sided, each."""
PIECES = 5
"""A stage says at least as much against an objective as so many independent requests."""
FEW = 5
"""Events of which no correlation time can be told."""
APART, NEAR = 1.25, 0.1
"""Latencies so many times above the median tell of queues; those below so great a part of a bound say nothing of it."""
LEAST_LATENCIES = 2 * BLOCKS[0]
"""Fewer requests never show that a bound on latency is kept."""
MOST_NEEDED = 10_000_000


def correlation_time(happened: Flags) -> float:
    """In requests, at least 1. 1 where the event happened always, never, or in fewer rows than two a block."""
    n = int(happened.size)
    share = float(np.count_nonzero(happened)) / n if n else 0.0
    if share in (0.0, 1.0):
        return 1.0
    return max([1.0, *(_of_blocks(happened, share, count) for count in BLOCKS if n >= 2 * count)])


def _of_blocks(happened: Flags, share: float, count: int) -> float:
    length = happened.size // count
    return _long_run(happened[: count * length].reshape(count, length).mean(axis=1), length) / (share * (1 - share))


def _long_run(means: Samples, length: int) -> float:
    """The variance of the mean of a long row, times its length, from means of its blocks of ``length``."""
    count = means.size
    means = means - means.mean()
    squares = float(means @ means)
    if squares == 0:
        return 0.0
    alike = float(means[1:] @ means[:-1]) / squares
    # A short series of means looks less alike than it is; Kendall's correction.
    alike = min(max(alike + (1 + 4 * alike) / count, 0.0), MOST_ALIKE)
    return length * squares / (count - 1) * (1 + alike) / (1 - alike)


def _careful(tau: float, n: int, width: float, known_by: float) -> float:
    """``tau`` and what its own estimate, from a stage of ``n / known_by`` correlation times, may be short of."""
    return tau * (1 + width * math.sqrt(8 * known_by / n))


def _beta(a: float, b: float, share: float) -> float:
    from scipy.special import betaincinv  # scipy.special alone: scipy.stats takes a second to import

    return float(betaincinv(a, b, share))


def share_bounds(happened: float, n: float, each_side: float) -> tuple[float, float]:
    """Lower and upper bound of a share of which ``happened`` of ``n`` were seen, each missed with chance
    ``each_side``. Both may be effective numbers, and so no integers."""
    low = _beta(happened, n - happened + 1, each_side) if happened > 0 else 0.0
    high = _beta(happened + 1, n - happened, 1 - each_side) if happened < n else 1.0
    return low, high


def share_interval(happened: Flags, confidence: float = 0.95) -> tuple[float, float]:
    """Of the share of requests to which something happened; (0, 1) of none."""
    n = int(happened.size)
    if n == 0:
        return 0.0, 1.0
    count, tau = int(np.count_nonzero(happened)), 1.0
    if count >= FEW:
        tau = correlation_time(happened)
        tau = min(_careful(tau, n, 1.5, tau), float(n))
    return share_bounds(count / tau, n / tau, (1 - confidence) / 2)


def percentile_intervals(latency_s: Samples, confidence: float = 0.95) -> dict[str, tuple[float, float]]:
    """Intervals of the percentiles of latencies in the order of their due times, infinite where there was no answer.

    Left out: percentiles of which the stage has too few independent requests, and those whose interval has no end.
    """
    n = int(latency_s.size)
    found: dict[str, tuple[float, float]] = {}
    if n < LEAST_LATENCIES:
        return found
    ordered = np.sort(latency_s)
    middle = correlation_time(latency_s > percentile(ordered, 0.5))
    if n < LEAST_CALM * middle:
        return found
    for name, q in PERCENTILES.items():
        tau = middle
        if q != 0.5:
            tau = max(correlation_time(latency_s > percentile(ordered, q)), 1 + TAIL * (middle - 1))
        tau = _careful(tau, n, 5.0, middle)
        if n / tau * min(q, 1 - q) < LEAST_BEYOND:
            continue
        low, high = share_bounds(q * n / tau, n / tau, (1 - confidence) / 2)
        first, last = math.floor(low * n), math.ceil(high * n)
        if first >= 1 and last <= n and math.isfinite(ordered[last - 1]):
            found[name] = float(ordered[first - 1]), float(ordered[last - 1])
    return found


def mean_bounds(values: Samples, chance: float = 1 - DECIDING) -> tuple[float, float] | None:
    """One-sided bounds, each missed with ``chance``, of the mean of values in the order of their times; None for too
    few of them, or values without end."""
    from scipy.special import stdtrit

    n = int(values.size)
    if n < LEAST_LATENCIES or not np.isfinite(values).all():
        return None
    error = 0.0
    for count in (item for item in BLOCKS if n >= 2 * item):
        length = n // count
        variance = _long_run(values[: count * length].reshape(count, length).mean(axis=1), length)
        error = max(error, float(stdtrit(count - 1, 1 - chance)) * math.sqrt(variance / n))
    mean = float(values.mean())
    return mean - error, mean + error


@dataclass(frozen=True)
class Late:
    """How many of ``n`` requests broke a bound, and what that says of the share that does. ``low`` and ``high`` are
    one-sided bounds of that share, each missed with ``chance``; ``tau`` is the correlation time they allow for."""

    count: int
    n: int
    tau: float
    low: float
    high: float
    chance: float = 1 - DECIDING

    @property
    def share(self) -> float:
        return self.count / self.n

    def needed(self, limit: float) -> int | None:
        """Requests that would decide whether the share is below ``limit``, were the share what was seen; None beyond
        ten millions."""

        def decided(n: int) -> bool:
            high = share_bounds(n / self.tau * self.share, n / self.tau, self.chance)[1]
            surely = min(self.tau, n / PIECES)
            low = share_bounds(n / surely * self.share, n / surely, self.chance)[0]
            return (high <= limit and n >= LEAST_LATENCIES) or low > limit

        few, many = self.n, self.n
        while not decided(many):
            few, many = many, many * 2
            if few > MOST_NEEDED:
                return None
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if decided(middle) else (middle, many)
        return many


def late(happened: Flags, steady: bool = True, chance: float = 1 - DECIDING) -> Late:
    """Requests to which something happened, in the order of their due times. Fewer than ``FEW`` are taken to be
    independent, since nothing tells how they follow each other; so are those of a stage that is not ``steady``: what
    happens there at some time is of the course that the load takes, and comes again with it."""
    count = int(np.count_nonzero(happened))
    return _late(happened, count, correlation_time(happened) if steady and count >= FEW else 0.0, chance)


def later_than(
    latency_s: Samples,
    bound_s: float,
    allowed: float,
    including: bool,
    steady: bool = True,
    chance: float = 1 - DECIDING,
) -> Late:
    """Requests later than a bound (or, ``including``, just as late), of which a share ``allowed`` may be.

    Where few of them are, nearer delays tell how late requests follow each other: those of the slowest ``allowed``, and
    those well above the median, each unless it is below a tenth of the bound. What varies that far from a bound (a
    clock frequency, a neighbour) says nothing about it.
    """
    n = int(latency_s.size)
    happened: Flags = latency_s >= bound_s if including else latency_s > bound_s
    count = int(np.count_nonzero(happened))
    if not steady:
        found = _late(happened, count, 0.0, chance)
        return replace(found, high=1.0) if n < LEAST_LATENCIES else found
    ordered = np.sort(latency_s)
    tau = correlation_time(happened) if count >= FEW else 0.0
    slowest, well_above = percentile(ordered, 1 - allowed), APART * percentile(ordered, 0.5)
    for level_s in (slowest, well_above):
        if level_s < NEAR * bound_s:
            continue
        above = latency_s > level_s
        if level_s == slowest or 0.05 * n <= np.count_nonzero(above) <= 0.95 * n:
            tau = max(tau, correlation_time(above))
    found = _late(happened, count, tau, chance)
    return replace(found, high=1.0) if n < LEAST_LATENCIES else found  # nobody knows how alike so few are


def _late(happened: Flags, count: int, tau: float, chance: float) -> Late:
    """``tau`` 0 for one that is not known, and taken to be 1."""
    n = int(happened.size)
    tau = min(_careful(tau, n, 1.5, tau), float(n)) if tau else 1.0
    _, high = share_bounds(count / tau, n / tau, chance)
    # A stage that is late nearly all the time resembles itself throughout: that is no reason to doubt it.
    surely = min(tau, n / PIECES)
    low, _ = share_bounds(count / surely, n / surely, chance)
    return Late(count, n, tau, low, high, chance)
