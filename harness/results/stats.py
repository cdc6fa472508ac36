"""Statistics of latency samples. All functions are pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

PERCENTILES: dict[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}

SEARCH_RESOLUTION = math.log1p(0.05) / math.sqrt(12)
"""Of a capacity, on the scale of logarithms: a search ends when it knows it to within 5 %, so that equal answers say no
more than that. This is the standard deviation of what lies anywhere within such a step."""

Samples = npt.NDArray[np.float64]


def percentile(ordered: Samples, q: float) -> float:
    """The smallest sample with at least a share ``q`` of all samples at or below it (nearest rank): a value that
    really occurred. ``ordered`` is ascending and not empty."""
    if ordered.size == 0:
        raise ValueError("a percentile of no samples does not exist")
    rank = max(1, math.ceil(q * ordered.size - 1e-9))
    return float(ordered[rank - 1])


def binomial_quantile(share: float, n: int, p: float) -> int:
    """The smallest count that ``n`` draws with chance ``p`` stay at or below with chance ``share``."""
    return _first(n, lambda count: binomial_cdf(count, n, p) >= share)


def binomial_cdf(count: int, n: int, p: float) -> float:
    """The chance that ``n`` draws with chance ``p`` give at most ``count``."""
    # scipy.stats has this too, and takes a second to import, which every command that measures would wait for;
    # scipy.special's own binomial functions lose digits for millions of draws, its beta function does not.
    from scipy.special import betainc

    if count < 0:
        return 0.0
    return 1.0 if count >= n else float(betainc(n - count, count + 1, 1 - p))


def binomial_sf(count: int, n: int, p: float) -> float:
    """The chance of more than ``count``, with all its digits where it is small."""
    from scipy.special import betainc

    if count < 0:
        return 1.0
    return 0.0 if count >= n else float(betainc(count + 1, n - count, p))


def _first(n: int, holds: Callable[[int], bool]) -> int:
    """The first count up to ``n`` for which ``holds``, which then holds for all above it."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def percentile_interval(ordered: Samples, q: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """A distribution-free confidence interval of a percentile, by order statistics (binomial ranks).

    None where the sample is too small to hold one: there is no rank above p99.9 in 100 samples.
    Source: David and Nagaraja, Order Statistics, 7.1.
    """
    n = int(ordered.size)
    if n == 0:
        return None
    tail = (1 - confidence) / 2
    low = binomial_quantile(tail, n, q)
    high = binomial_quantile(1 - tail, n, q) + 1
    if low < 1 or high > n:
        return None
    return float(ordered[low - 1]), float(ordered[high - 1])


def summarize(ordered: Samples) -> dict[str, float]:
    """p50, p90, p95, p99, p99_9, max and mean of an ascending sample that is not empty."""
    summary = {name: percentile(ordered, q) for name, q in PERCENTILES.items()}
    summary["max"] = float(ordered[-1])
    summary["mean"] = float(ordered.mean())
    return summary


def percentile_intervals(ordered: Samples) -> dict[str, tuple[float, float]]:
    """95 % intervals of the percentiles for which the ascending sample is large enough."""
    intervals = {name: percentile_interval(ordered, q) for name, q in PERCENTILES.items()}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def goodput(latency_s: Samples, failed: npt.NDArray[np.bool_], bound_s: float, duration_s: float) -> float:
    """Requests a second that succeeded within ``bound_s``."""
    return float(np.count_nonzero((latency_s <= bound_s) & ~failed) / duration_s)


def accepted_counts(n: int, p: float, alpha: float) -> tuple[int, int]:
    """The counts, both included, that an exact two-sided test of size ``alpha`` accepts of ``n`` draws with chance
    ``p``."""
    return binomial_quantile(alpha / 2, n, p), _first(n, lambda count: binomial_sf(count, n, p) <= alpha / 2)


def binomial_p_value(successes: int, n: int, p: float) -> float:
    """Of the exact two-sided binomial test (the sum of what is at most as likely as what came)."""
    from scipy.stats import binomtest

    return float(binomtest(successes, n, p).pvalue)


def fails_more_often(failed: int, n: int, base_failed: int, base_n: int) -> float:
    """The p value of Fisher's exact test that of ``n`` requests more failed than chance would have it, beside
    ``base_failed`` of ``base_n``."""
    from scipy.special import gammaln

    def log_choose(whole: int, parts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = gammaln(whole + 1) - gammaln(parts + 1) - gammaln(whole - parts + 1)
        return found

    total, bad = n + base_n, failed + base_failed
    counts = np.arange(failed, min(bad, n) + 1, dtype=np.float64)
    logs = log_choose(bad, counts) + log_choose(total - bad, n - counts) - log_choose(total, np.array([float(n)]))
    return min(1.0, float(np.exp(logs).sum()))


def draws_needed(p: float, resolution: float, alpha: float, power: float) -> int:
    """How many draws an exact test of size ``alpha`` needs to find, with chance ``power``, that ``p`` is off by
    ``resolution`` in either direction."""
    others = [other for other in (p - resolution, p + resolution) if 0 < other < 1] or [0.5]
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    spread = z_alpha * math.sqrt(p * (1 - p)) + z_power * max(math.sqrt(other * (1 - other)) for other in others)
    n = math.ceil((spread / resolution) ** 2)
    while True:
        low, high = accepted_counts(n, p, alpha)
        missed = max(binomial_cdf(high, n, other) - binomial_cdf(low - 1, n, other) for other in others)
        if missed <= 1 - power:
            return n
        n = math.ceil(n * 1.05)
