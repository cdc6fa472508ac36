from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.load.arrivals import due_times
from harness.load.job import Job, Request


def test_constant_arrivals_are_evenly_spaced() -> None:
    times = due_times("constant", 200, 2, seed=1)
    assert times.size == 400
    assert times[0] == 0
    assert np.all(np.diff(times) == 5_000_000)


def test_poisson_arrivals_have_exponential_gaps_and_the_exact_rate() -> None:
    times = due_times("poisson", 500, 20, seed=1)
    assert times.size == 10_000
    assert times[0] >= 0
    assert times[-1] < 20e9
    gaps = np.diff(times) / 1e9
    assert stats.kstest(gaps, "expon", args=(0, 1 / 500)).pvalue > 0.001
    assert np.std(gaps) == pytest.approx(1 / 500, rel=0.05)


def test_seeds_repeat_and_differ() -> None:
    assert np.array_equal(due_times("poisson", 50, 2, 7), due_times("poisson", 50, 2, 7))
    assert not np.array_equal(due_times("poisson", 50, 2, 7), due_times("poisson", 50, 2, 8))


def test_unknown_arrivals_are_refused() -> None:
    with pytest.raises(ValueError, match="constant, poisson"):
        due_times("bursty", 1, 1, 1)


REQUEST = (Request("/", {}, "b"),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rate_per_s": 5.0, "concurrency": 2}, "either"),
        ({}, "either"),
        ({"rate_per_s": 0.1}, "no request is due"),
        ({"rate_per_s": 5.0, "timeout_s": 0}, "timeout"),
    ],
)
def test_jobs_that_measure_nothing_are_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Job("rest", "127.0.0.1", 1, "h", REQUEST, duration_s=1, **fields)  # type: ignore[arg-type]
