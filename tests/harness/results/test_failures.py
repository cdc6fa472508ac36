"""Failed requests of two sides: failures in a burst are one event, and a side that fails steadily is found."""

from __future__ import annotations

import numpy as np
import pytest

from harness.results.failures import Failed, chance_of_failures, failures_of
from harness.results.records import SampleBatch
from tests.records import load_result

REQUESTS = 3000


def run(failed: np.ndarray) -> Failed:
    due = np.arange(failed.size, dtype=np.int64) * 10_000_000
    rest = {"status": np.zeros(failed.size, dtype=np.int32), "bytes": due, "error": failed.astype(np.int16)}
    times = dict.fromkeys(("due_ns", "dispatched_ns", "sent_ns", "first_byte_ns", "done_ns"), due)
    batch = SampleBatch("svc", "1", **times, **rest, error_classes=("", "http_503"))
    return failures_of(load_result(requests=failed.size, errors=int(failed.sum())), batch)


def burst(at: int, count: int = 20) -> Failed:
    places = np.arange(REQUESTS)
    return run((places >= at) & (places < at + count))


def steady(share: float, seed: int, requests: int = REQUESTS) -> Failed:
    return run(np.random.default_rng(seed).random(requests) < share)


SOUND = burst(0, 0)


@pytest.mark.parametrize("at", [0, 700, 1511, 2980])
@pytest.mark.parametrize("runs", [1, 3])
def test_one_burst_is_one_event(at: int, runs: int) -> None:
    """20 of 3000 against 0 would be p = 9e-7, were they independent."""
    assert chance_of_failures([SOUND] * runs, [burst(at), *[SOUND] * (runs - 1)]) > 0.2
    assert chance_of_failures([burst(at), *[SOUND] * (runs - 1)], [SOUND] * runs) > 0.2


def test_steady_failures_are_found_with_one_run_a_side() -> None:
    assert chance_of_failures([SOUND], [steady(0.3, 1)]) < 1e-20
    assert chance_of_failures([steady(0, 1, 300)], [steady(0.3, 2, 300)]) < 1e-6
    assert chance_of_failures([SOUND], [run(np.ones(REQUESTS, dtype=bool))]) < 1e-20
    assert chance_of_failures([SOUND], [run(np.arange(REQUESTS) % 3 == 0)]) < 1e-20, "as regular as can be"
    assert chance_of_failures([steady(0.3, 1)], [SOUND]) == pytest.approx(1.0)


def test_runs_that_differ_among_themselves_say_so() -> None:
    restless = [steady(share, seed) for seed, share in enumerate((0.01, 0.08, 0.02))]
    others = [steady(share, seed) for seed, share in enumerate((0.09, 0.02, 0.06), start=10)]
    together = chance_of_failures(restless, others)
    assert together > 0.1, "Fisher's test of all requests would say p < 0.001"
    assert chance_of_failures(restless, [steady(0.4, seed) for seed in (20, 21, 22)]) < 0.005


def test_counts_without_samples_are_taken_as_they_are() -> None:
    assert chance_of_failures([Failed(0, 3000)], [Failed(20, 3000)]) == pytest.approx(9e-7, rel=0.1)
    assert Failed(20, 3000, 30.0).independent(30.0) == (1, 100)
    assert Failed(0, 3000).independent(30.0) == (0, 100)
    assert Failed(900, 1000).independent(2000.0) == (1, 1)
