"""Lag, overshoot, flapping and the model's band, on series whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.kpa_settings import Settings, settings_of
from harness.load.arrivals import pulse, ramp, steps
from scenarios.suites.autoscaling.analysis import (
    Lag,
    Watched,
    agreement,
    band,
    concurrency_by_second,
    first_below,
    held,
    ideal_pods,
    lags,
    planned_rate,
    reversals,
    smoothed,
)


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


def test_needed_pods_follow_the_target() -> None:
    rates = np.array([5.0, 50.0, 200.0, 0.0])
    assert ideal_pods(rates, 0.1, FAST).tolist() == [1, 4, 5, 0]
    by_rate = knative(window="6s", metric="rps", target="10", min_scale="1")
    assert ideal_pods(rates, 0.1, by_rate).tolist() == [1, 8, 29, 1]


def test_lag_is_from_the_need_to_the_pod() -> None:
    ideal = np.array([1, 1, 3, 3, 3, 3, 1.0])
    ready = np.array([1, 1, 1, 2, 2, 3, 3.0])
    assert lags(ideal, ready, 6) == [Lag(2, 2, 1), Lag(3, 2, 3)]
    assert lags(ideal, np.minimum(ready, 2), 6)[-1] == Lag(3, 2, None)
    assert lags(np.ones(5), np.ones(5), 5) == []


@pytest.mark.parametrize(
    ("values", "turns"), [([1, 1, 3, 3], 0), ([1, 3, 3, 1], 1), ([1, 2, 1, 2, 1], 3), ([2, 2, 2], 0)]
)
def test_reversals_count_turns(values: list[float], turns: int) -> None:
    assert reversals(np.array(values, dtype=float)) == turns


def test_the_way_back_ends_when_it_stays_down() -> None:
    ready = np.array([4, 4, 4, 2, 1, 2, 1, 1.0])
    assert first_below(ready, 2, 1) == 4
    assert first_below(ready, 2, 4) == 0
    assert first_below(ready[:6], 2, 1) is None
    assert first_below(ready[:5], 5, 1) == 0
    assert first_below(ready[:4], 4, 1) is None


def test_smoothing_means_over_what_there_is() -> None:
    assert smoothed(np.array([2.0, 4.0, 6.0]), 2).tolist() == [2, 3, 5]


def watched(desired: np.ndarray) -> Watched:
    """A step to five concurrent requests at 10 s and away at 30 s, with pods that follow what is desired."""
    concurrency = np.array([0.5] * 10 + [5.0] * 20 + [0.0] * 15)
    return Watched(concurrency * 10, concurrency, desired, desired, 30.0)


def test_the_model_agrees_with_itself_and_not_with_something_else() -> None:
    sound = np.array([1.0] * 12 + [4.0] * 21 + [1.0] * 12)
    low, high, turns = band(FAST, watched(sound), idle_s=6)
    assert agreement(sound, low, high) > 0.9
    assert turns <= 3
    frozen = np.ones(45)
    low, high, _ = band(FAST, watched(frozen), idle_s=6)
    assert agreement(frozen, low, high) < 0.8
    many = np.array([1.0] * 12 + [5.0] * 33)
    low, high, _ = band(FAST, watched(many), idle_s=6)
    assert agreement(many, low, high) < 0.9
