"""From what was sent and what was seen to lag, overshoot and flapping. Pure functions.

All series are by the second from the start of the load: index i is the second from i to i + 1. Lags are not: they are
taken from the moments at which pods were seen to be ready.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.kubernetes.kpa_settings import Settings
from harness.kubernetes.kserve import is_pod_ready
from harness.kubernetes.podwatch import PodChange
from harness.load.arrivals import Segment

Floats = npt.NDArray[np.float64]
PER_SECOND = 20
"""So finely the moment is known at which a planned load needs a pod."""
RESOLUTION_S = 0.1
"""A lag is known to this: the plan's steps, and the way of a change over the watch. Both only make it longer."""


@dataclass(frozen=True)
class Steps:
    """A number that changes now and then: from each of ``moments_s`` on it is the value beside it; one at least."""

    moments_s: Floats
    values: Floats

    def at(self, moment_s: float) -> float:
        place = int(np.searchsorted(self.moments_s, moment_s, side="right")) - 1
        return float(self.values[max(place, 0)])

    def by_second(self, seconds: int) -> Floats:
        return held(self.moments_s.tolist(), self.values.tolist(), seconds)


def ready_steps(changes: Sequence[PodChange], start_s: float) -> Steps:
    """The number of pods that are ready and stay, from ``start_s`` (of ``time.monotonic``); the changes of a watch."""
    ready: set[str] = set()
    moments, values = [-math.inf], [0.0]
    for change in changes:
        if change.type != "DELETED" and is_pod_ready(change.pod):
            ready.add(change.name)
        else:
            ready.discard(change.name)
        if len(ready) != values[-1]:
            moments.append(change.at_s - start_s)
            values.append(float(len(ready)))
    return Steps(np.array(moments), np.array(values))


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


def planned_rate(segments: Sequence[Segment], seconds: int, per_second: int = 1) -> Floats:
    """The mean rate of each second, or of so many parts of it, as it was asked for; 0 after the last segment. Shape
    (seconds × per_second,)."""
    fine = PER_SECOND
    moments = (np.arange(seconds * fine) + 0.5) / fine
    rates = np.zeros(moments.size)
    start = 0.0
    for segment in segments:
        here = (moments >= start) & (moments < start + segment.duration_s)
        share = (moments[here] - start) / segment.duration_s
        rates[here] = segment.start_per_s + share * (segment.end_per_s - segment.start_per_s)
        start += segment.duration_s
    return np.asarray(rates.reshape(seconds * per_second, -1).mean(axis=1), dtype=np.float64)


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


def lags(ideal: Floats, ready: Steps, load_s: float, per_second: int = PER_SECOND) -> list[Lag]:
    """For each number of pods beyond those that were ready at the start, up to the most that the load needed;
    ``ideal`` has ``per_second`` values a second."""
    within = math.ceil(load_s * per_second)
    start, most = int(ready.at(0.0)), int(ideal[:within].max())
    found = []
    for pods in range(start + 1, most + 1):
        needed_s = int(np.argmax(ideal >= pods)) / per_second
        lag_s: float | None = None
        if ready.at(needed_s) >= pods:
            lag_s = 0.0
        else:
            there = ready.moments_s[(ready.moments_s > needed_s) & (ready.values >= pods)]
            lag_s = float(there[0]) - needed_s if there.size else None
        found.append(Lag(pods, needed_s, lag_s))
    return found


def reversals(values: Floats) -> int:
    """How often a series turned round."""
    steps = np.diff(values)
    signs = np.sign(steps[steps != 0])
    return int((signs[1:] != signs[:-1]).sum())


def replica_seconds(pods: Floats) -> float:
    return float(pods.sum())


def first_below(ready: Steps, load_s: float, most: int) -> float | None:
    """Seconds from the end of the load until at most so many pods are ready, for good; None where that never came."""
    above = np.flatnonzero(ready.values > most)
    if not above.size:
        return 0.0
    if above[-1] == ready.values.size - 1:
        return None
    return max(0.0, float(ready.moments_s[above[-1] + 1]) - load_s)
