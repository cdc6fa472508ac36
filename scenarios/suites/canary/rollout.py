"""The roll-out of candidates, phase by phase. Each phase is a stage of load of its own, with what it changes inside."""

from __future__ import annotations

import contextlib
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from harness.deployed import Deployed, revision_of
from harness.errors import ClusterError, MeasurementError
from harness.load.job import Protocol
from harness.records import CheckResult, Measurement, Record, Series, TimelineEvent
from harness.scenario_model import Counter, Variant
from harness.stats import accepted_counts, draws_needed
from harness.units import format_duration
from scenarios.suites.canary.comparison import candidate_errors, compare_latency, split_p_value, surely_slower
from scenarios.suites.canary.counters import read
from scenarios.suites.canary.modes import STATUS_S, Mode, mode_of
from scenarios.suites.judging import Judge
from scenarios.suites.load import Plan
from scenarios.suites.load.background import Traffic, background, pause
from scenarios.suites.load.beforehand import encode
from scenarios.suites.load.requests import Encoded

SUITE = "canary-rollback"
ALPHA, POWER = 1e-4, 0.99
"""Of the test of a split: how often a right one is called wrong, and one that is off by the resolution is found."""
BASELINE_REQUESTS = 200
LEAST_S = 3.0
"""Of the part of a phase that counts."""
MARGIN_S = 60.0
"""Of load, beyond what a phase is expected to take."""
_MOVES = {
    "promotion": "the promotion",
    "rollback": "the rollback",
    "again": "the second promotion",
    "candidate": "the roll-out of a version that cannot load",
}
Object = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """What the step asks for; rates in requests a second, durations in seconds, shares between 0 and 1."""

    candidates: tuple[Variant, ...]
    percents: tuple[int, ...]
    rate_per_s: float
    protocol: Protocol
    timeout_s: float
    resolution: float
    settle_s: float
    ready_within_s: float
    rollback_within_s: float
    errors: float
    latency_ratio: float
    parity: bool
    broken: bool
    header: str
    """The response header that says which version answered; empty takes the model version in the answers."""
    counter: Counter | None
    """What pods count their requests by, where nothing in an answer says whose it is."""
    seed: int

    def requests(self, percent: int) -> int:
        return draws_needed(percent / 100, self.resolution, ALPHA, POWER)


@dataclass
class Phase:
    """One stage of load. ``changed_s`` is when the change was asked for, ``counts_s`` from when on requests count;
    times of ``time.monotonic``."""

    name: str
    traffic: Traffic
    changed_s: float
    counts_s: float
    pods: list[Object] = field(default_factory=list)
    by_revision: dict[str, int] | None = None
    """Requests that the pods have counted, where that is how versions are told apart."""
    before: Traffic | None = None
    """The stage with the change in it, where requests were counted in another."""

    @property
    def failed(self) -> int:
        """Requests that failed, from before the change to the end."""
        return int(self.traffic.failed.sum()) + (int(self.before.failed.sum()) if self.before else 0)

    @property
    def sent(self) -> int:
        return len(self.traffic) + (len(self.before) if self.before else 0)

    @property
    def counted(self) -> Any:
        return self.traffic.due_s >= self.counts_s

    def versions(self) -> Tally[str]:
        """Of the answers that count: which versions, or where pods count them, which revisions."""
        if self.by_revision is not None:
            return Tally({name: count for name, count in self.by_revision.items() if count})
        return Tally(version for version in self.traffic.version[self.counted].tolist() if version)


class _GuardError(Exception):
    """The candidate broke a guard: it is taken back."""


