"""Runs over time: one series a metric, where it changed, and whether the newest run is worse. All functions are pure.

The newest run is held against what earlier ones let one expect (``prediction.py``), corrected for the number of series
that are judged, so that the whole night errs with a chance of at most ``ALPHA``.

Source: E-divisive with permutation tests (Matteson and James 2014), as used for performance testing (Daly et al. 2020),
here on ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.results.prediction import (
    chance_of_more,
    chance_of_worse,
    holm,
    limit_of,
    limit_of_counts,
)
from harness.results.records import LoadResult
from harness.results.runstore import Run
from harness.results.stats import SEARCH_RESOLUTION, fails_more_often

LEAST = 5
"""Runs on each side of a change, and before a newest run that is to be judged."""
_TIMES = {"cold-start.first_byte.p50": "cold start", "ready": "ready"}
_RESOLUTIONS = {"capacity": SEARCH_RESOLUTION}
PERMUTATIONS = 999
CHANGE_ALPHA = 0.01
ALPHA = 0.05
"""How often a night in which nothing has changed may be called worse, all its series together."""
CHECKS = "failed checks"
Values = npt.NDArray[np.float64]
Key = tuple[str, str, str]
"""Service, step and metric."""


@dataclass(frozen=True)
class Point:
    """``counts`` are the events and trials of a value that is a share or a count."""

    run: str
    started: str
    value: float
    counts: tuple[int, int] | None = None


@dataclass(frozen=True)
class Trend:
    """``changes`` are positions in ``points`` at which a new level begins. ``regression`` says what is wrong with the
    newest run, and is empty where nothing is or nothing can be said; ``judged`` tells these apart, and ``unjudged``
    says why not. ``limit`` is the smallest regression that these runs could have shown, None where they could show
    none; ``missing``: one of the ``LEAST`` runs before the newest had it, and the newest has not."""

    service: str
    step: str
    metric: str
    unit: str
    higher_is_better: bool
    points: tuple[Point, ...]
    changes: tuple[int, ...] = ()
    regression: str = ""
    judged: bool = False
    unjudged: str = ""
    limit: float | None = None
    missing: bool = False

    @property
    def title(self) -> str:
        return f"{self.metric} of {self.service}" + (f", {self.step}" if self.step else "")

    @property
    def values(self) -> Values:
        return np.array([point.value for point in self.points], dtype=np.float64)


@dataclass(frozen=True)
class Reading:
    """A metric of one run."""

    value: float
    unit: str
    higher_is_better: bool = False
    counts: tuple[int, int] | None = None


def trends(runs: Sequence[Run], margin: float = 0.05, seed: int = 1) -> list[Trend]:
    """Of runs in the order of their start. A metric that only one run has is no trend, unless the newest run lacks it
    and one of the ``LEAST`` before it, of the same scenario, had it: what was lost stays lost the night after."""
    read = [readings_of(run) for run in runs]
    found: dict[Key, Trend] = {}
    for run, readings in zip(runs, read, strict=True):
        for key, item in readings.items():
            before = found.get(key, Trend(*key, item.unit, item.higher_is_better, ()))
            point = Point(run.directory.name, str(run.info.get("started")), item.value, item.counts)
            found[key] = replace(before, points=(*before.points, point))
    if not runs:
        return []
    same = [
        readings for run, readings in zip(runs, read, strict=True) if run.info.get("name") == runs[-1].info.get("name")
    ]
    lately = {key for readings in same[-1 - LEAST : -1] for key in readings}
    result = []
    for key, trend in found.items():
        missing = key in lately and key not in read[-1]
        if len(trend.points) < 2 and not missing:
            continue
        changes = change_points(trend.values, seed)
        why = "" if key in read[-1] else _why_missing(runs[-1], key) if missing else "not in the newest run"
        result.append(replace(trend, changes=tuple(changes), unjudged=why, missing=missing))
    return judged(result, margin)


def readings_of(run: Run) -> dict[Key, Reading]:
    found: dict[Key, Reading] = {}
    for load in stages_of(run):
        if not load.valid:
            continue  # it says as much about the machine as about the service
        for name in ("p50", "p95", "p99"):
            if name in load.latency_s:
                found[load.service, load.step, name] = Reading(load.latency_s[name], "s")
        counts = (load.errors, load.requests)
        found[load.service, load.step, "errors"] = Reading(load.errors / max(load.requests, 1), "share", counts=counts)
        if load.concurrency is not None:
            found[load.service, load.step, "throughput"] = Reading(load.achieved_rate_per_s, "/s", True)
    for item in run.measurements:
        if item.name == "capacity":
            found[item.service, item.step, "capacity"] = Reading(item.value, "/s", True)
        elif item.name in _TIMES:
            found[item.service, item.step, _TIMES[item.name]] = Reading(item.value, "s")
    for step, service in dict.fromkeys((check.step, check.service) for check in run.checks):
        mine = [check for check in run.checks if (check.step, check.service) == (step, service)]
        failed = sum(check.fails_run for check in mine)
        found[service, step, CHECKS] = Reading(float(failed), "", counts=(failed, len(mine)))
    return found


def stages_of(run: Run) -> list[LoadResult]:
    """Stages that are the same in each run: the trials of a search are not, at whatever rates it led to."""
    searches = {check.step for check in run.checks if check.suite == "capacity"}
    searches |= {str(step["name"]) for step in run.info.get("steps", []) if step.get("suite") == "capacity"}
    return [load for load in run.loads if load.step.rpartition("-")[0] not in searches]


def _why_missing(newest: Run, key: Key) -> str:
    stage = next((load for load in newest.loads if (load.service, load.step) == key[:2]), None)
    if stage is not None and not stage.valid:
        return f"the newest run's stage is not valid: {stage.invalid_reason or 'no reason was given'}"
    return f"the newest run did not measure it, and one of the {LEAST} before it did"


def judged(series: Sequence[Trend], margin: float, alpha: float = ALPHA) -> list[Trend]:
    """The same series, with what is to be said of the newest run: by Holm's procedure over those that can be judged."""
    chances = {place: chance for place, item in enumerate(series) if (chance := _chance(item)) is not None}
    worse = dict(zip(chances, holm(list(chances.values()), alpha), strict=True))
    each = alpha / max(len(chances), 1)
    result = []
    for place, item in enumerate(series):
        if place not in chances:
            result.append(replace(item, unjudged=item.unjudged or _too_few(item)))
            continue
        limit = _limit(item, margin, each)
        regression = _sentence(item) if worse[place] and _beyond_margin(item, margin) else ""
        result.append(replace(item, judged=True, regression=regression, limit=limit))
    return result


