"""A load stage as the suite is asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.base.errors import UsageError
from harness.base.protocols import Protocol
from harness.load import arrivals
from harness.results.slo import Objective

LEAD_IN_S = 1.0
"""Sent before the measured part where the service was warmed up until it was steady: connections are opened in it."""


@dataclass(frozen=True)
class Plan:
    """Exactly one of ``rate_per_s``, ``segments``, ``trace`` (open loops) and ``concurrency`` (a closed loop) is set.

    ``warmup_s`` None warms up until the service is steady.
    """

    name: str
    duration_s: float = 0.0
    rate_per_s: float | None = None
    segments: tuple[arrivals.Segment, ...] = ()
    shape: str = ""
    """How people wrote the segments."""
    trace: Path | None = None
    concurrency: int | None = None
    most_throughput: bool = False
    """Search the number of clients first that brings the highest throughput; ``concurrency`` is where it begins."""
    think_s: float = 0.0
    arrivals: str = "poisson"
    burstiness: float = 1.0
    warmup_s: float | None = 1.0
    protocol: Protocol = "rest"
    timeout_s: float = 10.0
    connections: int = 256
    processes: int = 1
    workers: str = ""
    """``locust://`` address at which workers on other machines are waited for; empty: processes on this one."""
    seed: int = 1
    objectives: tuple[Objective, ...] = ()

    @property
    def open_loop(self) -> bool:
        return self.concurrency is None

    @property
    def steady(self) -> bool:
        """Whether the same load is offered all the time."""
        return not self.segments and self.trace is None

    @property
    def lead_in_s(self) -> float:
        """Sent before the measured part, in the same stage."""
        return LEAD_IN_S if self.warmup_s is None else self.warmup_s

    @cached_property
    def measured_ns(self) -> npt.NDArray[np.int64]:
        """Due times of the measured part of an open loop, from its start. Raises UsageError."""
        try:
            if self.trace is not None:
                return arrivals.trace_times(self.trace.read_text().splitlines())
            segments = self.segments or arrivals.steady(self.rate_per_s or 0.0, self.duration_s)
            due = arrivals.due_times(self.arrivals, segments, self.seed, self.burstiness)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.trace or self.name}: {error}") from error
        if due.size == 0:
            raise UsageError(f"{self.name}: no request is due; lengthen the stage or raise the rate")
        return due

    @property
    def length_s(self) -> float:
        """Of the measured part."""
        if self.trace is None:
            return self.duration_s
        return max(float(self.measured_ns[-1]) / 1e9, 1e-3)

    def due_ns(self) -> npt.NDArray[np.int64]:
        """Warm-up included: it goes at the rate with which the measured part begins."""
        measured = self.measured_ns
        if not self.lead_in_s:
            return measured
        return np.concatenate([self.opening_ns(self.lead_in_s), measured + int(self.lead_in_s * 1e9)])

    def opening_ns(self, duration_s: float) -> npt.NDArray[np.int64]:
        """Due times at the rate with which the measured part begins."""
        first = self.segments[0].start_per_s if self.segments else self.measured_ns.size / self.length_s
        return arrivals.due_times(self.arrivals, arrivals.steady(first, duration_s), self.seed + 1, self.burstiness)

    @property
    def mean_rate_per_s(self) -> float | None:
        return self.measured_ns.size / self.length_s if self.open_loop else None

    @property
    def check_every(self) -> int:
        """One answer in so many is inspected: about 500 of a stage, and of a short one every third."""
        requests = self.measured_ns.size if self.open_loop else 1000 * self.duration_s
        return max(3, round(requests / 500))

    def describe(self) -> str:
        if self.concurrency is not None:
            thinking = f", thinking {self.think_s:g} s" if self.think_s else ""
            found = ", the fewest with the highest throughput" if self.most_throughput else ""
            return f"{self.concurrency} clients (closed loop{thinking}{found})"
        if self.trace is not None:
            return f"trace {self.trace.name}"
        process = f"gamma, burstiness {self.burstiness:g}" if self.arrivals == "gamma" else self.arrivals
        return f"{self.shape or f'{self.rate_per_s:g}/s'} {process}"
