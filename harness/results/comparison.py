"""Is B faster than A? Ratios of two variants from blocks of each, with an interval and a verdict. All functions are
pure.

The unit is a block, not a request: requests of one block share what disturbed it, so that a thousand of them are not a
thousand observations. Blocks that were taken side by side are compared pair by pair (``paired_ratio``), which drift
cannot move. Of separate runs the unit is the run (``between_runs``): what changed between runs is the same for all
blocks of one. Blocks of one run on each side (``unpaired_ratio``) say how these two differ, and nothing of others.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 12.5 (bootstrap-t); Welch 1947; Schuirmann 1987
(equivalence by an interval within margins); Bonferroni for several metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from harness.results.records import Comparison
from harness.results.stats import PERCENTILES, fails_more_often

RESAMPLES = 4000
LEAST_BLOCKS = 6
"""Below this no interval promises what it holds."""
BOOTSTRAP_BLOCKS = 10
LEAST_RUNS = 2
STEP = math.sqrt(12)
"""A step, in standard deviations of what lies anywhere within it."""
NO_SPREAD = 1e-9
"""Logarithms of values that are the same differ by less."""
CONFIDENCE = 0.95
QUANTILES = {name: q for name, q in PERCENTILES.items() if name != "p99_9"}
"""Of a block, which is too small for more."""
MARGIN = 0.05
Values = npt.NDArray[np.float64]


class Verdict(StrEnum):
    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    DESCRIPTIVE = "descriptive"
    """One run a side: figures, and nothing that could be said of chance between runs."""


@dataclass(frozen=True)
class Ratio:
    """Of the variant over the baseline. ``needed`` is how many blocks of each would decide it, 0 where it is decided;
    ``spread`` is the standard deviation of the logarithm of one block's ratio."""

    ratio: float
    low: float
    high: float
    verdict: Verdict
    blocks: int
    needed: int
    spread: float


def interleaved(variants: int, rounds: int, seed: int) -> list[int]:
    """Which variant each block is of: every round holds all of them once, in an order that is drawn, and the round
    after it has them the other way round (ABBA), so that a drift over two rounds moves none of them. Deterministic."""
    generator = np.random.default_rng(seed)
    order: list[int] = []
    for place in range(rounds):
        drawn = [int(item) for item in generator.permutation(variants)] if place % 2 == 0 else order[-variants:][::-1]
        order += drawn
    return order


def paired_ratio(
    baseline: Sequence[float],
    variant: Sequence[float],
    *,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    seed: int = 1,
    higher_is_better: bool = False,
) -> Ratio:
    """One value a block, of pairs that were taken one after the other. Raises ValueError for too few of them.

    A value that failed is infinite, and no ratio holds it: then the numbers of blocks that failed are compared. Blocks
    of one round fail together more often than others, which makes that test the more careful.
    """
    if len(baseline) != len(variant):
        raise ValueError(f"expected as many blocks of each, got {len(baseline)} and {len(variant)}")
    failed_a, failed_b = infinite(baseline), infinite(variant)
    if failed_a or failed_b:
        _above_zero(baseline), _above_zero(variant)
        found = _by_failures(failed_a, len(baseline), failed_b, len(variant), 1 - confidence)
        # A variant that failed in some block has not shown that it is faster.
        return replace(found, verdict=Verdict.UNDECIDED) if failed_b and found.verdict is Verdict.FASTER else found
    logs = _logs(variant) - _logs(baseline)
    n = int(logs.size)
    mean, spread = float(logs.mean()), float(logs.std(ddof=1))
    low, high = _studentized(mean, spread / math.sqrt(n), _resampled(logs, seed), confidence, n)
    return _decide(mean, low, high, n, spread, margin, confidence, higher_is_better)


