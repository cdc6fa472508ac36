"""Arrival processes: when requests are due, drawn before the run. Pure and seeded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
ARRIVALS = ("constant", "poisson")


def due_times(kind: str, rate_per_s: float, duration_s: float, seed: int) -> Times:
    """Due times in nanoseconds from the start, ascending, all within ``duration_s``.

    ``constant`` spaces them evenly; ``poisson`` draws independent exponential gaps, so that their number varies around
    ``rate_per_s * duration_s``. Raises ValueError for an unknown kind, or when no request would be due at all.
    """
    if kind not in ARRIVALS:
        raise ValueError(f"unknown arrival process {kind!r}; expected one of {', '.join(ARRIVALS)}")
    if kind == "constant":
        count = int(rate_per_s * duration_s + 1e-9)
        times = np.arange(count) / rate_per_s
    else:
        generator = np.random.default_rng(seed)
        # Given their number, Poisson arrivals are uniform: exact, and no loop to guess how many gaps are enough.
        count = int(generator.poisson(rate_per_s * duration_s))
        times = np.sort(generator.random(count)) * duration_s
    if count == 0:
        raise ValueError(f"no request is due within {duration_s:g} s at {rate_per_s:g}/s; lengthen the stage or raise the rate")
    return np.asarray(np.round(times * 1e9), dtype=np.int64)
