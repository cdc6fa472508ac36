"""What the phases of a roll-out say of its candidate. A pure function of their numbers.

Evidence adds up over the phases. After each, a candidate that is shown to be worse is rolled back; that it is no worse
is decided once, after the last, and it is promoted only where every guard says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from harness.base.units import format_duration
from harness.results.records import CheckResult, Outcome
from scenarios.suites.canary import errors, latency
from scenarios.suites.canary.errors import NOTHING, Compared, Count, Exposed
from scenarios.suites.canary.latency import LEAST_BLOCKS, NO_LATENCIES, Latencies

WRONGLY_ROLLED_BACK = 0.01
"""How often an equal candidate is, at most; all phases and both guards together."""
WRONGLY_PROMOTED = 0.05
"""How often a candidate that is worse by just the guard is promoted, at most."""
MOST_S = 600.0
"""The longest that a phase is made for the guards to decide."""
BASELINE = 0.25
"""Requests before the candidate, as a share of those beside it that the guard on errors takes."""
LEAST_BASELINE = 200


class Ruling(StrEnum):
    HELD = "held"
    BROKEN = "broken"
    UNDECIDED = "undecided"
    LATER = "later"
    """Not broken so far; the last phase decides."""
    OFF = "off"


@dataclass(frozen=True)
class Limits:
    """``errors`` is how much larger the candidate's share of failures may be, ``latency_ratio`` how many times slower
    it may be (None: any); ``phases`` is how often a roll-out looks."""

    errors: float
    latency_ratio: float | None
    phases: int

    @property
    def alpha_worse(self) -> float:
        return WRONGLY_ROLLED_BACK / (2 * self.phases)


@dataclass(frozen=True)
class Evidence:
    """``before`` are requests of the version before the candidate, ``exposed`` those beside the candidate,
    ``latencies`` those of the phases with comparable load per pod, and ``compared_at`` their percentages.
    ``not_compared`` says of the other phases why."""

    before: Count
    by_answer: bool
    """Whether an answer that failed may say whose it is."""
    exposed: Exposed = NOTHING
    latencies: Latencies = NO_LATENCIES
    compared_at: tuple[int, ...] = ()
    not_compared: tuple[str, ...] = ()

    @property
    def attributed(self) -> bool:
        return self.by_answer and self.exposed.attributed

    def after(self, percent: int, exposed: Exposed, latencies: Latencies | None, why_not: str = "") -> Evidence:
        """With one more phase; ``latencies`` None where latencies cannot be compared in it, because of ``why_not``."""
        found = replace(self, exposed=self.exposed + exposed)
        if latencies is None:
            return replace(found, not_compared=(*self.not_compared, f"at {percent} % {why_not}"))
        return replace(found, latencies=self.latencies + latencies, compared_at=(*self.compared_at, percent))


@dataclass(frozen=True)
class Finding:
    ruling: Ruling
    expected: str
    observed: str
    reason: str = ""
    """Why it is not decided, and what would decide it."""


def baseline_requests(limits: Limits, percent: int, rate_per_s: float) -> int:
    """Before the first candidate; ``percent`` is the last one's."""
    needed = _errors_plan(limits, percent, Count(0, 0), rate_per_s) or round(MOST_S * rate_per_s)
    return max(LEAST_BASELINE, math.ceil(BASELINE * needed))


def requests_planned(
    limits: Limits, percent: int, evidence: Evidence, *, comparable: bool, last: bool, rate_per_s: float
) -> tuple[int, str]:
    """How many a phase takes for the guards to decide, and what that is not enough for; at most ``MOST_S`` of them."""
    most, wanted, short = round(MOST_S * rate_per_s), 0, ""
    if comparable and limits.latency_ratio is not None:
        wanted = latency.requests_planned(percent)
        if wanted > most:
            short = f"{wanted} requests are planned to compare latencies, and {MOST_S:g} s have {most}"
    if last:
        plan = _errors_plan(limits, percent, evidence.before, rate_per_s)
        if plan is None:
            short = (
                f"to show that at most {limits.errors:.3%} more of the candidate's requests fail takes more than the"
                f" {most} of {MOST_S:g} s: raise 'rate' or guards.errors"
            )
            # As many as where nothing fails; more would not decide it either.
            plan = _errors_plan(limits, percent, Count(0, 0), rate_per_s) or LEAST_BASELINE
        share = percent / 100
        missing = plan * share - evidence.exposed.candidate.n
        # The candidate's part of the requests is drawn: three standard deviations on top.
        wanted = max(wanted, math.ceil((missing + 3 * math.sqrt(max(missing, 0))) / share))
    return min(max(wanted, 0), most), short


def _errors_plan(limits: Limits, percent: int, before: Count, rate_per_s: float) -> int | None:
    most = round(MOST_S * rate_per_s)
    return errors.requests_needed(limits.errors, percent / 100, before, WRONGLY_PROMOTED, most)