def unpaired_ratio(
    baseline: Sequence[float],
    variant: Sequence[float],
    *,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    seed: int = 1,
    higher_is_better: bool = False,
) -> Ratio:
    """One value a block, of two runs that have nothing to do with each other. Raises ValueError for too few."""
    a, b = _logs(baseline), _logs(variant)
    mean = float(b.mean() - a.mean())
    error = math.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size)
    (means_a, spreads_a), (means_b, spreads_b) = _draw(a, seed), _draw(b, seed + 1)
    centres = means_b - means_a
    errors = np.sqrt(spreads_a**2 / a.size + spreads_b**2 / b.size)
    n = int(min(a.size, b.size))
    low, high = _studentized(mean, error, _t_values(centres - mean, errors), confidence, n)
    return _decide(mean, low, high, n, error * math.sqrt(n), margin, confidence, higher_is_better)


def between_runs(
    baseline: Sequence[float],
    variant: Sequence[float],
    *,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    higher_is_better: bool = False,
    resolution: float = 0.0,
) -> Ratio:
    """One value a run, two runs a side at least (ValueError otherwise): Welch's interval on logarithms.

    A value that failed is infinite, and no ratio holds it: then the numbers of runs that failed are compared. A run's
    logarithm is not known better than to ``resolution`` (a standard deviation), however alike the runs came out. Values
    that are the same in all runs of a side tell nothing of their spread: the side takes that of the other one, and
    where both are so there is no interval.
    """
    n = min(len(baseline), len(variant))
    if n < LEAST_RUNS:
        raise ValueError(f"expected at least {LEAST_RUNS} runs of each, got {n}")
    a, b = np.asarray(baseline, dtype=np.float64), np.asarray(variant, dtype=np.float64)
    if np.isnan(a).any() or np.isnan(b).any() or (a < 0).any() or (b < 0).any():
        raise ValueError("expected values of 0 or more in every run")
    # A rate of zero failed as a time without end did.
    failed_a, failed_b = (int((~np.isfinite(side) | (side == 0)).sum()) for side in (a, b))
    if failed_a or failed_b:
        return _by_failures(failed_a, a.size, failed_b, b.size, 1 - confidence)
    from scipy.special import stdtrit

    logs_a, logs_b = np.log(a), np.log(b)
    mean = float(logs_b.mean() - logs_a.mean())
    sizes = (a.size, b.size)
    seen = [max(float(side.std(ddof=1)), resolution) for side in (logs_a, logs_b)]
    widest = max(seen)
    if widest <= NO_SPREAD:
        return Ratio(math.exp(mean), math.nan, math.nan, Verdict.UNDECIDED, n, 0, math.nan)
    told = [spread > NO_SPREAD for spread in seen]
    parts = [(spread if known else widest) ** 2 / size for spread, size, known in zip(seen, sizes, told, strict=True)]
    error = math.sqrt(sum(parts))
    # A side whose spread is borrowed adds no degrees of freedom.
    known_parts = [(part, size - 1) for part, size, known in zip(parts, sizes, told, strict=True) if known]
    df = sum(part for part, _ in known_parts) ** 2 / sum(part**2 / free for part, free in known_parts)
    half = float(stdtrit(df, 1 - (1 - confidence) / 2)) * error
    # All runs of a side may lie at the same place of a step, so that more of them do not find a smaller difference.
    half = max(half, (1 - 1e-9) * STEP * resolution)
    spread = error * math.sqrt(n)
    return _decide(mean, mean - half, mean + half, n, spread, margin, confidence, higher_is_better)


def _by_failures(failed_a: int, n_a: int, failed_b: int, n_b: int, alpha: float) -> Ratio:
    verdict = Verdict.UNDECIDED
    if fails_more_often(failed_b, n_b, failed_a, n_a) <= alpha / 2:
        verdict = Verdict.SLOWER
    elif fails_more_often(failed_a, n_a, failed_b, n_b) <= alpha / 2:
        verdict = Verdict.FASTER
    return Ratio(math.nan, math.nan, math.nan, verdict, min(n_a, n_b), 0, math.nan)


def infinite(values: Sequence[float]) -> int:
    """How many of them failed."""
    return int(np.isinf(np.asarray(values, dtype=np.float64)).sum())


