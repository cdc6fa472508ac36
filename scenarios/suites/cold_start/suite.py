"""Cold start: how long a service without a pod takes to answer, and where the time goes.

A trial waits until the service has no pod, sends requests, and follows the pod that comes. Each phase ends when the
change that ends it arrived over the watch, on this machine's clock; the timestamps that Kubernetes gives, cut to the
second and by another clock, must agree with that within the bounds that the API server's clock is known to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.base.errors import MeasurementError
from harness.base.units import format_duration
from harness.kubernetes.kserve import is_pod_ready
from harness.kubernetes.podwatch import EventWatch, PodChange, PodWatch
from harness.load.job import Job
from harness.load.runner import WorkerError, run_stage
from harness.results.records import CheckResult, Outcome, Record, TimelineEvent
from harness.target.endpoint import Endpoint
from scenarios.suites.cold_start.budgets import CONFIDENCE, judge_budget
from scenarios.suites.cold_start.figures import figures
from scenarios.suites.cold_start.phases import (
    TOLERANCE_S,
    Span,
    Trial,
    clock_conflicts,
    exactly,
    node_ready,
    phase_ends,
    pulled,
    settled,
)
from scenarios.suites.cold_start.warm import LEAST_WARM, Warm, errors_of, warm_requests
from scenarios.suites.shared.deployed import Deployed
from scenarios.suites.shared.judging import Judge
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.beforehand import encode
from scenarios.suites.shared.stage.errors import stage_errors
from scenarios.suites.shared.stage.requests import Encoded, build_job

SUITE = "cold-start"
EVENTS_S = 5.0
"""So long after a pod is ready it is waited for what its kubelet tells of its images."""
NO_ROOM = "no answer was inspected, there being no room for a single one: ask for smaller answers"


@dataclass(frozen=True)
class ColdStart:
    trials: int
    requests: int
    """Sent at once to the cold service."""
    warm: int
    """Sent one after the other to the service while it is awake."""
    within_s: float
    zero_within_s: float
    budget_s: Mapping[str, float]
    """By phase, and ``total``: what the median of all cold starts may take."""


def cold_job(endpoint: Endpoint, plan: Plan, encoded: Sequence[Encoded], requests: int) -> Job:
    """So many are sent at once: none of them waits for the connection of another."""
    job = build_job(endpoint, plan, encoded)
    return replace(job, check_every=1, concurrency=None, connections=max(job.connections, requests))


class _Suite:
    def __init__(self, deployed: Deployed, wanted: ColdStart, step: str, status: Callable[[str], None]) -> None:
        self.deployed = deployed
        self.wanted = wanted
        self.step = step
        self.status = status
        self.judge = Judge(SUITE, deployed.endpoint, step)
        self.plan = Plan(step, duration_s=1.0, concurrency=1, timeout_s=wanted.within_s, warmup_s=0.0)

    async def run(self) -> AsyncIterator[Record]:
        least = self.deployed.predictor.get("minReplicas", 1)
        if least != 0:
            raise MeasurementError(
                f"{self.deployed.name}: a cold start needs a service that scales to zero; expected minReplicas: 0"
                f" in its predictor, got {least}"
            )
        encoded = await encode(self.deployed.endpoint, self.plan)
        if problem := next((item.problem for item in encoded if item.problem), ""):
            raise MeasurementError(f"{self.deployed.name}: a request was not answered: {problem}")
        trials: list[Trial] = []
        warm = await warm_requests(self.deployed.endpoint, self.plan, encoded, self.wanted.warm)
        for number in range(1, self.wanted.trials + 1):
            self.status(f"{self.step}: trial {number} of {self.wanted.trials}: waiting until there is no pod")
            idle_s = await self._until_zero()
            yield self.judge.measurement("to_zero", idle_s, "s", 1)
            self.status(f"{self.step}: trial {number} of {self.wanted.trials}: cold")
            trial = await self._trial(encoded)
            trials.append(trial)
            if trial.ends:
                detail = ", ".join(f"{name} {seconds:.2f}" for name, seconds in trial.phases_s.items())
                yield TimelineEvent("servecert", self.deployed.name, f"cold start {trial.first_byte_s:.2f} s", detail)
        for record in self._judged(trials, warm, any(item.expected for item in encoded)):
            yield record

    async def _until_zero(self) -> float:
        async def nobody() -> bool:
            return not await self.deployed.pods()

        return await self.deployed.until("no pod", nobody, self.wanted.zero_within_s)

    async def _trial(self, encoded: list[Encoded]) -> Trial:
        wanted, kserve = self.wanted, self.deployed.kserve
        offset_s = await kserve.clock_offset_s()
        job = cold_job(self.deployed.endpoint, self.plan, encoded, wanted.requests)
        due = np.arange(wanted.requests, dtype=np.int64)
        async with kserve.watch_events() as told, kserve.watch_pods(self.deployed.name) as watch:
            if watch.changes:
                raise MeasurementError(f"{self.deployed.name}: a pod came before the first cold request was sent")
            try:
                stage = await run_stage(job, [item.body for item in encoded], due, lambda progress: None)
            except WorkerError as error:
                raise MeasurementError(f"{self.step}: {error}") from error
            errors, wrong = errors_of(self.plan.protocol, stage, encoded, job.cycle)
            columns, lost = stage.columns, errors != 0
            begun_s = (stage.start_ns + int(columns["dispatched_ns"].min())) / 1e9
            trial = Trial(
                ends={},
                done_s=float((columns["done_ns"].max() - columns["dispatched_ns"].min()) / 1e9),
                sent=int(lost.size),
                lost=int(lost.sum()),
                inspected=len(stage.answers),
                errors=stage_errors(stage, errors),
                wrong=wrong,
            )
            if lost.all():
                return trial
            first_s = (stage.start_ns + int(columns["first_byte_ns"][~lost].min())) / 1e9
            changes = await self._of_first_pod(watch)
            await self._images_told(told, changes)
            node = await self._node_ready(changes, offset_s)
        there = pulled(told.changes, changes[0].name)
        return replace(
            trial,
            ends=phase_ends(changes, there, begun_s, first_s, node),
            skew=clock_conflicts(changes, offset_s, told.changes),
        )

    async def _of_first_pod(self, watch: PodWatch) -> list[PodChange]:
        """All changes of the pod that was ready first."""
        ready = await watch.until(lambda change: is_pod_ready(change.pod), self.wanted.within_s)
        if ready is None:
            raise MeasurementError(f"{self.deployed.name}: requests were answered and no pod was ever seen ready")
        return [change for change in watch.changes if change.name == ready.name]

    async def _images_told(self, told: EventWatch, changes: list[PodChange]) -> None:
        """Returns when the kubelet has told of the pod's images, or does not: events may be late, and may be lost."""
        if not settled(told.changes, changes[-1].pod):
            await told.until(lambda event: settled(told.changes, changes[-1].pod), EVENTS_S)

    async def _node_ready(self, changes: list[PodChange], offset_s: tuple[float, float]) -> Span | None:
        """When the pod's node became ready, where it was brought up for the pod; on this machine's monotonic clock."""
        pod = changes[-1].pod
        name = pod["spec"].get("nodeName")
        node = await self.deployed.kserve.node(name) if name else None
        return node_ready(node, changes[0], offset_s) if node else None

    # Judging

    def _judged(self, trials: list[Trial], warm: Warm, known: bool) -> list[Record]:
        """``known``: there is something to compare the answers with."""
        judge, n = self.judge, len(trials)
        lost, sent = sum(trial.lost for trial in trials), sum(trial.sent for trial in trials)
        answered = [trial for trial in trials if trial.ends]
        texts = ", ".join(dict.fromkeys(trial.errors for trial in trials if trial.errors))
        records: list[Record] = [
            judge.check(
                "answered",
                "Requests to a service without a pod wait for one, and none is lost.",
                not lost,
                source="Knative: the activator holds requests while a revision scales from zero",
                expected=f"{sent} answers",
                observed=f"{sent - lost} of {sent} in {n} trials" + (f"; errors: {texts}" if texts else ""),
            )
        ]
        records.append(answers_check(judge, trials, known=known))
        records += figures(judge, self.deployed.name, trials, warm)
        if answered:
            records.append(self._clocks(answered))
        records.append(warm_check(judge, warm))
        return records + self._budgets(trials)

    def _clocks(self, trials: list[Trial]) -> CheckResult:
        conflicts = [trial.skew for trial in trials if trial.skew]
        return self.judge.check(
            "clocks",
            "Kubernetes' timestamps and this machine's clock agree.",
            not conflicts,
            source="the Date header of the API server, and the pod's timestamps",
            expected=f"within the bounds of the offset between the clocks, and {TOLERANCE_S:g} s",
            observed=conflicts[0] if conflicts else f"in all of {len(trials)} trials",
        )

    def _budgets(self, trials: list[Trial]) -> list[CheckResult]:
        never = exactly(float("inf"))
        checks = []
        for name, limit_s in self.wanted.budget_s.items():
            values = [
                never if not trial.ends else trial.ends["first_byte"] if name == "total" else trial.phases[name]
                for trial in trials
            ]
            judged = judge_budget(values, limit_s)
            requirement = (
                f"Budget: {'all of it' if name == 'total' else name} takes at most {format_duration(limit_s)}."
            )
            expected = f"a median of at most {format_duration(limit_s)}, with {CONFIDENCE:.0%} confidence"
            observed = f"{_described(values)}; {judged.within} of {judged.trials} within"
            if judged.outcome is Outcome.UNDECIDED:
                checks.append(
                    self.judge.undecided(
                        f"budget.{name}", requirement, expected=expected, observed=observed, reason=judged.reason
                    )
                )
            else:
                passed = judged.outcome is Outcome.PASSED
                checks.append(
                    self.judge.check(f"budget.{name}", requirement, passed, expected=expected, observed=observed)
                )
        return checks


