"""Latencies of queues whose percentiles are known."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
WARM = 2000
"""Requests before those that count, so that the queue is as full as it usually is."""


def mm1(load: float, requests: int, generator: np.random.Generator) -> Samples:
    """Response times of an M/M/1 queue (mean service time 1), first come first served, by Lindley's recursion."""
    count = requests + WARM
    service = generator.exponential(1.0, count)
    between = generator.exponential(1 / load, count)
    walk = np.concatenate([[0.0], np.cumsum(service - between)[:-1]])
    waits = walk - np.minimum(np.minimum.accumulate(walk), 0)
    found: Samples = (waits + service)[WARM:]
    return found


def mm1_beyond(load: float, share: float) -> float:
    """The response time that a share of all requests exceeds."""
    return -math.log(share) / (1 - load)
