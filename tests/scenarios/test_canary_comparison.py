"""The statistics of a split: how many requests, what is accepted, and when a candidate is surely worse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from harness.stats import accepted_counts, binomial_p_value, draws_needed
from scenarios.suites.canary.comparison import candidate_errors, compare_latency, split_p_value, surely_slower


@pytest.mark.parametrize(("p", "resolution"), [(0.1, 0.05), (0.5, 0.1), (0.02, 0.05), (0.9, 0.08)])
def test_enough_requests_are_asked_for(p: float, resolution: float) -> None:
    n = draws_needed(p, resolution, 1e-4, 0.99)
    low, high = accepted_counts(n, p, 1e-4)
    wrongly = 1 - float(binom.cdf(high, n, p) - binom.cdf(low - 1, n, p))
    assert wrongly <= 1e-4
    for other in (p - resolution, p + resolution):
        if 0 < other < 1:
            found = 1 - float(binom.cdf(high, n, other) - binom.cdf(low - 1, n, other))
            assert found >= 0.99
    fewer = int(n * 0.8)
    low, high = accepted_counts(fewer, p, 1e-4)
    others = [other for other in (p - resolution, p + resolution) if 0 < other < 1]
    assert any(1 - float(binom.cdf(high, fewer, other) - binom.cdf(low - 1, fewer, other)) < 0.99 for other in others)


def test_the_p_value_is_the_exact_one() -> None:
    assert binomial_p_value(5, 10, 0.5) == pytest.approx(1.0)
    assert binomial_p_value(0, 10, 0.5) == pytest.approx(2 / 1024)
    assert split_p_value(300, 1000, 10) < 1e-12


def test_a_slower_candidate_is_surely_slower_and_an_equal_one_is_not() -> None:
    draws = np.random.default_rng(1)
    stable = draws.gamma(4, 0.002, 800)
    same, slow = draws.gamma(4, 0.002, 400), draws.gamma(4, 0.006, 400)
    assert surely_slower(compare_latency(same, stable), 1.5) is None
    worst = surely_slower(compare_latency(slow, stable), 1.5)
    assert worst is not None
    assert 2 < worst.ratio < 4
    assert worst.least > 1.5


def test_too_few_answers_compare_nothing() -> None:
    assert compare_latency(np.array([0.1, 0.2]), np.array([0.1] * 100)) == []


def test_failures_beyond_the_usual_are_the_candidates() -> None:
    sound = candidate_errors(failed=0, total=1000, answered=100, usual_share=0.0)
    assert (sound.share, sound.least) == (0, 0)
    usual = candidate_errors(failed=10, total=1000, answered=100, usual_share=0.01)
    assert usual.share == 0
    bad = candidate_errors(failed=20, total=1000, answered=480, usual_share=0.0)
    assert bad.share == pytest.approx(0.04)
    assert 0.02 < bad.least < bad.share
