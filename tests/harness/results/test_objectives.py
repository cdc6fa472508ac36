"""Objectives on samples whose truth is known; how often they err is measured in ``tests/truth``."""

from __future__ import annotations

import numpy as np
import pytest

from harness.base.errors import UsageError
from harness.results.dependence import correlation_time, late, mean_bounds, percentile_intervals, share_interval
from harness.results.objectives import Answer, Seen, joined, judge
from harness.results.slo import DEFAULT_ERRORS, parse_slo, with_errors


def seen(latency_s: np.ndarray, failed: np.ndarray | None = None, **fields: object) -> Seen:
    lost = np.zeros(latency_s.size, bool) if failed is None else failed
    values = {"length_s": 10.0, "steady": True, "rate_per_s": float((~lost).sum()) / 10, **fields}
    return Seen(np.where(lost, np.inf, latency_s), lost, **values)  # type: ignore[arg-type]


def steady(count: int, seconds: float = 0.01) -> np.ndarray:
    return np.random.default_rng(3).uniform(0.9, 1.1, count) * seconds


def flags(count: int, *places: int) -> np.ndarray:
    found = np.zeros(count, bool)
    found[list(places)] = True
    return found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("p50 < 20ms", Answer.MET),
        ("p99 < 20ms", Answer.MET),
        ("p99.9 < 20ms", Answer.UNDECIDED),
        ("p99 < 9.5ms", Answer.NOT_MET),
        ("p50 > 5ms", Answer.MET),
        ("p50 > 20ms", Answer.NOT_MET),
        ("p50 < 10ms", Answer.UNDECIDED),
        ("max < 20ms", Answer.MET),
        ("mean < 20ms", Answer.MET),
        ("mean < 9ms", Answer.NOT_MET),
        ("errors < 1%", Answer.MET),
        ("errors < 0.01%", Answer.UNDECIDED),
        ("errors <= 0%", Answer.MET),
        ("rate >= 100/s", Answer.MET),
    ],
)
def test_two_thousand_requests_of_about_10_ms(text: str, answer: Answer) -> None:
    judged = judge(parse_slo(text), seen(steady(2000)))
    assert judged.answer is answer, judged
    assert bool(judged.reason) is (answer is Answer.UNDECIDED)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("p50 < 1s", Answer.MET),
        ("p95 < 1s", Answer.NOT_MET),
        ("max < 1h", Answer.NOT_MET),
        ("mean < 1h", Answer.NOT_MET),
        ("errors < 1%", Answer.NOT_MET),
        ("errors < 50%", Answer.MET),
        ("p95 > 1ms", Answer.MET),
    ],
)
def test_failed_request_is_later_than_any_bound(text: str, answer: Answer) -> None:
    failed = np.random.default_rng(1).random(2000) < 0.2
    judged = judge(parse_slo(text), seen(steady(2000, 0.001), failed))
    assert judged.answer is answer, judged


def test_first_token_that_never_came_is_later_than_any_bound() -> None:
    ttft = steady(2000)
    ttft[::2] = np.inf
    gaps = steady(6000, 0.001)
    gaps[::6] = np.inf
    stage = seen(steady(2000), ttft_s=ttft, gap_s=gaps)
    assert judge(parse_slo("ttft p99 < 500ms"), stage).answer is Answer.NOT_MET
    assert judge(parse_slo("ttft p50 < 500ms"), stage).answer is Answer.UNDECIDED
    assert judge(parse_slo("gap p95 < 500ms"), stage).answer is Answer.NOT_MET
    assert judge(parse_slo("gap p50 < 500ms"), stage).answer is Answer.MET
    unstreamed = judge(parse_slo("ttft p99 < 500ms"), seen(steady(100)))
    assert unstreamed.answer is Answer.UNDECIDED
    assert "no streamed answer" in unstreamed.reason


def test_few_requests_decide_nothing_and_say_how_many_would() -> None:
    judged = judge(parse_slo("errors < 0.1%"), seen(steady(100)))
    assert judged.answer is Answer.UNDECIDED
    assert "about 3,000 requests (300 s like this) would decide it" in judged.reason
    assert judge(parse_slo("p50 < 1s"), seen(steady(30))).answer is Answer.UNDECIDED
    assert judge(parse_slo("p50 < 1ms"), seen(steady(30))).answer is Answer.NOT_MET


def test_requests_that_share_a_pause_count_less() -> None:
    """25 late requests of 5,000 each: alone, or in one pause."""
    places = np.random.default_rng(2).choice(5000, 25, replace=False)
    apart, together = flags(5000, *places), flags(5000, *range(1000, 1025))
    assert correlation_time(apart) < 2
    assert correlation_time(together) > 10
    assert late(together).high > late(apart).high > 25 / 5000 > late(apart).low > late(together).low
    assert share_interval(together)[1] > share_interval(apart)[1]


def test_rate_of_a_closed_loop_is_a_sample_and_of_an_open_loop_a_fact() -> None:
    rates = np.random.default_rng(4).poisson(10, 128).astype(float)
    stage = seen(steady(1280), rates_per_s=rates, rate_per_s=rates.mean())
    assert judge(parse_slo("rate > 5/s"), stage).answer is Answer.MET
    assert judge(parse_slo("rate > 20/s"), stage).answer is Answer.NOT_MET
    assert judge(parse_slo(f"rate > {rates.mean():.3f}/s"), stage).answer is Answer.UNDECIDED
    assert judge(parse_slo(f"rate > {rates.mean():.3f}/s"), seen(steady(100), rate_per_s=11.0)).answer is Answer.MET


def test_stages_of_one_rate_decide_together() -> None:
    stage = seen(steady(200))
    objective = parse_slo("p99 < 20ms")
    assert judge(objective, stage).answer is Answer.UNDECIDED
    assert judge(objective, joined([stage] * 6)).answer is Answer.MET


def test_every_stage_has_an_objective_for_errors() -> None:
    asked = (parse_slo("p99 < 1s"),)
    assert with_errors(asked) == (*asked, DEFAULT_ERRORS)
    own = (parse_slo("errors < 5%"),)
    assert with_errors(own) == own


@pytest.mark.parametrize("text", ["errors < 0%", "errors < 200%", "errors > -1%"])
def test_share_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SLO"):
        parse_slo(text)


def test_interval_has_ends_or_is_not_there() -> None:
    latency = steady(4000)
    latency[::40] = np.inf  # the 97.5th percentile and above are never answered
    found = percentile_intervals(latency)
    assert {"p50", "p90"} <= set(found)
    assert not {"p99", "p99_9"} & set(found)
    assert percentile_intervals(steady(20)) == {}
    assert mean_bounds(latency) is None


def test_what_comes_with_the_course_of_the_load_is_no_chance() -> None:
    """A service that scales out: 90 of 3,000 requests are late, all while pods start."""
    latency = steady(3000)
    latency[1000:1090] = 1.0
    objective = parse_slo("p95 < 500ms")
    assert judge(objective, seen(latency)).answer is Answer.UNDECIDED, "once in a steady stage"
    assert judge(objective, seen(latency, steady=False)).answer is Answer.MET
