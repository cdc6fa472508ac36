"""Failed requests of a stage in runs of two sides: whether one side fails more often than chance explains. All
functions are pure.

Source: Fisher 1922 (exact test); Welch 1947; the correlation time is that of ``dependence.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.results.dependence import FEW, correlation_time
from harness.results.records import LoadResult, SampleBatch
from harness.results.stats import fails_more_often


@dataclass(frozen=True)
class Failed:
    """Failed requests of a stage. ``tau`` is the correlation time of the failures in requests, None where there are too
    few of them to tell."""

    count: int = 0
    requests: int = 0
    tau: float | None = None

    def independent(self, tau: float) -> tuple[int, int]:
        """So many failures of so many independent requests say as much."""
        count = max(round(self.count / tau), min(self.count, 1))
        return count, max(round(self.requests / tau), count)


def failures_of(load: LoadResult, batch: SampleBatch | None) -> Failed:
    if batch is None:
        return Failed(load.errors, load.requests)
    failed = batch.failed
    count = int(np.count_nonzero(failed))
    # Equal blocks leave out the last requests of a row, and backwards its first ones.
    tau = max(correlation_time(failed), correlation_time(failed[::-1])) if count >= FEW else None
    return Failed(max(count, load.errors), max(load.requests, len(batch)), tau)


def total(runs: Sequence[Failed]) -> tuple[int, int]:
    """Failures and requests of all of them."""
    return sum(run.count for run in runs), sum(run.requests for run in runs)


def chance_of_failures(base: Sequence[Failed], other: Sequence[Failed]) -> float:
    """The chance that runs like those of the baseline fail as often as those of the variant, a run each.

    By Fisher's exact test of independent requests: failures come in bursts (a pod that restarts), so that counts are
    divided by their correlation time, in runs with few failures by the longest of the others. Runs that differ among
    themselves tell more of chance between runs: where both sides have a spread, Welch's one-sided test of the runs'
    shares is made too, and the larger chance counts.
    """
    known = [run.tau for run in (*base, *other) if run.tau is not None]
    longest = max(known, default=1.0)
    sides = []
    for runs in (base, other):
        counts = [run.independent(longest if run.tau is None else run.tau) for run in runs if run.requests]
        sides.append((sum(count for count, _ in counts), sum(of for _, of in counts)))
    (bad_a, of_a), (bad_b, of_b) = sides
    return max(fails_more_often(bad_b, of_b, bad_a, of_a), _chance_of_shares(base, other))


def _chance_of_shares(base: Sequence[Failed], other: Sequence[Failed]) -> float:
    from scipy.special import stdtr

    a, b = (np.array([run.count / run.requests for run in runs if run.requests]) for runs in (base, other))
    if a.size < 2 or b.size < 2 or not np.ptp(a) or not np.ptp(b):
        return 0.0
    parts = [float(side.var(ddof=1)) / side.size for side in (a, b)]
    df = sum(parts) ** 2 / sum(part**2 / (side.size - 1) for part, side in zip(parts, (a, b), strict=True))
    return float(stdtr(df, -float(b.mean() - a.mean()) / math.sqrt(sum(parts))))
