"""The roll-out of candidates, phase by phase. Each phase is a stage of load of its own, with what it changes inside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import numpy as np

from harness.base.errors import ClusterError, MeasurementError
from harness.base.units import format_duration
from harness.results.records import CheckResult, Measurement, Record, Series, TimelineEvent
from harness.results.stats import accepted_counts, binomial_p_value
from scenarios.model.services import Variant
from scenarios.suites.canary.errors import Count
from scenarios.suites.canary.guards import (
    MOST_S,
    Evidence,
    Finding,
    Ruling,
    baseline_requests,
    judge_errors,
    judge_latency,
    judge_split,
    overall,
    requests_planned,
)
from scenarios.suites.canary.latency import comparable_since, comparable_time, compare, load_ratio
from scenarios.suites.canary.latency import requests_planned as latency_requests
from scenarios.suites.canary.modes import Mode, mode_of
from scenarios.suites.canary.parity import judge_parity
from scenarios.suites.canary.phases import ALPHA, LEAST_S, Object, Phase, Rollout, Stages, Watched, pods_of
from scenarios.suites.shared.deployed import Deployed, revision_of
from scenarios.suites.shared.judging import Judge

SUITE = "canary-rollback"
_MOVES = {
    "promotion": "the promotion",
    "rollback": "the rollback",
    "again": "the second promotion",
    "candidate": "the roll-out of a version that cannot load",
}


class _WithdrawnError(Exception):
    """The candidate broke a guard, or was not shown to keep all of them: it was taken back."""


class _Suite(Stages):
    def __init__(self, deployed: Deployed, rollout: Rollout, step: str, note: Callable[[str], None]) -> None:
        super().__init__(deployed, rollout, step)
        self.note = note
        self.judge = Judge(SUITE, deployed.endpoint, step)
        self.stable = ""
        """The model version that serves."""
        self.first = ""
        """The one that served before anything changed."""
        self.former: list[str] = []
        """Versions that served before."""
        self.offered: set[str] = set()
        """Revisions of candidates, the one that cannot load included."""
        self.usual = Count(0, 0)
        """Requests of the version that serves, alone."""
        self.short: dict[str, str] = {}
        """What the planned requests of a phase are not enough for."""
        self.mode: Mode
        self.split: dict[str, list[float]] = {
            name: [] for name in ("t_s", "percent", "requests", "candidate", "errors")
        }
        self.began_s = time.monotonic()

    @property
    def _baseline_s(self) -> float:
        rollout = self.rollout
        return baseline_requests(rollout.limits, rollout.percents[-1], rollout.rate_per_s) / rollout.rate_per_s

    async def run(self) -> AsyncIterator[Record]:
        rollout = self.rollout
        self.mode = await mode_of(self.deployed, rollout.ready_within_s)
        current = await self.mode.current()
        if not current:
            raise MeasurementError(f"{self.deployed.name}: expected one version that serves before the first candidate")
        baseline = await self.phase("baseline", self._baseline_s)
        yield self._baseline(baseline)
        predictor = self.deployed.predictor
        try:
            for number, candidate in enumerate(rollout.candidates, 1):
                async for record in self._roll_out(number, candidate, current):
                    yield record
                predictor, current = await self.deployed.variant(candidate), await self.mode.current()
            if rollout.broken:
                async for record in self._broken(predictor, current):
                    yield record
        except _WithdrawnError as error:
            self.note(f"{self.step}: {error}")
        except BaseException:
            with contextlib.suppress(ClusterError):
                await self.deployed.restore()
            raise
        yield await self._restored()
        if self.split["t_s"]:
            yield Series("split", self.deployed.name, self.step, self.split)

    def _baseline(self, phase: Phase) -> CheckResult:
        versions = phase.versions()
        failed = phase.failed
        self.usual = Count(failed, phase.sent)
        if len(versions) != 1:
            seen = ", ".join(versions) or "none"
            raise MeasurementError(
                f"{self.deployed.name}: expected one version before the first candidate, got {seen}. Versions are told"
                " apart by the model_version of their answers: give the model one in its runtime's settings, or set"
                " told_apart to a header or a counter"
            )
        (self.stable,) = versions
        self.first = self.stable
        requirement = "Before anything changes, requests are answered, and rightly."
        expected = "no failed request and no wrong answer"
        observed = (
            f"{phase.sent} requests, version {self.stable}, errors: {self._errors(phase)}"
            f"{self._wrong_text(phase)}{phase.traffic.inspected_text()}"
        )
        fine = not failed and not phase.traffic.wrong
        if fine and not phase.traffic.inspected.any():
            reason = "no answer was inspected, there being no room for a single one: ask for smaller answers"
            return self.judge.undecided("baseline", requirement, expected=expected, observed=observed, reason=reason)
        return self.judge.check("baseline", requirement, fine, expected=expected, observed=observed)

    def _errors(self, phase: Phase) -> str:
        stages = [phase.traffic] if phase.before is None else [phase.before, phase.traffic]
        texts = [stage.errors_text(np.ones(len(stage), dtype=bool)) for stage in stages]
        return ", ".join(text for text in texts if text != "none") or "none"

    @staticmethod
    def _wrong_text(phase: Phase) -> str:
        wrong = phase.traffic.wrong
        return f", {len(wrong)} wrong answers, the first: {next(iter(wrong.values()))}" if wrong else ""

    async def _restored(self) -> CheckResult:
        """The service as it was deployed, whatever became of the candidates."""

        async def change() -> None:
            await self.deployed.restore()
            await self.deployed.settled(self.rollout.ready_within_s)
            await self.mode.without(self.offered)

        phase = await self.phase("restored", LEAST_S, change)
        versions = phase.versions()
        if self.rollout.counter is None:
            strangers = {name: count for name, count in versions.items() if name != self.first}
            wanted = f"version {self.first}"
        else:  # the service as it was may be a revision of its own
            strangers = {name: count for name, count in versions.items() if name in self.offered}
            wanted = "no revision of a candidate"
        failed = phase.counts.failed
        shown = ", ".join(f"{count} of version {name}" for name, count in versions.items()) or "no answer"
        return self.judge.check(
            "restored",
            "At the end the service is as it was.",
            bool(versions) and not strangers and not failed,
            expected=f"answers of {wanted} only, and no failed request",
            observed=f"{shown}; {failed} failed",
        )

    async def _roll_out(self, number: int, candidate: Variant, current: str) -> AsyncIterator[Record]:
        rollout, name = self.rollout, f"candidate-{number}"
        wanted = await self.deployed.variant(candidate)
        version = created = ""
        evidence = Evidence(self.usual, by_answer=bool(rollout.header))
        for percent in rollout.percents:
            last = percent == rollout.percents[-1]

            async def change(percent: int = percent) -> None:
                nonlocal created
                if created:
                    await self.mode.shift(created, current, percent)
                else:
                    created = await self.mode.offer(name, wanted, percent, current)
                    self.offered.add(created)

            plan = {
                comparable: self._seconds(name, percent, evidence, comparable=comparable, last=last)
                for comparable in (False, True)
            }

            def until(watched: Watched, percent: int = percent, plan: dict[bool, float] = plan) -> float:
                since_s = comparable_since(_loads(watched, percent, created, current))
                least_s = watched[0][0] + plan[False]
                return least_s if since_s is None else max(least_s, since_s + self._latency_s(percent))

            phase = await self.phase(f"{name}-{percent}", max(plan.values()), change, until)
            versions = phase.versions()
            others = [item for item in versions if item not in (self.stable, *self.former)]
            version = version or (others[0] if others else "")
            split = self._split_check(name, percent, rollout.requests(percent), phase, version)
            yield split
            yield self._no_others(name, percent, phase, version)
            yield self._no_old_pods(name, percent, phase, {created, current})
            yield self._change_check(name, percent, phase)
            evidence = self._evidence(evidence, percent, phase, version, created, current)
            guards = {
                "errors": judge_errors(evidence, rollout.limits, last=last),
                "latency": judge_latency(evidence, rollout.limits, last=last),
                "parity": self._parity(phase, version, last=last),
            }
            for guard, finding in guards.items():
                yield self._guard_check(name, guard, percent, finding)
            guards["split"] = judge_split(split)  # what gets another share than it was given is not promoted
            ruling = overall(guards.values(), last=last)
            if ruling in (Ruling.BROKEN, Ruling.UNDECIDED):
                which = ", ".join(guard for guard, finding in guards.items() if finding.ruling is ruling)
                what = "was broken" if ruling is Ruling.BROKEN else "is not decided, which is no promotion"
                async for record in self._take_back(name, phase, current, version, f"{which}: the guard {what}"):
                    yield record
                raise _WithdrawnError(f"{name} was rolled back at {percent} %: {which} {what}")
        async for record in self._promote_and_back(
            name, created, current, version, last=number == len(rollout.candidates)
        ):
            yield record
        self.former.append(self.stable)
        self.stable = version

    def _seconds(self, name: str, percent: int, evidence: Evidence, *, comparable: bool, last: bool) -> float:
        rollout = self.rollout
        comparable = comparable and rollout.counter is None
        planned, short = requests_planned(
            rollout.limits, percent, evidence, comparable=comparable, last=last, rate_per_s=rollout.rate_per_s
        )
        if short:
            self.short[f"{name} at {percent} %"] = short
        return max(planned, rollout.requests(percent)) / rollout.rate_per_s

    def _latency_s(self, percent: int) -> float:
        rollout = self.rollout
        if rollout.latency_ratio is None or rollout.counter is not None:
            return 0.0
        return min(latency_requests(percent) / rollout.rate_per_s, MOST_S)

    def _evidence(
        self, evidence: Evidence, percent: int, phase: Phase, version: str, created: str, current: str
    ) -> Evidence:
        """With what a phase adds. Latencies are compared over the time in which the load per pod was comparable."""
        exposed, traffic = phase.exposed(version, self.stable), phase.traffic
        if phase.by_revision is not None:
            return evidence.after(
                percent, exposed, None, "pods count requests, and no answer says which version gave it"
            )
        loads = _loads(phase.watched, percent, created, current)
        time_s = comparable_time(loads)
        if time_s is None:
            ours, theirs = pods_of(phase.pods, created), pods_of(phase.pods, current)
            why = (
                f"{ours} pods of the candidate and {theirs} of the other: {loads[-1][1]:.2g} times the requests per pod"
            )
            return evidence.after(percent, exposed, None, why)
        found = compare(traffic, traffic.due_between(*time_s), version, self.stable, self.rollout.timeout_s)
        return evidence.after(percent, exposed, found)

    def _split_check(self, name: str, percent: int, needed: int, phase: Phase, version: str) -> CheckResult:
        versions = phase.versions()
        total, candidate = sum(versions.values()), versions.get(version, 0) if version else 0
        self._note_split(phase, percent, version)
        requirement = f"The candidate gets {percent} % of the requests."
        if not total:
            return self.judge.unjudged(f"{name}.split.{percent}", requirement, "no answer named a model version")
        low, high = accepted_counts(total, percent / 100, ALPHA)
        chance = binomial_p_value(candidate, total, percent / 100)
        text = f"{candidate} of {total} ({candidate / total:.1%}), p = {chance:.2g}"
        if not version:
            text += "; no answer named a new model version: it got nothing, or it cannot be told apart"
        if total < needed * 0.8:
            return self.judge.unjudged(
                f"{name}.split.{percent}", requirement, f"{total} answers, and {needed} are needed for the power"
            )
        return self.judge.check(
            f"{name}.split.{percent}",
            requirement,
            low <= candidate <= high,
            source=f"KServe: {self.mode.field}",
            expected=f"{low} to {high} of {total} (an exact binomial test; errs once in {1 / ALPHA:g})",
            observed=text,
        )

    def _note_split(self, phase: Phase, percent: int, version: str) -> None:
        """For the plot, by the second; all at once where pods have counted."""
        traffic = phase.traffic
        if phase.by_revision is not None:
            values = (phase.counts_s - self.began_s, percent, sum(phase.by_revision.values()))
            counts = (phase.by_revision.get(version, 0), int(traffic.failed.sum()))
            for column, value in zip(self.split.values(), (*values, *counts), strict=True):
                column.append(round(float(value), 3))
            return
        for second in np.arange(phase.counts_s, float(traffic.due_s[-1]), 1.0):
            here = traffic.due_between(second, second + 1)
            if here.any():
                self.split["t_s"].append(round(float(second - self.began_s), 3))
                self.split["percent"].append(percent)
                self.split["requests"].append(int((traffic.version[here] != "").sum()))
                self.split["candidate"].append(int((traffic.version[here] == version).sum()) if version else 0)
                self.split["errors"].append(int(traffic.failed[here].sum()))

    def _no_others(self, name: str, percent: int, phase: Phase, version: str) -> CheckResult:
        known = {self.stable, version}
        strangers = {item: count for item, count in phase.versions().items() if item not in known}
        shown = ", ".join(f"{count} of version {item}" for item, count in strangers.items())
        return self.judge.check(
            f"{name}.only.{percent}",
            "Nobody but the candidate and the version before it answers.",
            not strangers,
            source="KServe: latestRolledoutRevision gets the rest; https://github.com/kserve/kserve/issues/2130",
            expected=f"versions {self.stable} and {version or 'of the candidate'} only",
            observed=shown or "no other version",
        )

    def _no_old_pods(self, name: str, percent: int, phase: Phase, routed: set[str]) -> CheckResult:
        # Kubernetes cuts its timestamps to the second.
        changed = time.time() - (time.monotonic() - phase.changed_s) - 1
        revived = [
            pod
            for pod in phase.pods
            if revision_of(pod) not in routed
            and _created_s(pod) >= changed
            and not pod["metadata"].get("deletionTimestamp")
        ]
        shown = ", ".join(sorted({revision_of(pod) for pod in revived}))
        return self.judge.check(
            f"{name}.old_pods.{percent}",
            "A revision without traffic starts no pod.",
            not revived,
            source="https://github.com/kserve/kserve/issues/1968",
            expected=f"new pods of {', '.join(sorted(routed))} only",
            observed=f"new pods of {shown}" if shown else f"{len(phase.pods)} pods, none of them of another revision",
        )

    def _change_check(self, name: str, percent: int, phase: Phase) -> CheckResult:
        """What fails before the requests count is not in the guard on errors."""
        changing = phase.changing
        return self.judge.check(
            f"{name}.change.{percent}",
            "No request fails while the candidate is given its part.",
            not changing.failed,
            expected=f"0 of {changing.n} failed",
            observed=f"{changing.failed} of {changing.n} failed",
        )

    def _parity(self, phase: Phase, version: str, *, last: bool) -> Finding:
        if not self.rollout.parity:
            return Finding(Ruling.OFF, "", "", "guards.parity is off")
        return judge_parity(phase, version, self.stable, last=last)

    def _guard_check(self, name: str, guard: str, percent: int, finding: Finding) -> CheckResult:
        rollout, check_id = self.rollout, f"{name}.{guard}.{percent}"
        requirement = {
            "errors": f"The candidate fails at most {rollout.errors:.3%} more of its requests than the other version.",
            "latency": f"The candidate is at most {rollout.latency_ratio or 0:g} times slower.",
            "parity": "The candidate's answers are those of the version before it, within tolerance.",
        }[guard]
        match finding.ruling:
            case Ruling.OFF:
                return self.judge.skipped(check_id, requirement, finding.reason)
            case Ruling.LATER:
                decides = f"not broken so far, and decided at {rollout.percents[-1]} %: {finding.observed}"
                return self.judge.skipped(check_id, requirement, decides)
            case Ruling.UNDECIDED:
                short = self.short.get(f"{name} at {percent} %", "")
                return self.judge.undecided(
                    check_id,
                    requirement,
                    expected=finding.expected,
                    observed=finding.observed,
                    reason="; ".join(text for text in (finding.reason, short) if text),
                )
        held = finding.ruling is Ruling.HELD
        return self.judge.check(check_id, requirement, held, expected=finding.expected, observed=finding.observed)

    async def _take_back(self, name: str, at: Phase, current: str, version: str, why: str) -> AsyncIterator[Record]:
        """The automatic rollback of a candidate that is not promoted."""

        async def change() -> None:
            await self.mode.withdraw(current)

        phase = await self.phase(f"{name}-guard", LEAST_S, change)
        async for record in self._gone(name, "guard", phase, version, lossless=False):
            yield record
        yield TimelineEvent("servecert", self.deployed.name, "rolled back", f"{at.name}: {why}")

    async def _promote_and_back(
        self, name: str, created: str, current: str, version: str, *, last: bool
    ) -> AsyncIterator[Record]:
        async def promote() -> None:
            await self.mode.promote(created, current)

        async def back() -> None:
            await self.mode.back(created, current)

        former = self.stable
        promotion = await self.phase(f"{name}-promotion", LEAST_S, promote)
        left = promotion.versions().get(former, 0)
        yield self._lossless(name, "promotion", promotion)
        yield self.judge.check(
            f"{name}.promotion",
            "The promoted candidate gets everything.",
            not left,
            source="KServe: canary rollout",
            expected=f"answers of version {version} only",
            observed=f"{left} answers of version {former}"
            if left
            else f"all {int(promotion.counted.sum())} of {version}",
        )
        rolled = await self.mode.history()
        if rolled is not None:
            yield self.judge.check(
                f"{name}.promotion.status",
                "The status names what is rolled out, and what was before.",
                rolled == (created, current),
                source="kserve/kserve, pkg/apis/serving/v1beta1/inference_service_status.go",
                expected=f"latestRolledoutRevision {created}, previousRolledoutRevision {current}",
                observed=f"{rolled[0]} and {rolled[1]}",
            )
        rollback = await self.phase(f"{name}-rollback", LEAST_S, back)
        async for record in self._gone(name, "rollback", rollback, version, lossless=True):
            yield record
        # What the next candidate's errors are compared with.
        again = await self.phase(f"{name}-again", LEAST_S if last else self._baseline_s, promote)
        self.usual = again.counts
        yield self._lossless(name, "again", again)

    def _lossless(self, name: str, what: str, phase: Phase) -> CheckResult:
        return self.judge.check(
            f"{name}.{what}.lossless",
            f"No request fails during {_MOVES[what]}.",
            not phase.failed,
            expected=f"0 of {phase.sent} failed",
            observed=f"{phase.failed} of {phase.sent} failed" + (f": {self._errors(phase)}" if phase.failed else ""),
        )

    async def _gone(
        self, name: str, what: str, phase: Phase, version: str, *, lossless: bool
    ) -> AsyncIterator[CheckResult | Measurement]:
        """After a rollback: how long the candidate still answered, and whether anything was lost."""
        traffic = phase.traffic
        answers = (traffic.version == version) & (traffic.due_s >= phase.changed_s)
        last_s = float((traffic.done_s[answers] - phase.changed_s).max()) if answers.any() else 0.0
        late = phase.versions().get(version, 0) if version else 0
        seen = "none after it was asked for"
        if answers.any():
            seen = f"{int(answers.sum())} answers after it was asked for, the last after {format_duration(last_s)}"
        elif phase.by_revision is not None:
            seen = "pods count requests and do not say when"
        if answers.any():
            yield self.judge.measurement(f"{name}.{what}.last_answer", last_s, "s", int(answers.sum()))
        within_s = self.rollout.rollback_within_s
        yield self.judge.check(
            f"{name}.{what}.last_answer",
            f"The candidate's last answer comes within {within_s:g} s of the rollback.",
            last_s <= within_s and not late,
            expected=f"at most {within_s:g} s, and none once the status says so",
            observed=f"{seen}; {late} after the status said so",
        )
        if lossless:
            yield self._lossless(name, what, phase)

    async def _broken(self, predictor: Object, current: str) -> AsyncIterator[Record]:
        """A version whose model is nowhere to be had."""
        name = "broken"
        requirement = "A version that cannot load gets no traffic, and the one before goes on."
        model = predictor.get("model") or {}
        if "storageUri" not in model:
            yield self.judge.skipped(
                f"{name}.no_traffic", requirement, "the service's model has no storageUri to break"
            )
            return
        wrong = {**predictor, "model": {**model, "storageUri": f"{model['storageUri'].rstrip('/')}-does-not-exist"}}
        created = ""

        async def change() -> None:
            nonlocal created
            created = await self.mode.offer_broken(wrong, current)
            self.offered.add(created)

        phase = await self.phase(name, LEAST_S, change)
        share = await self.mode.share_of(created)
        strangers = {item: count for item, count in phase.versions().items() if item != self.stable}
        yield self.judge.check(
            f"{name}.no_traffic",
            requirement,
            not share and not strangers,
            source="KServe: a version that never becomes ready gets no traffic",
            expected=f"all answers of version {self.stable}, 0 % for {created}",
            observed=f"{share} % for {created}, other versions: {strangers or 'none'}",
        )
        yield self._lossless(name, "candidate", phase)


def _loads(watched: Watched, percent: int, created: str, current: str) -> list[tuple[float, float]]:
    """When, and the requests per pod of the candidate over those of the other version."""
    return [(when_s, load_ratio(percent, pods_of(pods, created), pods_of(pods, current))) for when_s, pods in watched]


def _created_s(pod: Object) -> float:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()


async def canary(deployed: Deployed, rollout: Rollout, step: str, note: Callable[[str], None]) -> AsyncIterator[Record]:
    """Raises MeasurementError where versions cannot be told apart or nothing could be measured, DeployError where a
    candidate does not come up, ClusterError where the cluster does not answer. The service is left as it was."""
    async for record in _Suite(deployed, rollout, step, note).run():
        yield record
