"""Knative's pod autoscaler (KPA): how many pods a revision should have, from what was scraped of its pods.

Pure: no clock, no I/O; whoever calls it says what time it is. The embedded cluster scales by it, and the autoscaling
suite judges other clusters by it; recorded decisions of Knative's own autoscaler judge it.

Source: knative/serving, pkg/autoscaler/scaling/autoscaler.go, pkg/autoscaler/aggregation/bucketing.go and
pkg/autoscaler/aggregation/max; docs/scaling/SYSTEM.md.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

GRANULARITY_S = 1
TICK_S = 2
"""Between two decisions; metrics are scraped into buckets of ``GRANULARITY_S``."""
PRECISION = 10**6
INT32_LEAST = -(1 << 31)


@dataclass(frozen=True)
class Spec:
    """Values are per pod, rates factors, the panic threshold a factor of the ready pods."""

    target_value: float = 70.0
    """What a pod should get: the target × the target utilization."""
    total_value: float = 100.0
    """What a pod can take."""
    target_burst_capacity: float = 211.0
    """-1 keeps the activator in the path, 0 leaves it out but for scaling from zero."""
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    scale_down_delay_s: float = 0.0
    activation_scale: int = 0
    reachable: bool = True
    """Whether a route leads to the revision; one that none leads to may scale down at once."""

    def __post_init__(self) -> None:
        positive = ("target_value", "total_value", "max_scale_up_rate", "max_scale_down_rate", "panic_threshold")
        for name in (*positive, "stable_window_s", "panic_window_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)!r}")
        if self.scale_down_delay_s < 0 or self.target_burst_capacity < -1:
            raise ValueError(
                "expected a scale_down_delay_s of 0 or more and a target_burst_capacity of -1 or more, got"
                f" {self.scale_down_delay_s!r} and {self.target_burst_capacity!r}"
            )


class Buckets:
    """Sums by the second, and their average over a window; seconds in which nothing was recorded count as zero."""

    def __init__(self, window_s: float) -> None:
        self._sums = [0.0] * math.ceil(window_s / GRANULARITY_S)
        self._window_s = window_s
        self._first: int | None = None
        self._last: int | None = None
        self._total = 0.0

    def resized(self, window_s: float) -> Buckets:
        """The same seconds in a window of another length, as far as it reaches."""
        other = Buckets(window_s)
        if self._last is not None and self._first is not None:
            for second in range(max(self._first, self._last - len(self._sums) + 1), self._last + 1):
                other.record(second, self._sums[second % len(self._sums)])
        return other

    def record(self, now_s: float, value: float) -> None:
        """A value from before the window is left out."""
        at = math.floor(now_s)
        if self._last is None or at - self._last >= self._window_s:
            self._sums = [0.0] * len(self._sums)
            self._total, self._first, self._last = 0.0, at, at
        elif at > self._last:
            for second in range(self._last + 1, at + 1):
                self._total -= self._sums[second % len(self._sums)]
                self._sums[second % len(self._sums)] = 0.0
            self._last = at
        elif at <= self._last - self._window_s:
            return
        elif self._first is not None and at < self._first:
            self._first = at
        self._sums[at % len(self._sums)] += value
        self._total += value

    def is_empty(self, now_s: float) -> bool:
        return self._last is None or math.floor(now_s) - self._last > self._window_s

    def average(self, now_s: float) -> float:
        """Over the buckets that were there: a young window is divided by its age, and one that was not written to
        lately by what is left of it."""
        if self._last is None or self._first is None:
            return 0.0
        at = math.floor(now_s)
        behind = at - self._last
        if behind >= self._window_s:
            return 0.0
        total, count = self._total, len(self._sums)
        if behind > 0:
            for second in range(self._last + 1, at + 1):
                total -= self._sums[second % len(self._sums)]
            count -= behind
        return math.floor(total / min(self._last - self._first + 1, count) * PRECISION + 0.5) / PRECISION


class HighestOf:
    """The highest of the values recorded within the last ``duration_s``, by decision."""

    def __init__(self, duration_s: float) -> None:
        self._length = math.ceil(duration_s / TICK_S)
        self._falling: deque[tuple[int, int]] = deque()

    def record(self, now_s: float, value: int) -> int:
        index = math.floor(now_s) // TICK_S
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((index, value))
        while self._falling[0][0] <= index - self._length:
            self._falling.popleft()
        return self._falling[0][1]


@dataclass(frozen=True)
class Decision:
    """``valid`` is False where there was nothing to decide from; the rest means nothing then."""

    valid: bool
    desired: int = 0
    excess_burst_capacity: int = 0
    """Below zero: the activator sits in the path."""


@dataclass
class Autoscaler:
    """Of one revision. ``ready_pods`` are those when it begins: with more than one it begins in panic mode, so that a
    restart of the autoscaler does not shrink what it knows nothing about yet."""

    spec: Spec
    ready_pods: int = 0
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.stable = Buckets(self.spec.stable_window_s)
        self.panic = Buckets(self.spec.panic_window_s)
        self.panic_since_s: float | None = self.now_s if self.ready_pods > 1 else None
        """When the load was last over the panic threshold; None outside of panic mode."""
        self._most_in_panic = self.ready_pods
        delay_s = self.spec.scale_down_delay_s
        self._delayed = HighestOf(delay_s) if delay_s > 0 else None

    def change(self, spec: Spec) -> None:
        """Another specification from now on; what was measured stays."""
        old, self.spec = self.spec, spec
        if spec.stable_window_s != old.stable_window_s:
            self.stable = self.stable.resized(spec.stable_window_s)
        if spec.panic_window_s != old.panic_window_s:
            self.panic = self.panic.resized(spec.panic_window_s)
        if spec.scale_down_delay_s != old.scale_down_delay_s:
            self._delayed = HighestOf(spec.scale_down_delay_s) if spec.scale_down_delay_s > 0 else None

    def record(self, now_s: float, value: float) -> None:
        """What all pods and the activator had in that second: concurrency, or requests a second."""
        self.stable.record(now_s, value)
        self.panic.record(now_s, value)

    def averages(self, now_s: float) -> tuple[float, float]:
        """Of the stable and of the panic window."""
        return self.stable.average(now_s), self.panic.average(now_s)

    def decide(self, now_s: float, ready_pods: int) -> Decision:
        if self.stable.is_empty(now_s) and self.panic.is_empty(now_s):
            return Decision(valid=False)
        spec = self.spec
        stable, panic = self.averages(now_s)
        ready = max(1, ready_pods)
        most = math.ceil(spec.max_scale_up_rate * ready)
        least = math.floor(ready / spec.max_scale_down_rate) if spec.reachable else 0
        wish_stable, wish_panic = math.ceil(stable / spec.target_value), math.ceil(panic / spec.target_value)
        desired_stable = self._activated(wish_stable, min(max(wish_stable, least), most))
        desired_panic = self._activated(wish_panic, min(max(wish_panic, least), most))
        self._follow_panic(now_s, wish_panic / ready >= spec.panic_threshold)
        desired = desired_stable
        if self.panic_since_s is not None:
            self._most_in_panic = max(self._most_in_panic, desired_stable, desired_panic)
            desired = self._most_in_panic
        if self._delayed is not None:
            desired = self._delayed.record(now_s, desired)
        return Decision(True, desired, self._excess(ready_pods, panic))

    def _activated(self, wish: int, desired: int) -> int:
        scale = self.spec.activation_scale
        return scale if scale > 1 and wish > 0 and scale > desired else desired

    def _follow_panic(self, now_s: float, over: bool) -> None:
        if over:
            self.panic_since_s = now_s
        elif self.panic_since_s is not None and self.panic_since_s + self.spec.stable_window_s < now_s:
            # The surge has made its way into the stable window.
            self.panic_since_s = None
            self._most_in_panic = 0

    def _excess(self, ready_pods: int, panic: float) -> int:
        capacity = self.spec.target_burst_capacity
        if capacity == 0:
            return 0
        if capacity < 0:
            return -1
        return max(INT32_LEAST, math.floor(ready_pods * self.spec.total_value - capacity - panic))
