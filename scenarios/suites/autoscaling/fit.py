"""Whether the desired number of pods is what Knative's autoscaler would want. Pure functions.

What the autoscaler saw is not known exactly: the generator counts a request from its sending to its answer, which is a
little more than the pods count, and scrapes and decisions have phases of their own. So the model runs for loads over a
range, and for every phase. Two neighbouring loads have to explain all that was seen between them, each second of it,
within the time that a decision takes to show: a load that is seen a tenth lower now and a tenth higher then explains
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from harness.kubernetes.kpa import TICK_S, Autoscaler
from harness.kubernetes.kpa_settings import Settings
from scenarios.suites.autoscaling.analysis import Floats, Watched, reversals

FACTORS = (1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Of the load that the generator saw, what the autoscaler may have seen."""
SHIFTS_S = (0, 1, -1)
"""So much later or earlier than the generator; and it decides in odd or in even seconds."""
EARLY_S, LATE_S = 1, 2
"""A decision takes so long to show in the status, and the poll to see it."""
SLACK_S = 2
"""So many seconds in a row may lie outside: what was scraped is never quite the same."""


@dataclass(frozen=True)
class Outside:
    """Seconds in a row, from the first to the last, in which the desired number is not the model's."""

    first: int
    last: int
    desired: tuple[int, int]
    wanted: tuple[int, int]
    """The least and the most of the desired number, and of what the model wants, in these seconds."""

    @property
    def seconds(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        def text(numbers: tuple[int, int]) -> str:
            return str(numbers[0]) if numbers[0] == numbers[1] else f"{numbers[0]} to {numbers[1]}"

        return (
            f"from {self.first} s to {self.last + 1} s {text(self.desired)} pods were desired, and the model wants"
            f" {text(self.wanted)}"
        )


@dataclass(frozen=True)
class Fit:
    """The runs of the model that explain what was seen best, and what they do not explain. ``low`` and ``high`` are the
    least and the most that they want around each second."""

    low: Floats
    high: Floats
    factors: tuple[float, float]
    moves: int
    """How often a run changes its mind at least: with none, there was nothing to agree on."""
    outside: tuple[Outside, ...]

    @property
    def longest_s(self) -> int:
        return max((item.seconds for item in self.outside), default=0)

    @property
    def agrees(self) -> bool:
        return self.longest_s <= SLACK_S


def decisions(settings: Settings, concurrency: Floats, ready: Floats, idle_s: int, parity: int) -> Floats:
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


def _runs(settings: Settings, watched: Watched, idle_s: int, shift: int, parity: int) -> Iterator[Floats]:
    """By factor."""
    for factor in FACTORS:
        seen = np.roll(watched.concurrency, shift) * factor
        if shift > 0:
            seen[:shift] = 0
        elif shift < 0:
            seen[shift:] = seen[shift - 1]
        yield decisions(settings, seen, watched.ready, idle_s, parity)


def most_reversals(settings: Settings, watched: Watched, idle_s: int) -> int:
    """How often the model turns round at most."""
    phases = product(SHIFTS_S, range(TICK_S))
    return max(reversals(run) for phase in phases for run in _runs(settings, watched, idle_s, *phase))


def best_fit(settings: Settings, watched: Watched, idle_s: int) -> Fit:
    best: Fit | None = None
    for shift, parity in product(SHIFTS_S, range(TICK_S)):
        runs = _runs(settings, watched, idle_s, shift, parity)
        for factors, pair in zip(pairwise(FACTORS), pairwise(runs), strict=True):
            low, high = _around(np.minimum(*pair), np.maximum(*pair))
            moves = min(int(np.count_nonzero(np.diff(run))) for run in pair)
            fit = Fit(low, high, factors, moves, _outside(watched.desired, low, high))
            if best is None or _badness(fit) < _badness(best):
                best = fit
            if not best.outside:
                return best
    assert best is not None
    return best


def _badness(fit: Fit) -> tuple[int, int]:
    return fit.longest_s, sum(item.seconds for item in fit.outside)


def _around(least: Floats, most: Floats) -> tuple[Floats, Floats]:
    """The least and the most from ``LATE_S`` before each second to ``EARLY_S`` after it."""

    def windows(values: Floats) -> Floats:
        padded = np.pad(values, (LATE_S, EARLY_S), mode="edge")
        return np.lib.stride_tricks.sliding_window_view(padded, LATE_S + EARLY_S + 1)

    # On the way to zero the last pod stays for the grace period, which is not the model's matter.
    return windows(least).min(axis=1), np.maximum(windows(most).max(axis=1), 1)


def _outside(desired: Floats, low: Floats, high: Floats) -> tuple[Outside, ...]:
    bad = np.concatenate([[False], (desired < low) | (desired > high), [False]])
    edges = np.flatnonzero(np.diff(bad.astype(np.int8)))
    found = []
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        here = slice(first, end)
        seen = (int(desired[here].min()), int(desired[here].max()))
        found.append(Outside(first, end - 1, seen, (int(low[here].min()), int(high[here].max()))))
    return tuple(found)
