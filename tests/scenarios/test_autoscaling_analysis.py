"""Lag, overshoot, flapping and the model's band, on series whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.kubernetes.kpa import Spec
from harness.kubernetes.kpa_settings import Settings, settings_of
from harness.kubernetes.podwatch import PodChange
from harness.load.arrivals import pulse, ramp, steps
from scenarios.suites.autoscaling.analysis import (
    PER_SECOND,
    Lag,
    Steps,
    Watched,
    concurrency_by_second,
    first_below,
    held,
    ideal_pods,
    lags,
    planned_rate,
    ready_steps,
    reversals,
    smoothed,
)
from scenarios.suites.autoscaling.fit import best_fit, most_reversals
from tests.helpers import ROOT


def knative(**annotations: str) -> Settings:
    return settings_of(
        {f"autoscaling.knative.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}, {}
    )


FAST = knative(window="6s", target="2", max_scale="5")


def test_concurrency_is_the_time_under_way_in_each_second() -> None:
    sent, done = np.array([0.0, 0.5, 2.25]), np.array([1.5, 1.0, 2.5])
    assert concurrency_by_second(sent, done, 4).tolist() == pytest.approx([1.5, 0.5, 0.25, 0.0])


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 5)), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_concurrency_adds_up_to_all_the_time_that_was_spent(requests: list[tuple[float, float]]) -> None:
    sent = np.array([start for start, _ in requests])
    done = sent + np.array([length for _, length in requests])
    assert concurrency_by_second(sent, done, 15).sum() == pytest.approx((done - sent).sum(), abs=1e-6)


def test_readings_hold_until_the_next_one() -> None:
    assert held([-0.5, 1.2, 2.9], [1, 4, 2], 4).tolist() == [1, 4, 2, 2]


def test_planned_rates_are_those_of_the_shape() -> None:
    rates = planned_rate(steps([5, 50], 4.0), 5)
    assert rates.tolist() == [5, 5, 50, 50, 0]
    assert planned_rate(ramp(0, 40, 4.0), 4).tolist() == pytest.approx([5, 15, 25, 35])
    assert planned_rate(pulse(1, 9, 1.0, 3.0, 7.0), 7).tolist() == [1, 1, 9, 1, 1, 9, 1]
    fine = planned_rate(steps([5, 50], 3.0), 4, PER_SECOND)
    assert int(np.argmax(fine > 5)) / PER_SECOND == 1.5


def test_needed_pods_follow_the_target() -> None:
    rates = np.array([5.0, 50.0, 200.0, 0.0])
    assert ideal_pods(rates, 0.1, FAST).tolist() == [1, 4, 5, 0]
    by_rate = knative(window="6s", metric="rps", target="10", min_scale="1")
    assert ideal_pods(rates, 0.1, by_rate).tolist() == [1, 8, 29, 1]


def stepwise(*steps: tuple[float, float]) -> Steps:
    return Steps(np.array([moment for moment, _ in steps]), np.array([value for _, value in steps]))


def test_lag_is_from_the_need_to_the_pod_and_not_cut_to_seconds() -> None:
    ideal = ideal_pods(planned_rate(steps([5, 50], 9.0), 12, PER_SECOND), 0.1, FAST)
    ready = stepwise((-3.0, 1), (8.4, 2), (9.75, 4), (20.0, 1))
    assert lags(ideal, ready, 9.0) == [
        Lag(2, 4.5, pytest.approx(3.9)),
        Lag(3, 4.5, pytest.approx(5.25)),
        Lag(4, 4.5, pytest.approx(5.25)),
    ]
    short = lags(ideal, stepwise((-3.0, 1), (8.4, 3)), 9.0)
    assert short[-1] == Lag(4, 4.5, None), "one pod short"
    early = stepwise((-3.0, 1), (2.0, 4))
    assert [lag.lag_s for lag in lags(ideal, early, 9.0)] == [0, 0, 0]
    assert lags(np.ones(100), stepwise((-1, 1)), 5) == []


def test_pods_are_ready_from_the_moment_that_the_watch_told_of_it() -> None:
    def pod(name: str, ready: bool, leaving: bool = False) -> dict[str, object]:
        status = {"conditions": [{"type": "Ready", "status": str(ready)}]}
        return {"metadata": {"name": name, **({"deletionTimestamp": "x"} if leaving else {})}, "status": status}

    changes = [
        PodChange(99.0, 0, "ADDED", pod("a", True)),
        PodChange(101.0, 0, "ADDED", pod("b", False)),
        PodChange(103.25, 0, "MODIFIED", pod("b", True)),
        PodChange(104.0, 0, "MODIFIED", pod("b", True)),
        PodChange(106.5, 0, "MODIFIED", pod("a", True, leaving=True)),
        PodChange(107.0, 0, "DELETED", pod("a", True, leaving=True)),
        PodChange(108.0, 0, "DELETED", pod("b", True)),
    ]
    ready = ready_steps(changes, 100.0)
    assert ready.moments_s.tolist()[1:] == [-1.0, 3.25, 6.5, 8.0]
    assert ready.values.tolist() == [0, 1, 2, 1, 0]
    assert (ready.at(0.0), ready.at(3.2), ready.at(3.25)) == (1, 1, 2)
    assert ready.by_second(5).tolist() == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("values", "turns"), [([1, 1, 3, 3], 0), ([1, 3, 3, 1], 1), ([1, 2, 1, 2, 1], 3), ([2, 2, 2], 0)]
)
def test_reversals_count_turns(values: list[float], turns: int) -> None:
    assert reversals(np.array(values, dtype=float)) == turns


def test_the_way_back_ends_when_it_stays_down() -> None:
    ready = stepwise((-1, 4), (3.5, 2), (4.25, 1), (5.0, 2), (6.75, 1))
    assert first_below(ready, 2, 1) == pytest.approx(4.75)
    assert first_below(ready, 2, 4) == 0
    assert first_below(ready, 2, 2) == pytest.approx(1.5)
    assert first_below(ready, 2, 0) is None
    assert first_below(stepwise((-1, 4), (3.5, 2)), 2, 1) is None


def test_smoothing_means_over_what_there_is() -> None:
    assert smoothed(np.array([2.0, 4.0, 6.0]), 2).tolist() == [2, 3, 5]


Floats = npt.NDArray[np.float64]


def watched(desired: Floats) -> Watched:
    """A step to five concurrent requests at 10 s and away at 30 s, with pods that follow what is desired."""
    concurrency = np.array([0.5] * 10 + [5.0] * 20 + [0.0] * 15)
    return Watched(concurrency * 10, concurrency, desired, desired, 30.0)


def test_the_model_agrees_with_itself_and_not_with_something_else() -> None:
    sound = np.array([1.0] * 12 + [4.0] * 21 + [1.0] * 12)
    fit = best_fit(FAST, watched(sound), idle_s=6)
    assert fit.agrees, fit.outside
    assert fit.moves
    assert most_reversals(FAST, watched(sound), idle_s=6) <= 3
    late = np.array([1.0] * 22 + [4.0] * 11 + [1.0] * 12)
    lazy = np.array([1.0] * 12 + [4.0] * 31 + [1.0] * 2)
    frozen, many = np.ones(45), np.array([1.0] * 12 + [5.0] * 33)
    for wrong in (late, lazy, frozen, many):
        fit = best_fit(FAST, watched(wrong), idle_s=6)
        assert not fit.agrees
        assert fit.longest_s >= 5


def test_what_the_model_does_not_explain_is_told() -> None:
    (outside,) = best_fit(FAST, watched(np.ones(45)), idle_s=6).outside
    assert str(outside).endswith("s 1 pods were desired, and the model wants 4")


# Courses of Knative's own autoscaler, as they were recorded, and disturbed

RECORDED = {path.stem: path for path in sorted((ROOT / "tests" / "cluster" / "kpa").glob("*.json"))}
GAPS = "gaps_in_scrapes"
"""Nothing was scraped for a while, which is not seen from outside, and no sound course."""
DOWN = ("scale_down_delay_90s", "to_zero_target5")
SOUND = [name for name in RECORDED if name != GAPS]
UP = [name for name in SOUND if name not in DOWN]


def course(path: Path) -> tuple[Settings, Watched]:
    trace = json.loads(path.read_text())
    ticks = trace["ticks"]
    desired, held_at = [], float(ticks[0][2])
    for tick in ticks:
        held_at = float(tick[7]) if tick[5] and tick[6] else held_at
        desired.append(held_at)
    concurrency = np.array([max(tick[1], 0) for tick in ticks], dtype=np.float64)
    ready = np.array([tick[2] for tick in ticks], dtype=np.float64)
    settings = replace(settings_of({}, {}), spec=Spec(**trace["spec"]))
    return settings, Watched(concurrency, concurrency, np.array(desired), ready, float(len(ticks)))


def later(values: Floats, seconds: int) -> Floats:
    """The same, so much later or earlier; what was there at the edge stays."""
    moved = np.roll(values, seconds)
    if seconds > 0:
        moved[:seconds] = values[0]
    elif seconds < 0:
        moved[seconds:] = values[-1]
    return moved


def moved(seen: Watched, seconds: int) -> Watched:
    return replace(seen, desired=later(seen.desired, seconds), ready=later(seen.ready, seconds))


@pytest.mark.parametrize("jitter_s", [0, 1, -1])
@pytest.mark.parametrize("name", SOUND)
def test_recorded_decisions_agree(name: str, jitter_s: int) -> None:
    settings, seen = course(RECORDED[name])
    scraped = replace(seen, concurrency=later(seen.concurrency, jitter_s))
    fit = best_fit(settings, scraped, idle_s=0)
    assert fit.agrees, fit.outside
    assert fit.moves


@pytest.mark.parametrize("name", UP)
def test_a_recorded_scale_out_that_is_ten_seconds_late_or_never_comes_is_noticed(name: str) -> None:
    settings, seen = course(RECORDED[name])
    assert not best_fit(settings, moved(seen, 10), idle_s=0).agrees
    frozen = replace(
        seen, desired=np.full_like(seen.desired, seen.desired[0]), ready=np.full_like(seen.ready, seen.ready[0])
    )
    assert not best_fit(settings, frozen, idle_s=0).agrees


@pytest.mark.parametrize("name", ["burst_10s_target5", "no_burst_capacity", "step_up_target5"])
def test_a_recorded_surge_that_is_answered_five_seconds_late_or_early_is_noticed(name: str) -> None:
    settings, seen = course(RECORDED[name])
    assert not best_fit(settings, moved(seen, 5), idle_s=0).agrees
    assert not best_fit(settings, moved(seen, -5), idle_s=0).agrees


@pytest.mark.parametrize("name", DOWN)
@pytest.mark.parametrize("seconds", [10, -10])
def test_a_recorded_way_down_that_is_ten_seconds_off_is_noticed(name: str, seconds: int) -> None:
    settings, seen = course(RECORDED[name])
    assert not best_fit(settings, moved(seen, seconds), idle_s=0).agrees


@pytest.mark.parametrize("name", ["step_up_target5", "no_burst_capacity", "short_windows_12s", "max_scale_up_rate_2"])
def test_one_pod_short_of_a_recorded_course_is_never_enough(name: str) -> None:
    """By the load that is asked for: the model alone would take it for a load that is a little lower."""
    settings, seen = course(RECORDED[name])
    ideal = np.ceil(seen.concurrency / settings.spec.target_value)
    times = np.arange(seen.seconds, dtype=np.float64)
    assert all(lag.lag_s is not None for lag in lags(ideal, Steps(times, seen.ready), seen.load_s, per_second=1))
    short = np.minimum(seen.ready, seen.ready.max() - 1)
    assert lags(ideal, Steps(times, short), seen.load_s, per_second=1)[-1].lag_s is None


def test_scrapes_that_were_lost_are_noticed() -> None:
    settings, seen = course(RECORDED[GAPS])
    full = replace(seen, concurrency=np.where(seen.concurrency > 0, seen.concurrency, 20.0))
    assert not best_fit(settings, full, idle_s=0).agrees