def answers_check(judge: Judge, trials: Sequence[Trial], *, known: bool) -> CheckResult:
    """``known``: there is something to compare the answers with. What was not inspected is not called right."""
    right = "The first answers are right."
    wrong = [what for trial in trials for what in trial.wrong.values()]
    inspected, answered = sum(trial.inspected for trial in trials), sum(trial.sent - trial.lost for trial in trials)
    answered += len(wrong)  # a wrong answer is lost, and was one
    if not answered:
        return judge.unjudged("answers", right, "no cold request was answered")
    expected = "the same outputs as when warm"
    observed = f"{inspected} of {answered} answers inspected, {f'{len(wrong)} wrong' if wrong else 'all right'}"
    if wrong:
        observed += f", the first: {wrong[0]}"
    elif not known:
        observed += " as far as ids tell: the model does not repeat itself"
    if not inspected:
        return judge.undecided("answers", right, expected=expected, observed=observed, reason=NO_ROOM)
    return judge.check(
        "answers", right, not wrong, source="the model's expected outputs", expected=expected, observed=observed
    )


def warm_check(judge: Judge, warm: Warm) -> CheckResult:
    fine = len(warm.latency_s)
    requirement = "Requests to the service while it is awake, one after the other, are answered rightly."
    expected, observed = f"{warm.sent} right answers", f"{fine} right answers"
    if warm.inspected < fine:
        observed = f"{fine} answers, {warm.inspected} of them inspected"
    if warm.errors:
        few = f"; {fine} are too few to hold a cold request against" if fine < LEAST_WARM else ""
        observed += f"; errors: {warm.errors}{few}"
    if fine == warm.sent and not warm.inspected:
        return judge.undecided("warm", requirement, expected=expected, observed=observed, reason=NO_ROOM)
    return judge.check("warm", requirement, fine == warm.sent, expected=expected, observed=observed)


def _described(values: Sequence[Span]) -> str:
    known = [value.middle for value in values if np.isfinite(value.middle)]
    if not known:
        return "no trial had an answer"
    resolution = max(value.resolution for value in values)
    text = format_duration(float(np.median([value.middle for value in values])))
    text += f" (from {format_duration(min(known))} to {format_duration(max(known))}, {len(known)} trials"
    text += f", each ±{resolution:.1f} s)" if resolution else ")"
    return text + (f", {len(values) - len(known)} without an answer" if len(known) < len(values) else "")


async def cold_start(
    deployed: Deployed, wanted: ColdStart, step: str, status: Callable[[str], None]
) -> AsyncIterator[Record]:
    """Raises MeasurementError where the service does not go to zero or a phase could not be seen."""
    async for record in _Suite(deployed, wanted, step, status).run():
        yield record
