"""What cold starts took, in numbers: a trial without an answer has no end, and is in every figure as one. Pure
functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from harness.results.records import Measurement, Record, Series
from harness.results.stats import percentile_interval
from scenarios.suites.cold_start.phases import PHASES, Trial
from scenarios.suites.cold_start.warm import LEAST_WARM, Warm
from scenarios.suites.shared.judging import Judge


def columns_of(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """A row a trial, a column a phase. Without an answer the first byte is infinitely far, and how long the phases
    before it took is not known: NaN."""
    never = {**dict.fromkeys(PHASES, math.nan), "first_byte": math.inf}
    rows = [trial.phases_s if trial.ends else never for trial in trials]
    return {name: [row[name] for row in rows] for name in PHASES}


def figures(judge: Judge, service: str, trials: Sequence[Trial], warm: Warm) -> list[Record]:
    """The median and all that stands for the cold starts as a whole is of all trials; a phase is of those in which it
    is known."""
    columns = columns_of(trials)
    answered = [trial for trial in trials if trial.ends]
    totals = np.sort(np.array([trial.first_byte_s if trial.ends else math.inf for trial in trials]))
    last = np.sort(np.array([math.inf if trial.lost else trial.done_s for trial in trials]))
    records: list[Record] = [
        Series("cold-start", service, judge.step, columns),
        _median(judge, "first_byte.p50", totals),
        judge.measurement("first_byte.max", float(totals[-1]), "s", totals.size),
        judge.measurement("first_byte.mean", float(totals.mean()), "s", totals.size),
        _median(judge, "last_answer", last),
    ]
    for name, values in columns.items():
        known = [value for value in values if not math.isnan(value)]
        if known:
            records.append(judge.measurement(f"phase.{name}", float(np.median(known)), "s", len(known)))
        resolution = max((trial.phases[name].resolution for trial in answered), default=0.0)
        if resolution:
            records.append(judge.measurement(f"phase.{name}.resolution", resolution, "s", len(answered)))
    late = float(np.median([trial.ready_late_s for trial in answered])) if answered else 0.0
    if late > 0:
        records.append(judge.measurement("ready_after_first_byte", late, "s", len(answered)))
    if len(warm.latency_s) >= LEAST_WARM:
        usual = _median(judge, "warm", np.sort(np.array(warm.latency_s)))
        ratio = float(np.median(totals)) / usual.value
        records += [usual, judge.measurement("cold_over_warm", ratio, "times", totals.size)]
    return records


def _median(judge: Judge, name: str, ordered: npt.NDArray[np.float64]) -> Measurement:
    """With its interval, where there are values enough for one, and it has two ends."""
    plain = judge.measurement(name, float(np.median(ordered)), "s", ordered.size)
    interval = percentile_interval(ordered, 0.5)
    if interval is None or not math.isfinite(interval[1]):
        return plain
    return replace(plain, ci_low=interval[0], ci_high=interval[1])
