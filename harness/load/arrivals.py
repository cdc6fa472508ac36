"""Arrival processes: when requests are due, drawn before the run. Pure and seeded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
ARRIVALS = ("constant", "poisson")


def due_times(kind: str, rate_per_s: float, duration_s: float, seed: int) -> Times:
    """Due times in nanoseconds from the start, ascending, all within ``duration_s``; ``rate * duration`` of them.

    ``constant`` spaces them evenly. ``poisson`` is a Poisson process given the number of its arrivals: independent
    uniform moments, so that the offered rate is met exactly and only the gaps are random. Raises ValueError for an
    unknown kind.
    """
    if kind not in ARRIVALS:
        raise ValueError(f"unknown arrival process {kind!r}; expected one of {', '.join(ARRIVALS)}")
    count = int(rate_per_s * duration_s + 0.5)
    if kind == "constant":
        times = np.arange(count) / rate_per_s
    else:
        times = np.sort(np.random.default_rng(seed).random(count)) * duration_s
    return np.rint(times * 1e9).astype(np.int64)
