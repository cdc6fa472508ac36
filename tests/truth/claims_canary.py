"""Whole roll-outs of candidates whose truth is known: what is promoted, and what is rolled back.

One pod of each version, a queue with exponential times between arrivals and of service, percentages of 10, 50 and 90.
Failures name nobody, as where versions are told apart by what answers say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.results.stats import draws_needed
from scenarios.suites.canary.errors import Compared, Count, Exposed, shown_no_worse
from scenarios.suites.canary.guards import (
    Evidence,
    Finding,
    Limits,
    Ruling,
    baseline_requests,
    judge_errors,
    judge_latency,
    overall,
    requests_planned,
)
from scenarios.suites.canary.latency import compare, is_comparable, load_ratio
from scenarios.suites.canary.phases import ALPHA
from scenarios.suites.canary.phases import POWER as SPLIT_POWER
from scenarios.suites.shared.stage.background import Traffic
from tests.truth.claim import Claim, Seen

PERCENTS = (10, 50, 90)
RATE_PER_S = 200.0
SERVICE_S = 0.0035
"""A pod is busy for 63 % of the time at 90 % of the requests, and for 35 % at half of them."""
RESOLUTION = 0.1
TIMEOUT_S = 10.0
LIMITS = Limits(errors=0.001, latency_ratio=1.5, phases=len(PERCENTS))
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Shares of failures, and how many times longer than the other version the candidate serves a request."""

    stable_errors: float = 0.0
    candidate_errors: float = 0.0
    slower: float = 1.0


@dataclass(frozen=True)
class Outcome:
    ruling: Ruling
    errors: Ruling
    latency: Ruling
    requests: int


def response_times(draws: np.random.Generator, due_s: Values, service_s: float) -> Values:
    """Of one server that takes one request after the other (Lindley's recursion)."""
    if not due_s.size:
        return due_s
    served = draws.exponential(service_s, due_s.size)
    walk = np.concatenate([[0.0], np.cumsum(served[:-1] - np.diff(due_s))])
    waited: Values = walk - np.minimum.accumulate(walk)
    return waited + served


def roll_out(draws: np.random.Generator, truth: Truth, limits: Limits = LIMITS) -> Outcome:
    planned = baseline_requests(limits, PERCENTS[-1], RATE_PER_S)
    evidence = Evidence(Count(int(draws.binomial(planned, truth.stable_errors)), planned), by_answer=False)
    findings: list[Finding] = []
    requests = planned
    for percent in PERCENTS:
        last = percent == PERCENTS[-1]
        comparable = is_comparable(load_ratio(percent, 1, 1))
        wanted, _ = requests_planned(limits, percent, evidence, comparable=comparable, last=last, rate_per_s=RATE_PER_S)
        seconds = max(wanted, draws_needed(percent / 100, RESOLUTION, ALPHA, SPLIT_POWER)) / RATE_PER_S
        due_s = np.sort(draws.uniform(0.0, seconds, int(draws.poisson(seconds * RATE_PER_S))))
        ours = draws.random(due_s.size) < percent / 100
        latency_s = np.empty(due_s.size)
        latency_s[ours] = response_times(draws, due_s[ours], SERVICE_S * truth.slower)
        latency_s[~ours] = response_times(draws, due_s[~ours], SERVICE_S)
        failed = draws.random(due_s.size) < np.where(ours, truth.candidate_errors, truth.stable_errors)
        exposed = Exposed(
            Count(int(failed.sum()), due_s.size),
            Count(0, int((ours & ~failed).sum())),
            Count(0, int((~ours & ~failed).sum())),
        )
        version = np.where(failed, "", np.where(ours, "2", "1"))
        traffic = Traffic(
            due_s=due_s,
            done_s=due_s + latency_s,
            error=failed.astype(np.int16),
            version=version,
            wrong={},
            status=np.zeros(due_s.size, np.int32),
            start_s=0.0,
            examples={},
            inspected=~failed,
            compared=~failed,
        )
        found = compare(traffic, np.ones(due_s.size, dtype=bool), "2", "1", TIMEOUT_S) if comparable else None
        evidence = evidence.after(percent, exposed, found, "" if comparable else "a pod has nine times the load")
        requests += due_s.size
        findings = [judge_errors(evidence, limits, last=last), judge_latency(evidence, limits, last=last)]
        if overall(findings, last=last) is Ruling.BROKEN:
            break
    return Outcome(overall(findings, last=last), findings[0].ruling, findings[1].ruling, requests)


def seen(truth: Truth, hit: Callable[[Outcome], bool], limits: Limits = LIMITS) -> Callable[[int, int], Seen]:
    def measure(trials: int, seed: int) -> Seen:
        draws = np.random.default_rng(seed)
        return Seen(sum(hit(roll_out(draws, truth, limits)) for _ in range(trials)), trials)

    return measure


