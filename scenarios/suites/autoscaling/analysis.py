"""From what was sent and what was seen to lag, overshoot, flapping and the model's band. Pure functions.

All series are by the second from the start of the load: index i is the second from i to i + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from harness.kpa import TICK_S, Autoscaler
from harness.kpa_settings import Settings
from harness.load.arrivals import Segment

Floats = npt.NDArray[np.float64]
FACTORS = (0.75, 1.0, 1.25)
SHIFTS_S = (-1, 0, 1)
"""The band: what the model does when it sees a quarter less or more than we do, a second earlier or later, and decides
in odd or in even seconds."""
EARLY_S, LATE_S = 3, 5
"""A decision takes so long to show in the status, and the poll to see it."""


@dataclass(frozen=True)
class Watched:
    """Shapes: (seconds,) of each. ``desired`` and ``ready`` are the last that were seen in the second; ``offered``
    counts requests that were due, ``concurrency`` is the average of requests under way."""

    offered: Floats
    concurrency: Floats
    desired: Floats
    ready: Floats
    load_s: float
    """How long the load went on; what comes after it is the way back."""

    @property
    def seconds(self) -> int:
        return int(self.offered.size)

    @property
    def per_pod(self) -> Floats:
        """Concurrency; while no pod is ready, what waits for one."""
        return np.asarray(self.concurrency / np.maximum(self.ready, 1), dtype=np.float64)


def concurrency_by_second(sent_s: Floats, done_s: Floats, seconds: int) -> Floats:
    """The average number of requests between ``sent_s`` and ``done_s`` in each second; shapes (requests,) in,
    (seconds,) out."""
    grid = np.arange(seconds + 1, dtype=np.float64)

    def passed(moments: Floats) -> Floats:
        """The sum over all moments before t of the time since, at each t of the grid."""
        ordered = np.sort(moments)
        count = np.searchsorted(ordered, grid)
        total = np.concatenate([[0.0], np.cumsum(ordered)])
        return np.asarray(count * grid - total[count], dtype=np.float64)

    return np.asarray(np.diff(passed(sent_s) - passed(done_s)), dtype=np.float64)


def held(moments_s: Sequence[float], values: Sequence[float], seconds: int) -> Floats:
    """A value by the second from readings at some moments: the last one before the second's end."""
    places = np.searchsorted(np.asarray(moments_s), np.arange(1, seconds + 1), side="right") - 1
    return np.asarray(values, dtype=np.float64)[np.clip(places, 0, len(values) - 1)]


def smoothed(values: Floats, width: int) -> Floats:
    """Means over the last ``width`` seconds, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, values.size + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), dtype=np.float64)


def planned_rate(segments: Sequence[Segment], seconds: int) -> Floats:
    """The mean rate of each second, as it was asked for; 0 after the last segment. Shape (seconds,)."""
    fine = 20
    moments = (np.arange(seconds * fine) + 0.5) / fine
    rates = np.zeros(moments.size)
    start = 0.0
    for segment in segments:
        here = (moments >= start) & (moments < start + segment.duration_s)
        share = (moments[here] - start) / segment.duration_s
        rates[here] = segment.start_per_s + share * (segment.end_per_s - segment.start_per_s)
        start += segment.duration_s
    return np.asarray(rates.reshape(seconds, fine).mean(axis=1), dtype=np.float64)


def ideal_pods(rate_per_s: Floats, service_s: float, settings: Settings) -> Floats:
    """What a load needs at the target, if a request takes ``service_s``; at least one while there is load."""
    load = rate_per_s if settings.metric == "rps" else rate_per_s * service_s
    wished = np.maximum(np.ceil(load / settings.spec.target_value - 1e-6), np.where(rate_per_s > 0, 1, 0))
    return np.array([settings.bounded(int(value)) for value in wished], dtype=np.float64)


@dataclass(frozen=True)
class Lag:
    """From the moment that a number of pods was needed until it was ready; None where it never was."""

    pods: int
    needed_s: float
    lag_s: float | None


def lags(ideal: Floats, ready: Floats, load_s: float) -> list[Lag]:
    """For each number of pods beyond those that were ready at the start, up to the most that the load needed."""
    within = math.ceil(load_s)
    start, most = int(ready[0]), int(ideal[:within].max())
    found = []
    for pods in range(start + 1, most + 1):
        needed = int(np.argmax(ideal >= pods))
        there = np.flatnonzero(ready[needed:] >= pods)
        found.append(Lag(pods, float(needed), float(there[0]) if there.size else None))
    return found


def reversals(values: Floats) -> int:
    """How often a series turned round."""
    steps = np.diff(values)
    signs = np.sign(steps[steps != 0])
    return int((signs[1:] != signs[:-1]).sum())


def model(settings: Settings, concurrency: Floats, ready: Floats, idle_s: int, parity: int) -> Floats:
    """What Knative's autoscaler wants in each second, if it sees this; ``idle_s`` seconds without load came before."""
    autoscaler = Autoscaler(settings.spec, 0, float(-idle_s))
    wanted = np.empty(concurrency.size)
    desired = float(ready[0])
    for second in range(-idle_s, concurrency.size):
        value = float(concurrency[second]) if second >= 0 else 0.0
        pods = int(ready[max(second, 0)])
        if pods or value:
            autoscaler.record(float(second), value)
        if second >= 0 and second % TICK_S == parity:
            decision = autoscaler.decide(float(second), pods)
            if decision.valid:
                desired = float(settings.bounded(decision.desired))
        if second >= 0:
            wanted[second] = desired
    return wanted


def band(settings: Settings, watched: Watched, idle_s: int) -> tuple[Floats, Floats, int]:
    """The least and the most that the model wants around each second, and how often it turns round at most."""
    runs = []
    for factor, shift, parity in product(FACTORS, SHIFTS_S, range(TICK_S)):
        seen = np.roll(watched.concurrency, shift) * factor
        if shift > 0:
            seen[:shift] = 0
        runs.append(model(settings, seen, watched.ready, idle_s, parity))
    all_runs = np.array(runs)
    low, high = all_runs.min(axis=0), all_runs.max(axis=0)
    wide_low, wide_high = low.copy(), high.copy()
    for second in range(low.size):
        here = slice(max(0, second - LATE_S), second + EARLY_S + 1)
        wide_low[second], wide_high[second] = low[here].min(), high[here].max()
    # On the way to zero the last pod stays for the grace period, which is not the model's matter.
    return wide_low, np.maximum(wide_high, 1), max(reversals(run) for run in runs)


def agreement(desired: Floats, low: Floats, high: Floats) -> float:
    """The share of seconds in which the desired number lies in the band."""
    return float(((desired >= low) & (desired <= high)).mean())


def replica_seconds(pods: Floats) -> float:
    return float(pods.sum())


def first_below(ready: Floats, load_s: float, most: int) -> float | None:
    """Seconds from the end of the load until at most so many pods are ready, for good; None where that never came."""
    after = ready[math.ceil(load_s) :]
    if not after.size:  # the last reading was within the second in which the load ended
        return 0.0 if ready[-1] <= most else None
    above = np.flatnonzero(after > most)
    if above.size and above[-1] == after.size - 1:
        return None
    return float(above[-1] + 1) if above.size else 0.0
