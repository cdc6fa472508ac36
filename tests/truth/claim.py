"""A statistic's promise, and how often it is kept where the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """``hits`` of ``trials`` did what the claim counts."""

    hits: int
    trials: int

    @property
    def rate(self) -> float:
        return self.hits / self.trials if self.trials else float("nan")


@dataclass(frozen=True)
class Claim:
    """``measure(trials, seed)`` simulates so many trials; ``bound`` is the share of hits that is promised.

    ``trials`` are those of the whole measurement, ``quick`` those of the one that every test run makes. Trials in which
    nothing was claimed (an interval that is not shown) are left out of ``Seen.trials``; there must be some in which it
    was.
    """

    name: str
    promise: str
    bound: float
    at_least: bool
    measure: Callable[[int, int], Seen]
    trials: int
    quick: int

    def kept(self, seen: Seen) -> bool:
        if not seen.trials:
            return False
        return seen.rate >= self.bound if self.at_least else seen.rate <= self.bound

    @property
    def promised(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.bound:.1%}"
