"""Cold start: how long a service without a pod takes to answer, and where the time goes.

A trial waits until the service has no pod, sends requests, and follows the pod that comes. Each phase ends when the
change that ends it arrived over the watch, on this machine's clock; the timestamps that Kubernetes gives, cut to the
second and by another clock, must agree with that within the bounds that the API server's clock is known to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from harness.deployed import Deployed
from harness.errors import MeasurementError
from harness.kserve import is_pod_ready, is_pod_running
from harness.load.runner import StageResult, WorkerError, run_stage
from harness.podwatch import PodChange, PodWatch
from harness.records import CheckResult, Record, Series, TimelineEvent
from harness.stats import summarize
from harness.units import format_duration
from scenarios.suites.judging import Judge
from scenarios.suites.load import Plan
from scenarios.suites.load.beforehand import encode
from scenarios.suites.load.errors import errors_seen, in_words
from scenarios.suites.load.requests import Encoded, build_job, wrong_answers

SUITE = "cold-start"
PHASES = ("created", "node", "scheduled", "storage", "image", "started", "ready", "first_byte")
"""Each ends with what it is called: the pod is there, a node that it needed is, it has its node, its model is
downloaded, its image is there, its process runs, it says that it is ready, the first byte of an answer has come. A
phase that a pod does not have (a node that was there, no model to download, an image that was there) takes no time."""
TOLERANCE_S = 1.5
"""Kubernetes' timestamps are cut to the second, and a watch is not instant."""
Object = dict[str, Any]


@dataclass(frozen=True)
class ColdStart:
    trials: int
    requests: int
    """Sent at once to the cold service."""
    warm: int
    within_s: float
    zero_within_s: float
    budget_s: Mapping[str, float]
    """By phase, and ``total``; at the median of the trials."""


@dataclass(frozen=True)
class Trial:
    """Seconds from the first request, by phase; -1 where the end of a phase was not seen. ``done_s`` is the slowest
    answer, ``failed`` of ``sent`` requests had none."""

    ends_s: dict[str, float]
    done_s: float
    sent: int
    failed: int
    errors: str
    wrong: dict[int, str]
    skew: str
    """What does not fit in Kubernetes' timestamps; empty where they agree."""

    @property
    def ready_late_s(self) -> float:
        """How long after the first answer the pod was called ready; negative where that was before."""
        return self.ends_s["ready"] - self.ends_s["first_byte"]

    @property
    def phases_s(self) -> dict[str, float]:
        """How long each took, as far as the first answer waited for it: together they are all of it. Knative's
        activator asks a pod itself, and sends requests on before Kubernetes calls the pod ready."""
        whole = self.ends_s["first_byte"]
        ends = [0.0, *(min(self.ends_s[name], whole) for name in PHASES)]
        return {name: max(0.0, after - before) for name, (before, after) in zip(PHASES, pairwise(ends), strict=True)}


def _has_condition(kind: str) -> Callable[[Object], bool]:
    def holds(pod: Object) -> bool:
        conditions = (pod.get("status") or {}).get("conditions") or []
        return any(item["type"] == kind and item["status"] == "True" for item in conditions)

    return holds


_ENDS: dict[str, Callable[[Object], bool]] = {
    "created": lambda pod: True,
    "scheduled": _has_condition("PodScheduled"),
    "storage": _has_condition("Initialized"),
    "started": is_pod_running,
    "ready": is_pod_ready,
}


def phase_ends(
    changes: list[PodChange],
    pulled_s: float | None,
    begun_s: float,
    first_byte_s: float,
    node_s: float | None = None,
) -> dict[str, float]:
    """Seconds from ``begun_s`` to the end of each phase, in their order; ``pulled_s`` (on the same clock) is when the
    image was there, None where nobody had to fetch it, and ``node_s`` when the pod's node was ready, None where that
    was before the pod. Raises MeasurementError for an end that was not seen."""
    ends = {}
    for name, holds in _ENDS.items():
        at = next((change.at_s for change in changes if change.type != "DELETED" and holds(change.pod)), None)
        if at is None:
            raise MeasurementError(f"the pod was never seen {name}")
        ends[name] = at - begun_s
    image = ends["storage"] if pulled_s is None else pulled_s - begun_s
    ends["image"] = min(max(image, ends["storage"]), ends["started"])
    node = ends["created"] if node_s is None else node_s - begun_s
    ends["node"] = min(max(node, ends["created"]), ends["scheduled"])
    ends["first_byte"] = first_byte_s - begun_s
    return {name: ends[name] for name in PHASES}


def node_ready_s(node: Object, created: PodChange, offset_s: tuple[float, float]) -> float | None:
    """None for a node that was there before the pod."""
    born = datetime.fromisoformat(node["metadata"]["creationTimestamp"]).timestamp()
    asked = datetime.fromisoformat(created.pod["metadata"]["creationTimestamp"]).timestamp()
    if born < asked:
        return None
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = next((item for item in conditions if item["type"] == "Ready" and item["status"] == "True"), None)
    stamp = ready["lastTransitionTime"] if ready else node["metadata"]["creationTimestamp"]
    ours = datetime.fromisoformat(stamp).timestamp() - (offset_s[0] + offset_s[1]) / 2
    return created.at_s + ours - created.wall_s


