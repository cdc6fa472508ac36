"""What a roll-out decides, and says that it could not, by tables; the statistics behind it are in ``tests/truth``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom

from harness.load.recording import HTTP_5XX
from harness.results.records import Outcome
from harness.results.stats import accepted_counts, binomial_p_value, draws_needed
from scenarios.suites.canary.errors import (
    Compared,
    Count,
    Exposed,
    at_least,
    at_most,
    compared,
    excess_at_least,
    excess_at_most,
    requests_needed,
    shown_no_worse,
    shown_worse,
    smallest_found,
)
from scenarios.suites.canary.guards import (
    MOST_S,
    Evidence,
    Finding,
    Limits,
    Ruling,
    baseline_requests,
    judge_errors,
    judge_latency,
    judge_split,
    overall,
    requests_planned,
)
from scenarios.suites.canary.latency import (
    LEAST_BLOCKS,
    Latencies,
    comparable_since,
    comparable_time,
    compare,
    is_comparable,
    load_ratio,
)
from scenarios.suites.canary.latency import (
    requests_planned as latency_requests,
)
from scenarios.suites.canary.parity import judge_parity
from scenarios.suites.canary.phases import Phase
from scenarios.suites.shared.stage.background import Traffic
from tests.records import check

Floats = npt.NDArray[np.float64]
LIMITS = Limits(errors=0.01, latency_ratio=1.5, phases=2)
BEFORE = Count(0, 500)


def exposed(failed: int, candidate: Count, stable: Count) -> Exposed:
    named = candidate.failed + stable.failed
    return Exposed(Count(failed, candidate.n + stable.n + failed - named), candidate, stable)


def evidence(beside: Exposed, *, by_answer: bool = False) -> Evidence:
    return Evidence(BEFORE, by_answer).after(50, beside, None, "nothing")


# The split


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
    assert binomial_p_value(300, 1000, 0.1) < 1e-12


# Errors


def test_limits_of_a_share_are_exact() -> None:
    assert at_most(Count(0, 300), 0.05) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert at_least(Count(0, 300), 0.05) == 0
    low, high = at_least(Count(7, 90), 0.025), at_most(Count(7, 90), 0.025)
    assert 1 - float(binom.cdf(6, 90, low)) == pytest.approx(0.025)
    assert float(binom.cdf(7, 90, high)) == pytest.approx(0.025)
    assert at_most(Count(0, 0), 0.05) == 1


@pytest.mark.parametrize("answers", [20, 50, 200, 1000])
def test_one_failed_request_rolls_nothing_back(answers: int) -> None:
    for by_answer in (False, True):
        one = exposed(1, Count(int(by_answer), answers), Count(0, answers))
        found = judge_errors(evidence(one, by_answer=by_answer), LIMITS, last=False)
        assert found.ruling is Ruling.LATER


def test_a_failure_that_names_its_version_is_held_against_it() -> None:
    theirs = exposed(12, Count(0, 400), Count(12, 400))
    assert judge_errors(evidence(theirs, by_answer=True), LIMITS, last=True).ruling is Ruling.HELD
    ours = exposed(25, Count(25, 400), Count(0, 400))
    assert judge_errors(evidence(ours, by_answer=True), LIMITS, last=False).ruling is Ruling.BROKEN


def test_a_failure_that_names_nobody_is_compared_with_the_time_before() -> None:
    beside = exposed(40, Count(0, 480), Count(0, 480))
    two = compared(beside, BEFORE, by_answer=True)
    assert two.one == Count(40, 1000)
    assert two.other == BEFORE
    assert (two.least, two.most) == (0.48, 0.52)
    assert judge_errors(evidence(beside), LIMITS, last=False).ruling is Ruling.BROKEN
    usual = Evidence(Count(20, 500), by_answer=False).after(50, beside, None, "nothing")
    assert judge_errors(usual, LIMITS, last=False).ruling is Ruling.LATER


def test_a_candidate_that_answers_nothing_is_broken_and_one_without_requests_is_not_decided() -> None:
    dead = exposed(500, Count(0, 0), Count(0, 500))
    assert judge_errors(evidence(dead), LIMITS, last=False).ruling is Ruling.BROKEN
    unasked = exposed(0, Count(0, 0), Count(0, 1000))
    assert judge_errors(evidence(unasked), LIMITS, last=True).ruling is Ruling.UNDECIDED


def test_too_few_requests_decide_nothing_and_say_how_many_would() -> None:
    found = judge_errors(evidence(exposed(0, Count(0, 50), Count(0, 50))), LIMITS, last=True)
    assert found.ruling is Ruling.UNDECIDED
    assert "of 100 requests failed" in found.observed
    assert "would decide it" in found.reason
    assert "no difference" in judge_errors(evidence(exposed(0, Count(0, 1), Count(0, 1))), LIMITS, last=True).observed


def test_the_smallest_difference_is_found_and_a_smaller_one_is_not_promised() -> None:
    two = Compared(Count(0, 2000), Count(0, 500), 0.5, 0.5)
    least = smallest_found(two, 0.001, 0.0025)
    assert 0.01 < least < 0.1
    failures = next(n for n in range(2000) if shown_worse(Compared(Count(n, 2000), two.other, 0.5, 0.5), 0.001, 0.0025))
    assert 1 - float(binom.cdf(failures - 1, 2000, least * 0.5)) == pytest.approx(0.95, abs=1e-6)


def test_limits_of_the_excess_take_the_share_that_speaks_against_them() -> None:
    known, vague = (Compared(Count(30, 1000), Count(2, 1000), least, most) for least, most in ((0.5, 0.5), (0.4, 0.6)))
    assert excess_at_most(vague, 0.05) == pytest.approx(excess_at_most(known, 0.05) * 0.5 / 0.4)
    assert excess_at_least(vague, 0.05) == pytest.approx(excess_at_least(known, 0.05) * 0.5 / 0.6)


@pytest.mark.parametrize(("guard", "least"), [(0.001, 2995), (0.01, 299)])
def test_the_guard_says_how_many_requests_the_candidate_needs(guard: float, least: int) -> None:
    n = requests_needed(guard, 0.5, Count(0, 200), 0.05, 10**6)
    assert n is not None
    assert n / 2 == pytest.approx(least, rel=0.01)
    assert shown_no_worse(Compared(Count(0, n), Count(0, 200), 0.5, 0.5), guard, 0.05)
    assert requests_needed(guard, 0.5, Count(0, 200), 0.05, n - 1) is None


# Latency


@pytest.mark.parametrize(
    ("percent", "pods", "comparable"),
    [
        (50, (1, 1), True),
        (50, (3, 3), True),
        (20, (1, 4), True),
        (90, (1, 1), False),
        (10, (1, 1), False),
        (50, (1, 2), False),
        (45, (1, 1), False),
        (50, (0, 1), False),
        (50, (1, 0), False),
    ],
)
def test_latencies_are_compared_at_equal_load_per_pod(percent: int, pods: tuple[int, int], comparable: bool) -> None:
    assert is_comparable(load_ratio(percent, *pods)) is comparable


@pytest.mark.parametrize(
    ("ratios", "since", "time"),
    [
        ([1.0, 1.0, 1.0], 0.0, (0.0, 2.0)),
        ([3.0, 1.0, 1.1, 0.9], 1.0, (1.0, 3.0)),
        ([1.0, 1.0, 1.0, 2.0, 1.0], 4.0, (0.0, 2.0)),
        ([1.0, 3.0], None, (0.0, 0.0)),
        ([3.0, float("nan")], None, None),
    ],
)
def test_only_the_time_with_equal_load_counts(
    ratios: list[float], since: float | None, time: tuple[float, float] | None
) -> None:
    loads = [(float(second), ratio) for second, ratio in enumerate(ratios)]
    assert comparable_since(loads) == since
    assert comparable_time(loads) == time


TIMEOUT_S = 5.0


def traffic_of(due_s: Floats, latency_s: Floats, version: Any, failed: Any = None, **fields: Any) -> Traffic:
    """Answers of versions 1 and 2, all of them inspected; ``failed`` ones have a status of 503."""
    error = np.zeros(due_s.size, np.int16) if failed is None else np.where(failed, HTTP_5XX, 0).astype(np.int16)
    values: dict[str, Any] = {"inspected": error == 0, "compared": error == 0, "wrong": {}, **fields}
    return Traffic(
        due_s=due_s,
        done_s=due_s + latency_s,
        error=error,
        version=np.array(version, dtype=np.str_),
        status=np.where(error == 0, 200, 503).astype(np.int32),
        start_s=0.0,
        examples={},
        **values,
    )


def latencies(
    factor: float, requests: int, seconds: float, failing: float = 0.0, named: bool = True, fail_s: float = 0.001
) -> Latencies:
    """The candidate is slower by ``factor``, and fails a share ``failing`` after ``fail_s``."""
    draws = np.random.default_rng(5)
    due_s = np.sort(draws.uniform(0, seconds, requests))
    ours = draws.random(requests) < 0.5
    latency_s = draws.gamma(4, 0.002, requests) * np.where(ours, factor, 1.0)
    failed = ours & (draws.random(requests) < failing)
    version = np.where(failed & (not named), "", np.where(ours, "2", "1"))
    traffic = traffic_of(due_s, np.where(failed, fail_s, latency_s), version, failed)
    return compare(traffic, np.ones(requests, bool), "2", "1", TIMEOUT_S)


@pytest.mark.parametrize("fail_s", [0.001, TIMEOUT_S])
@pytest.mark.parametrize(
    ("failing", "named", "ruling"),
    [
        (0.04, True, Ruling.BROKEN),
        (0.04, False, Ruling.UNDECIDED),
        (0.001, True, Ruling.HELD),
        (0.0, False, Ruling.HELD),
    ],
)
def test_a_failed_request_counts_with_the_timeout(failing: float, named: bool, ruling: Ruling, fail_s: float) -> None:
    """A candidate that times out on 4 % has no 99th percentile within any limit, whatever the guard on errors allows;
    one that fails fast is not fast."""
    found = latencies(1.0, 3200, 16, failing, named, fail_s)
    evidence_ = Evidence(BEFORE, by_answer=named).after(50, exposed(0, Count(0, 1), Count(0, 1)), found)
    judged = judge_latency(evidence_, LIMITS, last=True)
    assert judged.ruling is ruling, judged
    assert ("count with at least the timeout, 5 s" in judged.observed) is (failing > 0)
    assert ("as the candidate's: they name no version" in judged.observed) is (failing > 0 and not named)
    assert ("do not say whose they are" in judged.reason) is (ruling is Ruling.UNDECIDED)


@pytest.mark.parametrize(
    ("factor", "ruling"), [(1.0, Ruling.HELD), (0.5, Ruling.HELD), (3.0, Ruling.BROKEN), (1.5, Ruling.UNDECIDED)]
)
def test_a_candidate_is_slower_or_not_or_about_the_limit(factor: float, ruling: Ruling) -> None:
    found = Evidence(BEFORE, by_answer=False).after(
        50, exposed(0, Count(0, 1), Count(0, 1)), latencies(factor, 3200, 16)
    )
    judged = judge_latency(found, LIMITS, last=True)
    assert judged.ruling is ruling, judged
    assert "would have been found" in judged.observed
    assert bool(judged.reason) is (ruling is Ruling.UNDECIDED)


@pytest.mark.parametrize(("requests", "seconds"), [(1000, 16.0), (3200, LEAST_BLOCKS - 1.0)])
def test_too_few_blocks_compare_nothing(requests: int, seconds: float) -> None:
    found = Evidence(BEFORE, by_answer=False).after(
        50, exposed(0, Count(0, 1), Count(0, 1)), latencies(1.0, requests, seconds)
    )
    judged = judge_latency(found, LIMITS, last=True)
    assert judged.ruling is Ruling.UNDECIDED
    assert "600 answers of each version" in judged.reason


def test_without_equal_load_latency_is_not_decided_and_the_reason_says_why() -> None:
    found = Evidence(BEFORE, by_answer=False).after(
        90, exposed(0, Count(0, 9), Count(0, 1)), None, "nine times the load"
    )
    assert judge_latency(found, LIMITS, last=False).ruling is Ruling.LATER
    judged = judge_latency(found, LIMITS, last=True)
    assert judged.ruling is Ruling.UNDECIDED
    assert "at 90 % nine times the load" in judged.reason
    assert "50 with as many pods of each" in judged.reason
    off = Limits(errors=0.01, latency_ratio=None, phases=1)
    assert judge_latency(found, off, last=True).ruling is Ruling.OFF


# Parity


def phase_of(traffic: Traffic, by_revision: dict[str, int] | None = None) -> Phase:
    return Phase("p", traffic, changed_s=0.0, counts_s=0.0, by_revision=by_revision)


@pytest.mark.parametrize(
    ("inspected", "last", "ruling", "words"),
    [
        (200, True, Ruling.HELD, "100 of 100 answers compared"),
        (60, True, Ruling.HELD, "30 of 100 answers compared"),
        (58, True, Ruling.UNDECIDED, "29 of 100 answers compared"),
        (58, False, Ruling.LATER, "29 of 100 answers compared"),
        (0, True, Ruling.UNDECIDED, "0 of 100 answers compared"),
        (0, False, Ruling.UNDECIDED, "0 of 100 answers compared"),
    ],
)
def test_parity_is_of_answers_that_were_compared(inspected: int, last: bool, ruling: Ruling, words: str) -> None:
    """Large answers are not kept to the end: what nobody looked at is not right."""
    kept = np.arange(200) < inspected
    moments = np.arange(200.0)
    traffic = traffic_of(moments, moments, ["1", "2"] * 100, inspected=kept, compared=kept)
    judged = judge_parity(phase_of(traffic), "2", "1", last=last)
    assert judged.ruling is ruling, judged
    assert words in judged.observed
    assert ("30 answers of the candidate decide it" in judged.reason) is (ruling is Ruling.UNDECIDED)
    assert bool(traffic.inspected_text()) is (inspected < 200)


def test_parity_with_what_does_not_repeat_itself_or_says_no_version() -> None:
    moments = np.arange(200.0)
    changing = traffic_of(moments, moments, ["1", "2"] * 100, compared=np.zeros(200, bool))
    judged = judge_parity(phase_of(changing), "2", "1", last=True)
    assert (judged.ruling, "does not repeat itself" in judged.reason) == (Ruling.UNDECIDED, True)
    kept = np.arange(200) < 120
    counted = phase_of(traffic_of(moments, moments, [""] * 200, inspected=kept, compared=kept), {"a": 100, "b": 100})
    assert judge_parity(counted, "b", "a", last=True).ruling is Ruling.UNDECIDED, "20 of the candidate, at least"
    counted.traffic.compared[:] = True
    assert judge_parity(counted, "b", "a", last=True).ruling is Ruling.HELD
    wrong = traffic_of(moments, moments, ["1", "2"] * 100, wrong={1: "y[0]: expected 1, got 2"})
    assert judge_parity(phase_of(wrong), "2", "1", last=False).ruling is Ruling.BROKEN


# The roll-out


@pytest.mark.parametrize(
    ("outcome", "last", "ruling"),
    [
        (Outcome.FAILED, False, Ruling.BROKEN),
        (Outcome.FAILED, True, Ruling.BROKEN),
        (Outcome.ERROR, True, Ruling.UNDECIDED),
        (Outcome.PASSED, True, Ruling.HELD),
    ],
)
def test_a_candidate_whose_split_is_wrong_is_not_promoted(outcome: Outcome, last: bool, ruling: Ruling) -> None:
    guards = [Finding(Ruling.HELD, "", ""), judge_split(check("candidate-1.split.50", outcome=outcome))]
    assert overall(guards, last=last) is ruling


@pytest.mark.parametrize(
    ("rulings", "last", "ruling"),
    [
        ((Ruling.HELD, Ruling.HELD, Ruling.OFF), True, Ruling.HELD),
        ((Ruling.HELD, Ruling.UNDECIDED, Ruling.HELD), True, Ruling.UNDECIDED),
        ((Ruling.HELD, Ruling.LATER, Ruling.HELD), True, Ruling.UNDECIDED),
        ((Ruling.BROKEN, Ruling.LATER, Ruling.HELD), False, Ruling.BROKEN),
        ((Ruling.BROKEN, Ruling.UNDECIDED, Ruling.HELD), True, Ruling.BROKEN),
        ((Ruling.LATER, Ruling.LATER, Ruling.UNDECIDED), False, Ruling.LATER),
    ],
)
def test_only_what_every_guard_holds_is_promoted(rulings: tuple[Ruling, ...], last: bool, ruling: Ruling) -> None:
    assert overall([Finding(item, "", "") for item in rulings], last=last) is ruling


def test_a_phase_is_as_long_as_its_guards_need_and_says_where_it_cannot_be() -> None:
    none = Evidence(Count(0, 1500), by_answer=False)
    strict = Limits(errors=0.001, latency_ratio=1.5, phases=2)
    first, short = requests_planned(strict, 10, none, comparable=False, last=False, rate_per_s=200)
    assert (first, short) == (0, "")
    compare, short = requests_planned(strict, 50, none, comparable=True, last=False, rate_per_s=200)
    assert (compare, short) == (latency_requests(50), "")
    last, short = requests_planned(strict, 50, none, comparable=False, last=True, rate_per_s=200)
    assert 6000 < last < 6600
    assert not short
    fewer, _ = requests_planned(
        strict,
        50,
        none.after(10, exposed(0, Count(0, 1000), Count(0, 9000)), None, "more load"),
        comparable=False,
        last=True,
        rate_per_s=200,
    )
    assert last - 2200 < fewer < last - 2000
    slow, short = requests_planned(strict, 10, none, comparable=False, last=True, rate_per_s=5)
    assert slow <= MOST_S * 5
    assert "raise 'rate' or guards.errors" in short
    assert baseline_requests(strict, 50, 200) >= 1490
