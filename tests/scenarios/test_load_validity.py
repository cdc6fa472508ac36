"""When a load result must not be believed: the judgement is a pure function."""

from __future__ import annotations

import numpy as np
import pytest

from harness.load.runner import StageResult
from harness.slo import parse_slo
from scenarios.suites.load import Plan
from scenarios.suites.load.results import invalid_reason, is_steady


def stage(cpu: float = 0.2, stopped: bool = False) -> StageResult:
    return StageResult({}, {}, cpu, stopped)


def plan(**fields: object) -> Plan:
    return Plan("p", 10.0, **{"rate_per_s": 100.0, **fields})  # type: ignore[arg-type]


SERVICE_S = np.random.default_rng(1).exponential(0.01, 5000)


@pytest.mark.parametrize(
    ("lag_s", "valid"),
    [
        (np.zeros(5000), True),
        (np.full(5000, 0.0001), True),
        (np.full(5000, 0.005), False),
        # A generator that stood still once for 200 ms at 100/s: 20 requests of 5000 were late.
        (np.concatenate([np.linspace(0.2, 0, 20), np.zeros(4980)]), False),
        (np.concatenate([np.linspace(0.01, 0, 2), np.zeros(4998)]), True),
    ],
)
def test_lateness_that_moves_a_percentile_is_not_valid(lag_s: np.ndarray, valid: bool) -> None:
    reason = invalid_reason(plan(), np.sort(SERVICE_S + lag_s), np.sort(SERVICE_S), stage())
    assert (reason == "") is valid, reason
    assert valid or "send lag moved" in reason


def test_stopped_idle_and_saturated_generators_are_not_valid() -> None:
    assert "stopped" in invalid_reason(plan(), SERVICE_S, SERVICE_S, stage(stopped=True))
    assert "no request was sent" in invalid_reason(plan(), SERVICE_S, SERVICE_S[:0], stage())
    saturated = invalid_reason(plan(rate_per_s=None, concurrency=16), SERVICE_S, SERVICE_S, stage(cpu=0.99))
    assert "99%" in saturated


def test_only_upper_bounds_on_latency_survive_an_invalid_stage() -> None:
    assert parse_slo("p99 < 50ms").bounds_latency_above
    assert not parse_slo("p99 > 1ms").bounds_latency_above
    assert not parse_slo("errors < 1%").bounds_latency_above
    assert not parse_slo("rate >= 5/s").bounds_latency_above


def test_steady_is_three_seconds_alike() -> None:
    due = np.arange(0, 3 * 10**9, 10**7)
    assert is_steady(due, np.full(300, 0.02))
    assert not is_steady(due, np.linspace(0.03, 0.01, 300)), "still getting faster"
    assert not is_steady(due[:200], np.full(200, 0.02)), "a second without a request tells nothing"