def _above_zero(values: Sequence[float]) -> Values:
    found = np.asarray(values, dtype=np.float64)
    if found.size < LEAST_BLOCKS:
        raise ValueError(f"expected at least {LEAST_BLOCKS} blocks of each, got {found.size}")
    if not (found > 0).all():
        raise ValueError("expected values above 0 in every block")
    return found


def _logs(values: Sequence[float]) -> Values:
    found = _above_zero(values)
    if not np.isfinite(found).all():
        raise ValueError("expected values that are finite in every block")
    return np.log(found)


def _draw(logs: Values, seed: int) -> tuple[Values, Values]:
    """Mean and standard deviation of each resample of the blocks."""
    places = np.random.default_rng(seed).integers(0, logs.size, size=(RESAMPLES, logs.size))
    drawn = logs[places]
    return drawn.mean(axis=1), drawn.std(axis=1, ddof=1)


def _resampled(logs: Values, seed: int) -> Values:
    means, spreads = _draw(logs, seed)
    return _t_values(means - logs.mean(), spreads / math.sqrt(logs.size))


def _t_values(differences: Values, errors: Values) -> Values:
    """Without the resamples that happen to hold one block only, whose error is none."""
    fine = errors > 1e-12
    return differences[fine] / errors[fine]


def _studentized(mean: float, error: float, t_values: Values, confidence: float, n: int) -> tuple[float, float]:
    """An interval on the scale of logarithms. With few blocks some resamples hold one block many times over, and their
    quotients say nothing: Student's distribution stands in their place then."""
    if error <= 1e-12:
        return mean, mean  # all blocks gave the same: nothing varies
    tail = (1 - confidence) / 2
    if n < BOOTSTRAP_BLOCKS:
        from scipy.special import stdtrit

        upper = float(stdtrit(n - 1, 1 - tail))
        lower = -upper
    else:
        upper, lower = np.quantile(t_values, [1 - tail, tail])
    return mean - float(upper) * error, mean - float(lower) * error


def _decide(
    mean: float,
    low: float,
    high: float,
    n: int,
    spread: float,
    margin: float,
    confidence: float,
    higher_is_better: bool,
) -> Ratio:
    bound = math.log1p(margin)
    if -bound <= low and high <= bound:
        verdict = Verdict.EQUIVALENT
    elif low > 0:
        verdict = Verdict.FASTER if higher_is_better else Verdict.SLOWER
    elif high < 0:
        verdict = Verdict.SLOWER if higher_is_better else Verdict.FASTER
    else:
        verdict = Verdict.UNDECIDED
    needed = 0
    if verdict is Verdict.UNDECIDED:
        # Either the interval leaves 1, or it fits within the margin: whichever needs less.
        target = max(abs(mean), bound - abs(mean))
        half = (high - low) / 2
        needed = max(n + 1, math.ceil(n * (half / target) ** 2)) if target > 0 else 0
    return Ratio(math.exp(mean), math.exp(low), math.exp(high), verdict, n, needed, spread)


def compared(
    ratio: Ratio,
    baseline_values: Sequence[float],
    variant_values: Sequence[float],
    *,
    confidence: float,
    margin: float,
    paired: bool,
    replicates: str = "blocks",
    **what: str,
) -> Comparison:
    """The record of a ratio; ``what`` are the fields that say of whom and of what it is."""
    return Comparison(
        **what,
        baseline_value=float(np.median(baseline_values)),
        variant_value=float(np.median(variant_values)),
        ratio=ratio.ratio,
        low=ratio.low,
        high=ratio.high,
        confidence=confidence,
        margin=margin,
        verdict=str(ratio.verdict),
        blocks=ratio.blocks,
        needed=ratio.needed,
        paired=paired,
        replicates=replicates,
    )


def corrected(confidence: float, metrics: int) -> float:
    """The confidence of each of several intervals, so that all of them together hold with ``confidence``."""
    return 1 - (1 - confidence) / max(metrics, 1)
