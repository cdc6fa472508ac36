"""When a load result must not be believed: the judgement is a pure function."""

from __future__ import annotations

import numpy as np
import pytest

from harness.load.recording import ERRORS
from harness.load.runner import StageResult
from harness.results.objectives import Seen
from harness.results.records import Outcome, SampleBatch
from harness.results.slo import parse_slo
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.results import invalid_reason, is_steady, kept_up, limited_reason, without_limit


def stage(cpu: float = 0.2, stopped: bool = False) -> StageResult:
    return StageResult({}, {}, cpu, stopped)


def plan(**fields: object) -> Plan:
    return Plan("p", **{"duration_s": 10.0, "rate_per_s": 100.0, **fields})  # type: ignore[arg-type]


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
    assert "no request was sent" in invalid_reason(plan(), SERVICE_S[:0], SERVICE_S[:0], stage())
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


def columns_of(due_s: np.ndarray, done_s: np.ndarray, error: np.ndarray | int = 0) -> dict[str, np.ndarray]:
    due = (due_s * 1e9).astype(np.int64)
    errors = np.broadcast_to(np.int16(error), due.shape) if np.isscalar(error) else error
    return {"due_ns": due, "done_ns": (done_s * 1e9).astype(np.int64), "error": errors}


DUE_S = np.arange(0, 60, 0.01)


@pytest.mark.parametrize(
    ("done_s", "error", "outcome"),
    [
        (DUE_S + 0.05, 0, Outcome.PASSED),
        (DUE_S + 20.0, 0, Outcome.PASSED),  # slow, and it keeps up
        (DUE_S * 1.047, 0, Outcome.UNDECIDED),  # 95.5 of 100 a second, for a minute
        (DUE_S * 1.5, 0, Outcome.FAILED),
        (DUE_S + 10.0, ERRORS.index("timeout"), Outcome.FAILED),  # nobody ever answers
        (DUE_S + 0.001, ERRORS.index("http_5xx"), Outcome.PASSED),  # refused: that is an error, and no backlog
    ],
)
def test_what_ends_as_fast_as_it_comes(done_s: np.ndarray, error: int, outcome: Outcome) -> None:
    found, seen, _ = kept_up(plan(duration_s=60.0, warmup_s=0.0), columns_of(DUE_S, done_s, error))
    assert found is outcome, seen


def test_slight_overload_is_found_in_a_long_stage() -> None:
    due = np.arange(0, 600, 0.01)
    found, seen, _ = kept_up(plan(duration_s=600.0, warmup_s=0.0), columns_of(due, due * 1.047))
    assert found is Outcome.FAILED, seen


def test_busy_queues_keep_up() -> None:
    from tests.truth.queues import mm1

    generator = np.random.default_rng(5)
    for _ in range(200):
        due = np.cumsum(generator.exponential(0.01, 6000))
        done = due + mm1(0.9, 6000, generator) * 0.009
        found, seen, _ = kept_up(plan(duration_s=float(due[-1]), warmup_s=0.0), columns_of(due, np.sort(done)))
        assert found is not Outcome.FAILED, seen


def test_slow_service_in_a_short_stage_is_undecided() -> None:
    due = np.arange(0, 3, 0.001)
    found, _, reason = kept_up(plan(duration_s=3.0, warmup_s=0.0), columns_of(due, due + 2.5))
    assert found is Outcome.UNDECIDED
    assert "would decide it" in reason


def batch(sent: np.ndarray, error: np.ndarray) -> SampleBatch:
    count = sent.size
    due = np.arange(count, dtype=np.int64) * 10**7
    done = due + 10**8
    sent_ns = np.where(sent, due + 10**6, -1)
    zeros = np.zeros(count, np.int64)
    return SampleBatch(
        "s", "load", due, due + 1000, sent_ns, sent_ns, done, zeros.astype(np.int32), zeros, error, tuple(ERRORS)
    )


def test_refused_connections_are_the_service_s_and_not_the_limit_s() -> None:
    error = np.zeros(6000, np.int16)
    error[3000:] = ERRORS.index("connect")
    refused = batch(error == 0, error)
    assert limited_reason(plan(), refused, StageResult({}, {}, 0.2, False, limited=3)) == ""
    error[3000:] = ERRORS.index("timeout")
    waited = batch(error == 0, error)
    reason = limited_reason(plan(), waited, StageResult({}, {}, 0.2, False, limited=3000))
    assert "3000 requests never got one" in reason
    seen = Seen(waited.latency_s, waited.failed, 60.0, True, 50.0)
    assert without_limit(seen, waited).failed.size == 3000


def test_generator_that_stands_still_until_requests_fail_is_seen() -> None:
    """1,000 requests, a stall of 0.3 s, a time limit of 0.1 s: 20 time-outs that are the generator's."""
    lag = np.zeros(1000)
    lag[500:530] = np.linspace(0.3, 0.01, 30)
    service = np.full(1000, 0.005)
    assert "send lag moved" in invalid_reason(plan(), service + lag, service, stage())
