from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.results.stats import (
    accepted_counts,
    binomial_quantile,
    fails_more_often,
    percentile,
    percentile_interval,
    percentile_intervals,
    summarize,
)


def test_percentiles_are_samples_that_occurred() -> None:
    ordered = np.arange(1, 101, dtype=float)
    assert [percentile(ordered, q) for q in (0.5, 0.9, 0.99, 0.999, 1.0)] == [50, 90, 99, 100, 100]
    assert percentile(np.array([7.0]), 0.5) == 7
    with pytest.raises(ValueError, match="no samples"):
        percentile(np.array([]), 0.5)


def test_intervals_cover_the_true_percentile_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    for q in (0.5, 0.9, 0.99):
        truth = float(scipy_stats.expon.ppf(q))
        covered = 0
        for _ in range(400):
            interval = percentile_interval(np.sort(generator.exponential(size=1000)), q)
            assert interval is not None
            covered += interval[0] <= truth <= interval[1]
        # 95 % of 400 is 380; four standard deviations below is 362.
        assert covered >= 362, q


def test_small_samples_have_no_interval_for_their_tail() -> None:
    intervals = percentile_intervals(np.arange(100, dtype=float))
    assert "p50" in intervals
    assert "p99" not in intervals
    assert "p99_9" not in intervals
    assert percentile_interval(np.array([]), 0.5) is None


def test_summary_of_a_known_sample() -> None:
    summary = summarize(np.array([1.0, 2.0, 3.0]))
    assert (summary["p50"], summary["max"], summary["mean"]) == (2, 3, 2)


def test_binomial_quantiles_are_those_of_scipy() -> None:
    generator = np.random.default_rng(2)
    for _ in range(3000):
        n = int(generator.choice([1, 2, 10, 100, 1000, 50_000, 18_000_000]))
        p = float(generator.choice([0.5, 0.9, 0.99, 0.999, 0.01, generator.uniform(0.001, 0.999)]))
        share = float(generator.choice([0.025, 0.975, 0.0005, 0.9995, generator.uniform(0.001, 0.999)]))
        assert binomial_quantile(share, n, p) == int(scipy_stats.binom.ppf(share, n, p)), (share, n, p)
        alpha = float(generator.choice([0.05, 0.001, 1e-6]))
        low, high = scipy_stats.binom.ppf(alpha / 2, n, p), scipy_stats.binom.isf(alpha / 2, n, p)
        assert accepted_counts(n, p, alpha) == (int(low), int(high)), (n, p, alpha)


def test_a_share_of_failures_beside_another_is_fishers_test() -> None:
    for failed, n, base_failed, base_n in (
        (0, 100, 0, 100),
        (3, 1000, 0, 900),
        (40, 600, 20, 600),
        (5, 5, 0, 5),
        (1, 9, 9, 9),
    ):
        table = [[failed, n - failed], [base_failed, base_n - base_failed]]
        expected = float(scipy_stats.fisher_exact(table, alternative="greater").pvalue)
        assert fails_more_often(failed, n, base_failed, base_n) == pytest.approx(expected, rel=1e-8)
