"""Percentiles so far, for whoever watches: counts of latencies in bins that are 2 % wide. No result comes from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

BINS_PER_DOUBLING = 32


def bins_of(latency_ns: npt.NDArray[np.int64], weight: int = 1) -> dict[int, int]:
    """How many latencies lie in each bin, times ``weight``."""
    places = np.floor(np.log2(np.maximum(latency_ns, 1)) * BINS_PER_DOUBLING).astype(np.int64)
    found, counts = np.unique(places, return_counts=True)
    return {int(place): int(count) * weight for place, count in zip(found, counts, strict=True)}


def percentile_of(bins: Mapping[int, int], q: float) -> float | None:
    """In seconds, the middle of the bin that it lies in; None of no latencies."""
    total = sum(bins.values())
    if not total:
        return None
    rank, seen = max(1, math.ceil(q * total)), 0
    for place in sorted(bins):
        seen += bins[place]
        if seen >= rank:
            break
    return float(2 ** ((place + 0.5) / BINS_PER_DOUBLING)) / 1e9
