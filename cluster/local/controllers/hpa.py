"""The horizontal pod autoscaler's decision on one metric. Pure.

Source: kubernetes/kubernetes, pkg/controller/podautoscaler (replica_calculator.go, horizontal.go); the defaults of
kube-controller-manager and of ``spec.behavior``.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

TOLERANCE = 0.1
UP_FACTOR, UP_PODS = 2, 4
"""At most so many times the pods, or so many pods more, within a period: whichever is more."""
STABILIZATION_S = 300.0
"""Downwards, the highest wish of so long counts."""


def wish(current: int, ready: int, usage: float, target: float) -> int:
    """``usage`` is the average of the ready pods, in the unit of ``target``; what is within the tolerance changes
    nothing."""
    if ready == 0 or target <= 0:
        return current
    ratio = usage / target
    if abs(ratio - 1) <= TOLERANCE:
        return current
    return max(1, math.ceil(ready * ratio))


@dataclass
class Hpa:
    """Of one deployment; times of a monotonic clock."""

    stabilization_s: float = STABILIZATION_S
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now_s: float, current: int, wished: int, least: int, most: int) -> int:
        bounded = min(max(wished, least), most)
        self._wishes.append((now_s, bounded))
        while now_s - self._wishes[0][0] > self.stabilization_s:
            self._wishes.popleft()
        if bounded > current:
            return min(bounded, max(current * UP_FACTOR, current + UP_PODS), most)
        highest = max(value for _, value in self._wishes)
        return max(min(highest, current), least)