def judge_errors(evidence: Evidence, limits: Limits, *, last: bool) -> Finding:
    guard = limits.errors
    two = errors.compared(evidence.exposed, evidence.before, by_answer=evidence.by_answer)
    smallest = errors.smallest_found(two, guard, limits.alpha_worse)
    expected = (
        f"at most {guard:.3%} more than of the version before it, shown with {1 - WRONGLY_PROMOTED:.0%} confidence"
    )
    highest = errors.excess_at_most(two, WRONGLY_PROMOTED)
    observed = (
        f"{_samples(evidence, two)}: {errors.excess(two):+.3%}, surely at most {highest:+.3%}; {_smallest(smallest)}"
    )
    if errors.shown_worse(two, guard, limits.alpha_worse):
        surely = errors.excess_at_least(two, limits.alpha_worse)
        return Finding(Ruling.BROKEN, expected, f"{observed}; surely at least {surely:+.3%}")
    if not last:
        return Finding(Ruling.LATER, expected, observed)
    if not evidence.exposed.candidate.n:
        return Finding(Ruling.UNDECIDED, expected, observed, "no answer came from the candidate")
    if errors.shown_no_worse(two, guard, WRONGLY_PROMOTED):
        return Finding(Ruling.HELD, expected, observed)
    needed = errors.requests_that_decide(two, guard, WRONGLY_PROMOTED, limits.alpha_worse)
    whose = "of the candidate" if evidence.attributed else "in all"
    reason = f"about {needed} requests {whose} would decide it, and as many more before it, in place of {two.one.n}"
    if needed is None:
        reason = "no number of requests decides it: the candidate fails more often by about the guard"
    return Finding(Ruling.UNDECIDED, expected, observed, reason)


def _samples(evidence: Evidence, two: Compared) -> str:
    one, other = two.one, two.other
    if evidence.attributed:
        return f"{one.failed} of {one.n} of the candidate failed, of the other version {other.failed} of {other.n}"
    share = f"{two.least:.1%}" if two.most - two.least < 5e-4 else f"{two.least:.1%} to {two.most:.1%}"
    return (
        f"{one.failed} of {one.n} requests failed, of which {share} were the candidate's, and before it {other.failed}"
        f" of {other.n} (failed answers do not say whose they are)"
    )


def _smallest(excess: float) -> str:
    if excess >= 1:
        return "so few requests show no difference"
    return f"{excess:+.3%} would have been found"


def judge_latency(evidence: Evidence, limits: Limits, *, last: bool) -> Finding:
    limit = limits.latency_ratio
    if limit is None:
        return Finding(Ruling.OFF, "", "", "guards.latency_ratio is null")
    blocks = evidence.latencies.named
    found = latency.ratios(blocks, limit, limits.alpha_worse, WRONGLY_PROMOTED)
    expected = (
        f"p50, p90, p95 and p99 at most {limit:g} times those of the version before it, shown with"
        f" {1 - WRONGLY_PROMOTED:.0%} confidence at equal load per pod"
    )
    where = " and ".join(f"{percent} %" for percent in evidence.compared_at)
    observed = f"at {where}, {len(blocks)} blocks of time: " if evidence.compared_at else ""
    if found:
        largest = max(item.found for item in found)
        observed += "; ".join(item.text() for item in found)
        observed += f"; {largest:.2f} times would have been found at each"
        observed += evidence.latencies.failed_text()
        if any(item.low > limit for item in found):
            return Finding(Ruling.BROKEN, expected, observed)
    if not last:
        return Finding(Ruling.LATER, expected, observed or "; ".join(evidence.not_compared))
    if not evidence.compared_at:
        reason = "; ".join(evidence.not_compared) + (
            ": latencies are compared at about equal load per pod only; add a percentage that is the candidate's share"
            " of the pods (50 with as many pods of each), or set guards.latency_ratio to null"
        )
        return Finding(Ruling.UNDECIDED, expected, "no phase had equal load per pod", reason)
    if not found:
        needed = LEAST_BLOCKS * latency.BLOCK_REQUESTS
        reason = f"{needed} answers of each version, over at least {format_duration(LEAST_BLOCKS * latency.BLOCK_S)}"
        return Finding(Ruling.UNDECIDED, expected, f"{blocks.requests} answers in all, too few", f"takes {reason}")
    if all(item.high < limit for item in found):
        worst = latency.ratios(evidence.latencies.worst, limit, limits.alpha_worse, WRONGLY_PROMOTED)
        if worst and all(item.high < limit for item in worst):
            return Finding(Ruling.HELD, expected, observed)
        reason = (
            f"{evidence.latencies.unnamed} failed requests do not say whose they are: if they are the candidate's,"
            " it is slower; a header that failed answers have, too, would tell (told_apart)"
        )
        return Finding(Ruling.UNDECIDED, expected, observed, reason)
    open_ = [item for item in found if item.high >= limit]
    if any(item.needed is None for item in open_):
        reason = "no number of requests decides it: the candidate is slower by about the limit"
    else:
        most = max(item.needed or 0 for item in open_)
        reason = (
            f"about {math.ceil(blocks.requests / len(blocks) * max(most, len(blocks) + 1))} requests would decide it"
        )
    return Finding(Ruling.UNDECIDED, expected, observed, reason)


def judge_split(check: CheckResult) -> Finding:
    """A candidate that gets another share than it was given is taken back like one that breaks a guard."""
    ruling = {Outcome.PASSED: Ruling.HELD, Outcome.FAILED: Ruling.BROKEN}.get(check.outcome, Ruling.UNDECIDED)
    return Finding(ruling, check.expected, check.observed, check.reason)


def overall(findings: Iterable[Finding], *, last: bool) -> Ruling:
    """Of the roll-out so far: broken, goes on, held (to be promoted) or undecided (to be withdrawn)."""
    rulings = {finding.ruling for finding in findings}
    if Ruling.BROKEN in rulings:
        return Ruling.BROKEN
    if not last:
        return Ruling.LATER
    return Ruling.HELD if rulings <= {Ruling.HELD, Ruling.OFF} else Ruling.UNDECIDED
