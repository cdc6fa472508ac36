"""The candidate against the version that serves, on the requests that the split gave to each. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.stats import PERCENTILES, binomial_p_value, percentile, percentile_interval, wilson
from harness.units import format_duration

Latencies = npt.NDArray[np.float64]
COMPARED = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Slower:
    """The candidate's latency over the other's at one percentile; ``least`` is what the ratio surely is."""

    percentile: str
    candidate_s: float
    stable_s: float
    ratio: float
    least: float

    def text(self) -> str:
        return (
            f"{self.percentile} {format_duration(self.candidate_s)} against {format_duration(self.stable_s)}:"
            f" {self.ratio:.2f} times (at least {self.least:.2f})"
        )


def compare_latency(candidate: Latencies, stable: Latencies) -> list[Slower]:
    """At each percentile for which both samples are large enough to have a confidence interval (95 %)."""
    ones, others = np.sort(candidate), np.sort(stable)
    found = []
    for name in COMPARED:
        q = PERCENTILES[name]
        one, other = percentile_interval(ones, q), percentile_interval(others, q)
        if one is None or other is None:
            continue
        here, there = percentile(ones, q), percentile(others, q)
        found.append(Slower(name, here, there, here / max(there, 1e-9), one[0] / max(other[1], 1e-9)))
    return found


def surely_slower(compared: list[Slower], limit: float) -> Slower | None:
    """The worst of those whose interval is wholly above the limit."""
    worse = [item for item in compared if item.least > limit]
    return max(worse, key=lambda item: item.least, default=None)


@dataclass(frozen=True)
class Errors:
    """Failures that came while the candidate had a part of the traffic, beside what there was before it."""

    failed: int
    answered: int
    """By the candidate."""
    share: float
    """Of the candidate's requests, if the failures beyond the usual are its own."""
    least: float
    """What the share surely is (95 %)."""


def candidate_errors(failed: int, total: int, answered: int, usual_share: float) -> Errors:
    """A request that failed does not say who failed it: what is usual is taken off, the rest is the candidate's."""
    own = max(0, failed - round(usual_share * total))
    seen = answered + own
    return Errors(failed, answered, own / seen if seen else 0.0, wilson(own, seen)[0] if own else 0.0)


def split_p_value(candidate: int, total: int, percent: float) -> float:
    return binomial_p_value(candidate, total, percent / 100)
