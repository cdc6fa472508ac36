"""Runs over time: one series a metric, where it changed, and whether the newest run is worse. All functions are pure.

Source: E-divisive with permutation tests (Matteson and James 2014), as used for performance testing (Daly et al. 2020),
here on ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.runstore import Run

LEAST = 5
"""Runs on each side of a change, and before a newest run that is to be judged."""
_TIMES = {"cold-start.first_byte.p50": "cold start", "ready": "ready"}
PERMUTATIONS = 999
ALPHA = 0.01
SIGMAS = 4.0
"""How far from its predecessors the newest value must be, in robust standard deviations, to be called worse."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    run: str
    started: str
    value: float


@dataclass(frozen=True)
class Trend:
    """``changes`` are positions in ``points`` at which a new level begins. ``regression`` says what is wrong with the
    newest run, and is empty where nothing is or nothing can be said; ``judged`` tells these apart."""

    service: str
    step: str
    metric: str
    unit: str
    higher_is_better: bool
    points: tuple[Point, ...]
    changes: tuple[int, ...] = ()
    regression: str = ""
    judged: bool = False

    @property
    def title(self) -> str:
        return f"{self.metric} of {self.service}" + (f", {self.step}" if self.step else "")


def trends(runs: Sequence[Run], margin: float = 0.05, seed: int = 1) -> list[Trend]:
    """Of runs in the order of their start. A metric that only one run has is no trend."""
    found: dict[tuple[str, str, str], tuple[str, bool, list[Point]]] = {}
    for run in runs:
        for key, (value, unit, higher) in values_of(run).items():
            point = Point(run.directory.name, str(run.info.get("started")), value)
            found.setdefault(key, (unit, higher, []))[2].append(point)
    result = []
    for (service, step, metric), (unit, higher, points) in found.items():
        if len(points) < 2:
            continue
        values = np.array([point.value for point in points])
        changes = change_points(values, seed)
        regression, judged = regression_of(values, changes, margin, higher)
        result.append(Trend(service, step, metric, unit, higher, tuple(points), tuple(changes), regression, judged))
    return result


def values_of(run: Run) -> dict[tuple[str, str, str], tuple[float, str, bool]]:
    """By service, step and metric: the value, its unit, and whether higher is better."""
    found: dict[tuple[str, str, str], tuple[float, str, bool]] = {}
    for load in run.loads:
        if not load.valid:
            continue  # it says as much about the machine as about the service
        for name in ("p50", "p95", "p99"):
            found[load.service, load.step, name] = (load.latency_s[name], "s", False)
        found[load.service, load.step, "errors"] = (load.errors / max(load.requests, 1), "share", False)
        if load.concurrency is not None:
            found[load.service, load.step, "throughput"] = (load.achieved_rate_per_s, "/s", True)
    for item in run.measurements:
        if item.name == "capacity":
            found[item.service, item.step, "capacity"] = (item.value, "/s", True)
        elif item.name in _TIMES:
            found[item.service, item.step, _TIMES[item.name]] = (item.value, "s", False)
    for step, service in dict.fromkeys((check.step, check.service) for check in run.checks):
        mine = [check for check in run.checks if (check.step, check.service) == (step, service)]
        found[service, step, "failed checks"] = (float(sum(check.fails_run for check in mine)), "", False)
    return found


def change_points(values: Values, seed: int = 1) -> list[int]:
    """Positions at which the level changes: the best split is kept where few permutations have one as good, and each
    side is then looked at in turn."""
    generator = np.random.default_rng(seed)
    found: list[int] = []

    def look(start: int, end: int) -> None:
        part = values[start:end]
        if part.size < 2 * LEAST or np.ptp(part) == 0:
            return
        ranks = _ranks(part)
        place, score = _best_split(ranks)
        at_least = sum(_best_split(generator.permutation(ranks))[1] >= score - 1e-12 for _ in range(PERMUTATIONS))
        if (at_least + 1) / (PERMUTATIONS + 1) > ALPHA:
            return
        look(start, start + place)
        found.append(start + place)
        look(start + place, end)

    look(0, int(values.size))
    return sorted(found)


def _ranks(values: Values) -> Values:
    """Equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places], dtype=np.float64)


def _best_split(ranks: Values) -> tuple[int, float]:
    """The position whose sides differ most, by the standardized difference of their mean ranks."""
    n = ranks.size
    places = np.arange(LEAST, n - LEAST + 1)
    sums = np.cumsum(ranks)[places - 1]
    expected = places * (n + 1) / 2
    spread = np.sqrt(places * (n - places) * (n + 1) / 12)
    scores = np.abs(sums - expected) / spread
    best = int(np.argmax(scores))
    return int(places[best]), float(scores[best])


def regression_of(values: Values, changes: Sequence[int], margin: float, higher_is_better: bool) -> tuple[str, bool]:
    """What is wrong with the newest value beside those before it, since the level last changed; and whether there were
    enough of them to say."""
    newest = float(values[-1])
    since = max([place for place in changes if place <= values.size - 1 - LEAST], default=0)
    before = values[since:-1]
    if before.size < LEAST:
        return "", False
    usual = float(np.median(before))
    sigma = 1.4826 * float(np.median(np.abs(before - usual)))
    worse = usual - newest if higher_is_better else newest - usual
    # Counts and shares that were always the same have no spread: any step up is one.
    beyond = worse > max(SIGMAS * sigma, margin * abs(usual), 1e-12)
    if not beyond:
        return "", True
    ratio = f", {newest / usual:.2f} times" if usual and math.isfinite(newest / usual) else ""
    return f"{newest:.4g} after {usual:.4g} in {before.size} runs{ratio}", True


def finished(runs: Sequence[Run]) -> list[Run]:
    """Those that came to their end, oldest first."""
    whole = [run for run in runs if not run.interrupted]
    return sorted(whole, key=lambda run: str(run.info.get("started")))
