"""Arrival processes: when requests are due, drawn before the run. Pure and seeded.

A rate over time is a row of linear segments; the process says how arrivals fall into it. Time is rescaled: arrivals
of unit rate are drawn first and mapped through the inverse of the cumulative rate, so that every process follows every
rate.
Source: Daley and Vere-Jones, An Introduction to the Theory of Point Processes, 7.4 (random time change).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
ARRIVALS = ("constant", "poisson", "gamma")
SINE_STEPS = 64


@dataclass(frozen=True)
class Segment:
    """A linear piece of the rate over time, in requests a second; ``start == end`` is a constant rate."""

    duration_s: float
    start_per_s: float
    end_per_s: float

    @property
    def arrivals(self) -> float:
        return self.duration_s * (self.start_per_s + self.end_per_s) / 2


def steady(rate_per_s: float, duration_s: float) -> list[Segment]:
    return [Segment(duration_s, rate_per_s, rate_per_s)]


def ramp(start_per_s: float, end_per_s: float, duration_s: float) -> list[Segment]:
    return [Segment(duration_s, start_per_s, end_per_s)]


def steps(rates_per_s: Sequence[float], duration_s: float) -> list[Segment]:
    """Each rate for an equal share of the time."""
    return [Segment(duration_s / len(rates_per_s), rate, rate) for rate in rates_per_s]


def spike(base_per_s: float, peak_per_s: float, width_s: float, duration_s: float) -> list[Segment]:
    """The peak stands in the middle of the time."""
    side = (duration_s - width_s) / 2
    if side <= 0:
        raise ValueError(f"a spike of {width_s:g} s does not fit into {duration_s:g} s")
    return [
        Segment(side, base_per_s, base_per_s),
        Segment(width_s, peak_per_s, peak_per_s),
        Segment(side, base_per_s, base_per_s),
    ]


def pulse(base_per_s: float, peak_per_s: float, width_s: float, period_s: float, duration_s: float) -> list[Segment]:
    """Peaks that come again and again, the first one at the end of the first period's calm."""
    calm = period_s - width_s
    if calm <= 0 or period_s > duration_s:
        raise ValueError(f"pulses of {width_s:g} s every {period_s:g} s do not fit into {duration_s:g} s")
    whole = int(duration_s // period_s)
    segments = [Segment(calm, base_per_s, base_per_s), Segment(width_s, peak_per_s, peak_per_s)] * whole
    rest = duration_s - whole * period_s
    return [*segments, Segment(rest, base_per_s, base_per_s)] if rest > 1e-9 else segments


def sine(mean_per_s: float, amplitude_per_s: float, period_s: float, duration_s: float) -> list[Segment]:
    """A day in short: it begins at the mean and rises. Linear pieces, 64 a period."""
    if not 0 <= amplitude_per_s <= mean_per_s:
        raise ValueError(f"expected an amplitude of at most the mean, {mean_per_s:g}/s, got {amplitude_per_s:g}/s")
    count = max(1, math.ceil(duration_s / period_s * SINE_STEPS))
    edges = np.linspace(0, duration_s, count + 1)
    rates = mean_per_s + amplitude_per_s * np.sin(2 * np.pi * edges / period_s)
    return [Segment(duration_s / count, float(a), float(b)) for a, b in itertools.pairwise(rates)]


def due_times(kind: str, segments: Sequence[Segment], seed: int, burstiness: float = 1.0) -> Times:
    """Due times in nanoseconds from the start, ascending; as many as the rate integrates to.

    ``constant`` spaces arrivals evenly (in rescaled time). ``poisson`` and ``gamma`` are renewal processes given the
    number of their arrivals, so that the offered rate is met exactly and only the gaps are random; ``burstiness`` is
    the coefficient of variation of gamma's gaps: 1 is Poisson, above it comes in bursts, below it is more regular.
    Raises ValueError.
    """
    if kind not in ARRIVALS:
        raise ValueError(f"unknown arrival process {kind!r}; expected one of {', '.join(ARRIVALS)}")
    if burstiness <= 0:
        raise ValueError(f"expected a burstiness above 0, got {burstiness:g}")
    if any(segment.start_per_s < 0 or segment.end_per_s < 0 or segment.duration_s <= 0 for segment in segments):
        raise ValueError("expected rates of 0/s or more, for more than 0 s")
    total = sum(segment.arrivals for segment in segments)
    count = int(total + 0.5)
    generator = np.random.default_rng(seed)
    if kind == "constant":
        places = np.arange(count) * (total / max(count, 1))
    elif kind == "poisson" or burstiness == 1:
        places = np.sort(generator.random(count)) * total
    else:
        shape = 1 / burstiness**2
        gaps = generator.gamma(shape, 1 / shape, count + 1)
        places = np.cumsum(gaps)[:count] * (total / gaps.sum())
    times: Times = np.rint(_times_at(places, segments) * 1e9).astype(np.int64)
    return times


def _times_at(places: npt.NDArray[Any], segments: Sequence[Segment]) -> npt.NDArray[np.float64]:
    """When the cumulative rate reaches each place: the inverse of a piecewise quadratic function."""
    times = np.empty_like(places)
    begun_s, reached = 0.0, 0.0
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        inside = (places >= reached) & ((places < reached + segment.arrivals) | last)
        more = places[inside] - reached
        slope = (segment.end_per_s - segment.start_per_s) / segment.duration_s
        if abs(slope) < 1e-12:
            offsets = more / segment.start_per_s if segment.start_per_s else np.zeros_like(more)
        else:
            # x of  start x + slope x²/2 = more, in the form that does not cancel for small slopes
            root = np.sqrt(np.maximum(segment.start_per_s**2 + 2 * slope * more, 0))
            offsets = np.divide(2 * more, segment.start_per_s + root, out=np.zeros_like(more), where=more > 0)
        times[inside] = begun_s + np.minimum(offsets, segment.duration_s)
        begun_s += segment.duration_s
        reached += segment.arrivals
    return times


def trace_times(lines: Sequence[str]) -> Times:
    """Due times from a trace: a time in seconds first on each line, ascending; a heading is skipped. Counted from the
    first. Raises ValueError with the line's number."""
    seconds: list[float] = []
    for number, line in enumerate(lines, 1):
        text = line.split(",")[0].strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            if not seconds and number == 1:
                continue
            raise ValueError(f"line {number}: expected a time in seconds, got {text!r}") from None
        if not math.isfinite(value) or (seconds and value < seconds[-1]):
            raise ValueError(
                f"line {number}: the trace goes backwards: {text} after {seconds[-1]:g}"
                if seconds
                else f"line {number}: {text}"
            )
        seconds.append(value)
    if not seconds:
        raise ValueError("the trace holds no time")
    array = np.array(seconds)
    times: Times = np.rint((array - array[0]) * 1e9).astype(np.int64)
    return times