def _since(item: Trend) -> int:
    """The position at which the level begins that the newest value is held against."""
    return max([place for place in item.changes if place <= len(item.points) - 1 - LEAST], default=0)


def _before(item: Trend) -> Values:
    """Earlier values of that level that are numbers; one that failed is infinite, and is counted apart."""
    values = item.values[_since(item) : -1]
    return values[np.isfinite(values)]


def _counts(item: Trend) -> tuple[list[int], list[int]] | None:
    """Events and trials of that level's runs and the newest."""
    counts = [point.counts for point in item.points[_since(item) :]]
    found = [pair for pair in counts if pair is not None]
    return ([bad for bad, _ in found], [of for _, of in found]) if len(found) == len(counts) else None


def _chance(item: Trend) -> float | None:
    """That a run like the earlier ones is as bad as the newest; None where that cannot be judged."""
    newest, before = item.points[-1].value, _before(item)
    if item.unjudged or math.isnan(newest) or before.size < LEAST:
        return None
    if math.isinf(newest):
        if (newest > 0) == item.higher_is_better:
            return 1.0
        failed = int(np.isinf(item.values[_since(item) : -1]).sum())
        return fails_more_often(1, 1, failed, failed + int(before.size)) if failed else 0.0
    if (counts := _counts(item)) is not None and not _step(item):
        return chance_of_more(*counts)
    return chance_of_worse(before, newest, item.higher_is_better, _RESOLUTIONS.get(item.metric, 0.0))


def _step(item: Trend) -> bool:
    """Whether a check that fails is no matter of chance: so many failed in every run."""
    return item.metric == CHECKS and np.unique(_before(item)).size == 1


def _limit(item: Trend, margin: float, alpha: float) -> float | None:
    before = _before(item)
    usual, counts = float(np.median(before)), _counts(item)
    if _step(item):
        return usual + 1
    if counts is None:
        limit = limit_of(before, alpha, item.higher_is_better, _RESOLUTIONS.get(item.metric, 0.0))
        return min(limit, usual * (1 - margin)) if item.higher_is_better else max(limit, usual * (1 + margin))
    fewest = limit_of_counts(*counts, alpha)
    if fewest is None:
        return None
    return float(fewest) if item.metric == CHECKS else max(fewest / max(counts[1][-1], 1), usual * (1 + margin))


def _beyond_margin(item: Trend, margin: float) -> bool:
    newest, usual = item.points[-1].value, float(np.median(_before(item)))
    worse = usual - newest if item.higher_is_better else newest - usual
    return worse > max(margin * abs(usual), 1e-12)


def _sentence(item: Trend) -> str:
    newest, before = item.points[-1].value, _before(item)
    usual = float(np.median(before))
    ratio = f", {newest / usual:.2f} times" if usual and math.isfinite(newest / usual) else ""
    return f"{newest:.4g} after {usual:.4g} in {before.size} runs{ratio}"


def _too_few(item: Trend) -> str:
    if math.isnan(item.points[-1].value):
        return "the newest run has no number"
    have = int(_before(item).size)
    return f"{have} run{'s' if have != 1 else ''} before it, and {LEAST} are needed"


def change_points(values: Values, seed: int = 1) -> list[int]:
    """Positions at which the level changes: the best split is kept where few permutations have one as good, and each
    side is then looked at in turn."""
    generator = np.random.default_rng(seed)
    found: list[int] = []

    def look(start: int, end: int) -> None:
        part = values[start:end]
        if part.size < 2 * LEAST or (part == part[0]).all():
            return
        ranks = _ranks(part)
        scores = _scores(ranks[np.newaxis])[0]
        place, score = LEAST + int(np.argmax(scores)), float(scores.max())
        shuffled = generator.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)
        at_least = int((_scores(shuffled).max(axis=1) >= score - 1e-12).sum())
        if (at_least + 1) / (PERMUTATIONS + 1) > CHANGE_ALPHA:
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


def _scores(ranks: Values) -> Values:
    """How much the two sides of each split differ, from ``LEAST`` values on the left to so many on the right: the
    standardized difference of their mean ranks, a row a permutation."""
    n = ranks.shape[1]
    places = np.arange(LEAST, n - LEAST + 1)
    sums = np.cumsum(ranks, axis=1)[:, places - 1]
    expected = places * (n + 1) / 2
    spread = np.sqrt(places * (n - places) * (n + 1) / 12)
    return np.asarray(np.abs(sums - expected) / spread, dtype=np.float64)


def finished(runs: Sequence[Run]) -> list[Run]:
    """Those that came to their end, oldest first."""
    whole = [run for run in runs if not run.interrupted]
    return sorted(whole, key=lambda run: str(run.info.get("started")))