class _Suite:
    def __init__(self, deployed: Deployed, rollout: Rollout, step: str, note: Callable[[str], None]) -> None:
        self.deployed = deployed
        self.rollout = rollout
        self.step = step
        self.note = note
        self.judge = Judge(SUITE, deployed.endpoint, step)
        self.stages = 0
        self.stable = ""
        """The model version that serves."""
        self.former: list[str] = []
        """Versions that served before."""
        self.usual_errors = 0.0
        self.encoded: Sequence[Encoded] | None = None
        self.mode: Mode
        self.split: dict[str, list[float]] = {
            name: [] for name in ("t_s", "percent", "requests", "candidate", "errors")
        }
        self.began_s = time.monotonic()

    # Phases

    async def phase(self, name: str, seconds: float, change: Callable[[], Awaitable[None]] | None = None) -> Phase:
        """Load; the change, which returns when the status says that it is done; and load that counts. Where pods count
        the requests, a stage of its own follows, with nothing but load in it."""
        if self.rollout.counter is None:
            return await self._stage(name, seconds, change)
        if self.encoded is None:
            self.encoded = await encode(self.deployed.endpoint, self._plan(name, 1.0))
        found = await self._stage(name, 0.0, change)
        before = await read(self.deployed, self.rollout.counter)
        counting = await self._stage(f"{name}-count", seconds, None)
        counts = (await read(self.deployed, self.rollout.counter)).since(before)
        sent, seen = len(counting.traffic), sum(counts.values())
        answered = sent - int(counting.traffic.failed.sum())
        if not answered <= seen <= sent:
            raise MeasurementError(
                f"{self.step}: {sent} requests were answered and {self.rollout.counter.metric} counted {seen}: it"
                " counts something else, somebody else asks as well, or a pod went with its counter"
            )
        counting.by_revision, counting.changed_s = counts, found.changed_s
        counting.before = found.traffic
        return counting

    def _plan(self, name: str, longest_s: float) -> Plan:
        self.stages += 1
        return Plan(
            name=f"{self.step}-{name}",
            duration_s=longest_s,
            rate_per_s=self.rollout.rate_per_s,
            protocol=self.rollout.protocol,
            timeout_s=self.rollout.timeout_s,
            warmup_s=0.0,
            seed=self.rollout.seed + self.stages,
        )

    async def _stage(self, name: str, seconds: float, change: Callable[[], Awaitable[None]] | None) -> Phase:
        longest_s = max(seconds, LEAST_S) + MARGIN_S + (self.rollout.ready_within_s + STATUS_S if change else 0.0)
        plan = self._plan(name, longest_s)
        async with background(self.deployed.endpoint, plan, self.encoded, self.rollout.header) as running:
            self.encoded = running.encoded  # what is right was settled before anything changed
            await pause(running, 1.0)
            changed_s = time.monotonic()
            if change:
                await change()
                await pause(running, self.rollout.settle_s)
            counts_s = time.monotonic()
            await pause(running, max(seconds, LEAST_S))
            pods = await self.deployed.pods()
            traffic = await running.finish()
        found = Phase(name, traffic, changed_s, counts_s, pods)
        if not found.counted.any():
            raise MeasurementError(f"{self.step}: no request of phase {name} counts; raise the rate")
        return found

    # The suite

    async def run(self) -> AsyncIterator[Record]:
        rollout = self.rollout
        self.mode = await mode_of(self.deployed, rollout.ready_within_s)
        current = await self.mode.current()
        if not current:
            raise MeasurementError(f"{self.deployed.name}: expected one version that serves before the first candidate")
        baseline = await self.phase("baseline", BASELINE_REQUESTS / rollout.rate_per_s)
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
        except _GuardError as error:
            self.note(f"{self.step}: rolled back: {error}")
        finally:
            with contextlib.suppress(ClusterError):
                await self.deployed.restore()
        await self.deployed.settled(rollout.ready_within_s)
        if self.split["t_s"]:
            yield Series("split", self.deployed.name, self.step, self.split)

    def _baseline(self, phase: Phase) -> CheckResult:
        versions = phase.versions()
        failed = phase.failed
        self.usual_errors = failed / phase.sent
        if len(versions) != 1:
            seen = ", ".join(versions) or "none"
            raise MeasurementError(
                f"{self.deployed.name}: expected one version before the first candidate, got {seen}. Versions are told"
                " apart by the model_version of their answers: give the model one in its runtime's settings, or set"
                " told_apart to a header or a counter"
            )
        (self.stable,) = versions
        return self.judge.check(
            "baseline",
            "Before anything changes, requests are answered, and rightly.",
            not failed and not phase.traffic.wrong,
            expected="no failed request and no wrong answer",
            observed=f"{phase.sent} requests, version {self.stable}, errors: {self._errors(phase)}"
            + self._wrong_text(phase),
        )

    def _errors(self, phase: Phase) -> str:
        stages = [phase.traffic] if phase.before is None else [phase.before, phase.traffic]
        texts = [stage.errors_text(np.ones(len(stage), dtype=bool)) for stage in stages]
        return ", ".join(text for text in texts if text != "none") or "none"

    @staticmethod
    def _wrong_text(phase: Phase) -> str:
        wrong = phase.traffic.wrong
        return f", {len(wrong)} wrong answers, the first: {next(iter(wrong.values()))}" if wrong else ""

    async def _roll_out(self, number: int, candidate: Variant, current: str) -> AsyncIterator[Record]:
        rollout, name = self.rollout, f"candidate-{number}"
        wanted = await self.deployed.variant(candidate)
        version = created = ""
        for percent in rollout.percents:

            async def change(percent: int = percent) -> None:
                nonlocal created
                if created:
                    await self.mode.shift(created, current, percent)
                else:
                    created = await self.mode.offer(name, wanted, percent, current)

            needed = rollout.requests(percent)
            phase = await self.phase(f"{name}-{percent}", needed / rollout.rate_per_s, change)
            versions = phase.versions()
            others = [item for item in versions if item not in (self.stable, *self.former)]
            version = version or (others[0] if others else "")
            yield self._split_check(name, percent, needed, phase, version)
            yield self._no_others(name, percent, phase, version)
            yield self._no_old_pods(name, percent, phase, {created, current})
            broken = ""
            for check, why in self._guards(name, percent, phase, version):
                broken = broken or why
                yield check
            if broken:
                async for record in self._take_back(name, phase, current, version):
                    yield record
                raise _GuardError(broken)
        async for record in self._promote_and_back(name, created, current, version):
            yield record
        self.former.append(self.stable)
        self.stable = version

    def _split_check(self, name: str, percent: int, needed: int, phase: Phase, version: str) -> CheckResult:
        versions = phase.versions()
        total, candidate = sum(versions.values()), versions.get(version, 0) if version else 0
        self._note_split(phase, percent, version)
        requirement = f"The candidate gets {percent} % of the requests."
        if not total:
            return self.judge.unjudged(f"{name}.split.{percent}", requirement, "no answer named a model version")
        low, high = accepted_counts(total, percent / 100, ALPHA)
        chance = split_p_value(candidate, total, percent)
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

    def _guards(self, name: str, percent: int, phase: Phase, version: str) -> list[tuple[CheckResult, str]]:
        """Checks, each with what a violation says; empty where there is none."""
        rollout, traffic = self.rollout, phase.traffic
        counted = phase.counted
        ours = counted & (traffic.version == version) if version else np.zeros(len(traffic), dtype=bool)
        theirs = counted & (traffic.version == self.stable)
        found: list[tuple[CheckResult, str]] = []

        answered = phase.versions().get(version, 0) if version else 0
        failed, total = int((traffic.failed & counted).sum()), int(counted.sum())
        errors = candidate_errors(failed, total, answered, self.usual_errors)
        bad = errors.least > rollout.errors
        text = f"{failed} of {total} failed ({traffic.errors_text(counted)})"
        if failed:
            text += f"; of the candidate's {errors.share:.2%}, at least {errors.least:.2%}"
        check = self.judge.check(
            f"{name}.errors.{percent}",
            f"At most {rollout.errors * 100:.3g} % of the candidate's requests fail.",
            not bad,
            expected=f"a share of at most {rollout.errors:.2%}",
            observed=text,
        )
        found.append((check, f"errors: {text}" if bad else ""))

        requirement = f"The candidate is at most {rollout.latency_ratio:g} times slower."
        compared = compare_latency(
            traffic.latency_s[ours & ~traffic.failed], traffic.latency_s[theirs & ~traffic.failed]
        )
        if phase.by_revision is not None:
            unknown = "where pods count requests, no answer says which version gave it"
            found.append((self.judge.skipped(f"{name}.latency.{percent}", requirement, unknown), ""))
        elif not compared:
            few = f"{int(ours.sum())} and {int(theirs.sum())} answers are too few to compare"
            found.append((self.judge.unjudged(f"{name}.latency.{percent}", requirement, few), ""))
        else:
            slower = surely_slower(compared, rollout.latency_ratio)
            text = slower.text() if slower else "; ".join(item.text() for item in compared)
            check = self.judge.check(
                f"{name}.latency.{percent}",
                requirement,
                slower is None,
                expected=f"no percentile surely above {rollout.latency_ratio:g} times that of version {self.stable}",
                observed=text,
            )
            found.append((check, f"latency: {text}" if slower else ""))

        wrong = [what for place, what in traffic.wrong.items() if traffic.version[place] != self.stable]
        text = f"{len(wrong)} wrong, the first: {wrong[0]}" if wrong else f"{answered} answers, all right"
        requirement = "The candidate's answers are those of the version before it, within tolerance."
        if not rollout.parity:
            return [*found, (self.judge.skipped(f"{name}.parity.{percent}", requirement, "guards.parity is off"), "")]
        if not answered and not wrong:
            nothing = "the candidate gave no answer"
            return [*found, (self.judge.unjudged(f"{name}.parity.{percent}", requirement, nothing), "")]
        check = self.judge.check(
            f"{name}.parity.{percent}", requirement, not wrong, expected="the same outputs", observed=text
        )
        return [*found, (check, f"parity: {text}" if wrong else "")]

    async def _take_back(self, name: str, broke: Phase, current: str, version: str) -> AsyncIterator[Record]:
        """The automatic rollback of a candidate that broke a guard."""

        async def change() -> None:
            await self.mode.withdraw(current)

        phase = await self.phase(f"{name}-guard", LEAST_S, change)
        async for record in self._gone(name, "guard", phase, version, lossless=False):
            yield record
        yield TimelineEvent("servecert", self.deployed.name, "rolled back", f"a guard was broken in {broke.name}")

    async def _promote_and_back(self, name: str, created: str, current: str, version: str) -> AsyncIterator[Record]:
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
        again = await self.phase(f"{name}-again", LEAST_S, promote)
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


def _created_s(pod: Object) -> float:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()


async def canary(deployed: Deployed, rollout: Rollout, step: str, note: Callable[[str], None]) -> AsyncIterator[Record]:
    """Raises MeasurementError where versions cannot be told apart or nothing could be measured, DeployError where a
    candidate does not come up, ClusterError where the cluster does not answer. The service is left as it was."""
    async for record in _Suite(deployed, rollout, step, note).run():
        yield record