def equal(share: float) -> Truth:
    return Truth(stable_errors=share, candidate_errors=share)


def rolled_back(outcome: Outcome) -> bool:
    return outcome.ruling is Ruling.BROKEN


def promoted(outcome: Outcome) -> bool:
    return outcome.ruling is Ruling.HELD


def worse_by_the_guard(stable_errors: float, guard: float, requests: int) -> Callable[[int, int], Seen]:
    """How often the guard on errors holds for a candidate that fails more often by just the guard, at half the
    requests, with a quarter as many before it."""

    def measure(trials: int, seed: int) -> Seen:
        draws = np.random.default_rng(seed)
        failed = draws.binomial(requests, stable_errors + guard / 2, trials)
        before = draws.binomial(requests // 4, stable_errors, trials)
        pairs = [
            Compared(Count(int(one), requests), Count(int(other), requests // 4), 0.5, 0.5)
            for one, other in zip(failed, before, strict=True)
        ]
        return Seen(sum(shown_no_worse(two, guard, 0.05) for two in pairs), trials)

    return measure


def claim(
    name: str,
    promise: str,
    bound: float,
    measure: Callable[[int, int], Seen],
    *,
    at_least: bool,
    trials: int = 2000,
    quick: int = 150,
) -> Claim:
    return Claim(f"canary.{name}", promise, bound, at_least, measure, trials, quick)


CLAIMS = [
    *(
        claim(
            f"equal.{share * 100:g}",
            f"Both versions fail {share:.1%} of their requests, one pod each: a roll-out by 10, 50 and 90 % takes the"
            " candidate back because of a guard that it broke",
            0.01,
            seen(equal(share), rolled_back),
            at_least=False,
        )
        for share in (0.0, 0.001, 0.002)
    ),
    claim(
        "equal.latency",
        "Equal versions, one pod each, up to 90 % of the requests for one of them: called slower",
        0.01,
        seen(equal(0.0), lambda outcome: outcome.latency is Ruling.BROKEN),
        at_least=False,
    ),
    claim(
        "equal.promoted",
        "Equal versions that lose nothing: promoted with the planned number of requests",
        0.9,
        seen(equal(0.0), promoted),
        at_least=True,
        quick=200,
    ),
    claim(
        "errors.2",
        "The candidate fails 2 % of its requests, the other version none: rolled back by the guard on errors (0.1 %)",
        0.95,
        seen(Truth(candidate_errors=0.02), lambda outcome: outcome.errors is Ruling.BROKEN),
        at_least=True,
        quick=200,
    ),
    claim(
        "errors.2.beside",
        "The candidate fails 2 % of its requests, the other version 0.1 %: not promoted",
        0.95,
        seen(Truth(0.001, 0.02), lambda outcome: not promoted(outcome)),
        at_least=True,
        quick=200,
    ),
    claim(
        "timeouts.4",
        "The candidate times out on 4 % of its requests, which the guard on errors allows (5 %): not promoted",
        0.95,
        seen(
            Truth(candidate_errors=0.04),
            lambda outcome: not promoted(outcome) and outcome.latency is not Ruling.HELD,
            Limits(errors=0.05, latency_ratio=1.5, phases=len(PERCENTS)),
        ),
        at_least=True,
        quick=200,
    ),
    claim(
        "slower.1.5",
        "The candidate takes 1.5 times as long to serve a request, and the guard allows 1.5: not promoted",
        0.95,
        seen(Truth(slower=1.5), lambda outcome: not promoted(outcome)),
        at_least=True,
        quick=200,
    ),
    claim(
        "slower.1.5.guard",
        "The candidate takes 1.5 times as long, and the guard allows 1.2: rolled back for its latency",
        0.95,
        seen(
            Truth(slower=1.5),
            lambda outcome: outcome.latency is Ruling.BROKEN,
            Limits(errors=0.001, latency_ratio=1.2, phases=len(PERCENTS)),
        ),
        at_least=True,
        quick=200,
    ),
    claim(
        "slower.2",
        "The candidate takes twice as long, and the guard allows 1.5: rolled back for its latency",
        0.95,
        seen(Truth(slower=2.0), lambda outcome: outcome.latency is Ruling.BROKEN),
        at_least=True,
        quick=200,
    ),
    *(
        claim(
            f"by_the_guard.{share * 100:g}",
            f"The candidate fails more often by just the guard (0.1 %, the other version fails {share:.1%}): the guard"
            " on errors holds",
            0.055,  # 5 %, and what chance adds in so many trials
            worse_by_the_guard(share, 0.001, 6000),
            at_least=False,
            trials=10_000,
            quick=1000,
        )
        for share in (0.0, 0.001, 0.002)
    ),
]
