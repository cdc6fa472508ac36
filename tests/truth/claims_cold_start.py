"""Whether a budget that is called met is met, where the median of all cold starts is known; how exact phases are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import numpy as np
import numpy.typing as npt

from harness.kubernetes.podwatch import PodChange
from harness.results.records import Outcome
from scenarios.suites.cold_start.budgets import judge_budget
from scenarios.suites.cold_start.phases import exactly, node_ready
from tests.truth.claim import Claim, Seen

Floats = npt.NDArray[np.float64]
Times = Callable[[np.random.Generator, int], Floats]


def _log_normal(spread: float) -> Times:
    return lambda rng, n: np.exp(rng.normal(0, spread, n))


def _with_tail(rng: np.random.Generator, n: int) -> Floats:
    """A part that is always there, and waits on top of it."""
    return np.asarray((2 + rng.exponential(1.0, n)) / (2 + np.log(2)), dtype=np.float64)


def _some_pull(rng: np.random.Generator, n: int) -> Floats:
    """Half of the nodes have the image: the median lies between the two kinds of cold starts."""
    return np.asarray(np.where(rng.random(n) < 0.5, 0.5, 2.0) * np.exp(rng.normal(0, 0.1, n)), dtype=np.float64)


SMOOTH: tuple[Times, ...] = (_log_normal(0.05), _log_normal(0.2), _log_normal(0.5), _with_tail)
ANY: tuple[Times, ...] = (*SMOOTH, _some_pull)


def _wrong(outcome: Outcome, trials: tuple[int, ...], kinds: tuple[Times, ...], count: int, seed: int) -> Seen:
    """How often a budget that the median is on the wrong side of, by a hair, is called met (or not met)."""
    rng = np.random.default_rng(seed)
    limit = 1 - 1e-9 if outcome is Outcome.PASSED else 1 + 1e-9
    wrong = 0
    for number in range(count):
        taken = kinds[number % len(kinds)](rng, trials[number // len(kinds) % len(trials)])
        wrong += judge_budget([exactly(float(value)) for value in taken], limit).outcome is outcome
    return Seen(wrong, count)


def _far_within(trials: int, count: int, seed: int) -> Seen:
    """Cold starts that scatter by a tenth, and a budget of twice their median."""
    rng = np.random.default_rng(seed)
    times = _log_normal(0.1)
    met = sum(
        judge_budget([exactly(float(value)) for value in times(rng, trials)], 2.0).outcome is Outcome.PASSED
        for _ in range(count)
    )
    return Seen(met, count)


def _node(count: int, seed: int) -> Seen:
    """A node's stamp is cut to the second, by a clock of which only the bounds are known."""
    rng = np.random.default_rng(seed)
    hits, start_s = 0, 1_700_000_000.0
    for _ in range(count):
        ahead_s, ready_s = float(rng.uniform(-90, 90)), float(rng.uniform(1, 60))
        asked_s = float(rng.uniform(0, 1))
        bounds = (ahead_s - asked_s, ahead_s + 1 - asked_s)  # what a Date header that is cut to the second tells

        def stamp(moment_s: float, ahead_s: float = ahead_s) -> str:
            return datetime.fromtimestamp(int(start_s + moment_s + ahead_s), UTC).isoformat()

        pod = {"metadata": {"name": "m-1", "creationTimestamp": stamp(0.0)}}
        conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": stamp(ready_s)}]
        node = {"metadata": {"creationTimestamp": stamp(0.5)}, "status": {"conditions": conditions}}
        span = node_ready(node, PodChange(100.0, start_s, "ADDED", pod), bounds)
        hits += span is not None and span.least <= 100.0 + ready_s <= span.most
    return Seen(hits, count)


CLAIMS = [
    Claim(
        "cold_start.budget.met_of_five",
        "a budget that the median of all cold starts exceeds is not called met (5 to 20 trials, any distribution)",
        0.05,
        False,
        partial(_wrong, Outcome.PASSED, (5, 7, 10, 20), ANY),
        trials=40_000,
        quick=4_000,
    ),
    Claim(
        "cold_start.budget.met_of_few",
        "a budget that the median of all cold starts exceeds is not called met (2 to 4 trials that scatter smoothly)",
        0.05,
        False,
        partial(_wrong, Outcome.PASSED, (2, 3, 4), SMOOTH),
        trials=40_000,
        quick=4_000,
    ),
    Claim(
        "cold_start.budget.met_of_three_kinds",
        "the same of 3 trials, where half of the nodes have to pull the image: no better than 0.5³",
        0.13,
        False,
        partial(_wrong, Outcome.PASSED, (3,), (_some_pull,)),
        trials=40_000,
        quick=4_000,
    ),
    Claim(
        "cold_start.budget.not_met",
        "a budget that the median of all cold starts keeps is not called exceeded (5 to 20 trials, any distribution)",
        0.05,
        False,
        partial(_wrong, Outcome.FAILED, (5, 7, 10, 20), ANY),
        trials=40_000,
        quick=4_000,
    ),
    Claim(
        "cold_start.budget.three_far_within",
        "three trials that are far within a budget meet it",
        0.95,
        True,
        partial(_far_within, 3),
        trials=20_000,
        quick=2_000,
    ),
    Claim(
        "cold_start.node",
        "the span in which a node became ready holds the moment, whatever the cluster's clock is",
        1.0,
        True,
        _node,
        trials=20_000,
        quick=2_000,
    ),
]