def clock_conflicts(changes: list[PodChange], offset_s: tuple[float, float]) -> str:
    """Whether Kubernetes' timestamps of the pod and ours of their arrival can both be right; empty where they can."""
    pod = changes[-1].pod
    conditions = {item["type"]: item for item in (pod.get("status") or {}).get("conditions") or []}
    moments = {"created": pod["metadata"].get("creationTimestamp")}
    for name, kind in (("scheduled", "PodScheduled"), ("storage", "Initialized"), ("ready", "Ready")):
        if conditions.get(kind, {}).get("status") == "True":
            moments[name] = conditions[kind].get("lastTransitionTime")
    for name, stamp in moments.items():
        seen = next((change.wall_s for change in changes if _ENDS[name](change.pod)), None)
        if stamp is None or seen is None:
            continue
        theirs = datetime.fromisoformat(stamp).timestamp()
        earliest, latest = theirs - offset_s[1] - TOLERANCE_S, theirs + 1 - offset_s[0] + TOLERANCE_S
        if not earliest <= seen <= latest:
            return f"{name}: Kubernetes says {stamp}, and it was seen {seen - theirs:+.1f} s from that"
    return ""


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
        warm = await self._warm(encoded)
        for number in range(1, self.wanted.trials + 1):
            self.status(f"{self.step}: trial {number} of {self.wanted.trials}: waiting until there is no pod")
            idle_s = await self._until_zero()
            yield self.judge.measurement("to_zero", idle_s, "s", 1)
            self.status(f"{self.step}: trial {number} of {self.wanted.trials}: cold")
            trial = await self._trial(encoded)
            trials.append(trial)
            if trial.ends_s:
                first = trial.ends_s["first_byte"]
                detail = ", ".join(f"{name} {seconds:.2f}" for name, seconds in trial.phases_s.items())
                yield TimelineEvent("servecert", self.deployed.name, f"cold start {first:.2f} s", detail)
        for record in self._judged(trials, warm):
            yield record

    async def _until_zero(self) -> float:
        async def nobody() -> bool:
            return not await self.deployed.pods()

        return await self.deployed.until("no pod", nobody, self.wanted.zero_within_s)

    async def _warm(self, encoded: list[Encoded]) -> list[float]:
        """Latencies of single requests, one after the other, to a service that is awake."""
        job = replace(build_job(self.deployed.endpoint, self.plan, encoded), check_every=1, concurrency=None)
        due = (np.arange(self.wanted.warm, dtype=np.int64)) * 20_000_000
        stage = await run_stage(job, [item.body for item in encoded], due, lambda progress: None)
        columns = stage.columns
        fine = columns["error"] == 0
        if not fine.any():
            raise MeasurementError(
                f"{self.step}: none of {self.wanted.warm} warm requests was answered: {_errors(stage)}"
            )
        return [float(value) for value in (columns["done_ns"] - columns["due_ns"])[fine] / 1e9]

    async def _trial(self, encoded: list[Encoded]) -> Trial:
        wanted = self.wanted
        offset_s = await self.deployed.kserve.clock_offset_s()
        job = replace(build_job(self.deployed.endpoint, self.plan, encoded), check_every=1, concurrency=None)
        due = np.arange(wanted.requests, dtype=np.int64)
        async with self.deployed.kserve.watch_pods(self.deployed.name) as watch:
            if watch.changes:
                raise MeasurementError(f"{self.deployed.name}: a pod came before the first cold request was sent")
            try:
                stage = await run_stage(job, [item.body for item in encoded], due, lambda progress: None)
            except WorkerError as error:
                raise MeasurementError(f"{self.step}: {error}") from error
            columns = stage.columns
            failed = columns["error"] != 0
            begun_s = (stage.start_ns + int(columns["dispatched_ns"].min())) / 1e9
            if failed.all():
                return _nothing(stage)
            first_ns = int(columns["first_byte_ns"][~failed].min())
            changes = await self._of_first_pod(watch)
            pulled_s = await self._pulled(changes[0].name)
            node_s = await self._node_ready(changes, offset_s)
        ends = phase_ends(changes, pulled_s, begun_s, (stage.start_ns + first_ns) / 1e9, node_s)
        return Trial(
            ends_s=ends,
            done_s=float((columns["done_ns"].max() - columns["dispatched_ns"].min()) / 1e9),
            sent=int(failed.size),
            failed=int(failed.sum()),
            errors=_errors(stage),
            wrong=wrong_answers(self.plan.protocol, stage, encoded, job.cycle),
            skew=clock_conflicts(changes, offset_s),
        )

    async def _of_first_pod(self, watch: PodWatch) -> list[PodChange]:
        """All changes of the pod that was ready first."""
        ready = await watch.until(lambda change: is_pod_ready(change.pod), self.wanted.within_s)
        if ready is None:
            raise MeasurementError(f"{self.deployed.name}: requests were answered and no pod was ever seen ready")
        return [change for change in watch.changes if change.name == ready.name]

    async def _pulled(self, pod: str) -> float | None:
        """When the last of its images was there, by the events of the kubelet; on this machine's monotonic clock."""
        moments = [
            event.monotonic_s
            for event in await self.deployed.kserve.timeline()
            if event.object == f"pod/{pod}" and event.what == "Pulled" and "already present" not in event.detail
        ]
        return max(moments, default=None)

    async def _node_ready(self, changes: list[PodChange], offset_s: tuple[float, float]) -> float | None:
        """When the pod's node became ready, where it was brought up for the pod; on this machine's monotonic clock,
        with the middle of what is known of the clocks' offset."""
        pod = changes[-1].pod
        name = pod["spec"].get("nodeName")
        node = await self.deployed.kserve.node(name) if name else None
        return node_ready_s(node, changes[0], offset_s) if node else None

    def _judged(self, trials: list[Trial], warm: list[float]) -> list[Record]:
        judge, n = self.judge, len(trials)
        failed, sent = sum(trial.failed for trial in trials), sum(trial.sent for trial in trials)
        answered = [trial for trial in trials if trial.ends_s]
        texts = ", ".join(dict.fromkeys(trial.errors for trial in trials if trial.errors))
        records: list[Record] = [
            judge.check(
                "answered",
                "Requests to a service without a pod wait for one, and none is lost.",
                not failed,
                source="Knative: the activator holds requests while a revision scales from zero",
                expected=f"{sent} answers",
                observed=f"{sent - failed} of {sent} in {n} trials" + (f"; errors: {texts}" if texts else ""),
            )
        ]
        wrong = [what for trial in trials for what in trial.wrong.values()]
        right = "The first answers are right."
        if not answered:
            return [*records, judge.unjudged("answers", right, "no cold request was answered")]
        records.append(
            judge.check(
                "answers",
                right,
                not wrong,
                source="the model's expected outputs",
                expected="the same outputs as when warm",
                observed=f"{len(wrong)} wrong, the first: {wrong[0]}"
                if wrong
                else f"{sent - failed} inspected, all right",
            )
        )
        columns = {name: [trial.phases_s[name] for trial in answered] for name in PHASES}
        records.append(Series("cold-start", self.deployed.name, self.step, columns))
        totals = np.array([trial.ends_s["first_byte"] for trial in answered])
        for name, value in summarize(np.sort(totals)).items():
            records.append(judge.measurement(f"first_byte.{name}", value, "s", totals.size))
        for name, values in columns.items():
            records.append(judge.measurement(f"phase.{name}", float(np.median(values)), "s", len(values)))
        late = float(np.median([trial.ready_late_s for trial in answered]))
        if late > 0:
            records.append(judge.measurement("ready_after_first_byte", late, "s", totals.size))
        usual = float(np.median(warm))
        records.append(judge.measurement("warm", usual, "s", len(warm)))
        records.append(judge.measurement("cold_over_warm", float(np.median(totals)) / usual, "times", totals.size))
        records += self._clocks(answered)
        records += self._budgets(columns, totals)
        return records

    def _clocks(self, trials: list[Trial]) -> list[CheckResult]:
        conflicts = [trial.skew for trial in trials if trial.skew]
        return [
            self.judge.check(
                "clocks",
                "Kubernetes' timestamps and this machine's clock agree.",
                not conflicts,
                source="the Date header of the API server, and the pod's timestamps",
                expected=f"within the bounds of the offset between the clocks, and {TOLERANCE_S:g} s",
                observed=conflicts[0] if conflicts else f"in all of {len(trials)} trials",
            )
        ]

    def _budgets(self, columns: dict[str, list[float]], totals: Any) -> list[CheckResult]:
        checks = []
        for name, limit_s in self.wanted.budget_s.items():
            values = totals if name == "total" else np.array(columns[name])
            median = float(np.median(values))
            checks.append(
                self.judge.check(
                    f"budget.{name}",
                    f"Budget: {'all of it' if name == 'total' else name} takes at most {format_duration(limit_s)}.",
                    median <= limit_s,
                    expected=f"a median of at most {format_duration(limit_s)}",
                    observed=f"{format_duration(median)} (from {format_duration(float(values.min()))} to"
                    f" {format_duration(float(values.max()))}, {values.size} trials)",
                )
            )
        return checks


def _errors(stage: StageResult) -> str:
    columns = stage.columns
    return in_words(errors_seen(columns["error"], columns["status"], columns["done_ns"], stage.examples))


def _nothing(stage: StageResult) -> Trial:
    """No answer came that could be looked at."""
    count, answers = int(stage.columns["error"].size), stage.answers
    return Trial({}, 0.0, count, count, _errors(stage), dict.fromkeys(answers, "not looked at"), "")


async def cold_start(
    deployed: Deployed, wanted: ColdStart, step: str, status: Callable[[str], None]
) -> AsyncIterator[Record]:
    """Raises MeasurementError where the service does not go to zero or a phase could not be seen."""
    async for record in _Suite(deployed, wanted, step, status).run():
        yield record
