"""One course of load, watched from its start until the pods that it brought are gone again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from harness.base.errors import ClusterError, MeasurementError
from harness.base.units import format_duration
from harness.kubernetes.events import likely_offset_s
from harness.kubernetes.kpa_settings import CONFIG_MAP, DEFAULTS, NAMESPACE, PREFIX, Settings, settings_of
from harness.kubernetes.podwatch import PodWatch
from harness.load.arrivals import steady
from harness.load.runner import Control, LocalGenerators, Progress, WorkerError, run_stage
from harness.results.records import CheckResult, Level, LoadResult, Record, SampleBatch, Series
from scenarios.suites.autoscaling import analysis
from scenarios.suites.autoscaling.analysis import PER_SECOND, RESOLUTION_S, Lag, Steps, Watched
from scenarios.suites.autoscaling.fit import EARLY_S, FACTORS, LATE_S, Fit, best_fit, most_reversals
from scenarios.suites.shared.deployed import Deployed
from scenarios.suites.shared.judging import Judge
from scenarios.suites.shared.stage import Plan, StageEnd, run_plan
from scenarios.suites.shared.stage.beforehand import encode
from scenarios.suites.shared.stage.errors import in_words, stage_errors
from scenarios.suites.shared.stage.requests import Encoded, build_job, wrong_answers

SUITE = "autoscaling"
POLL_S = 0.25
MORE_REVERSALS = 2
KPA = "kpa.autoscaling.knative.dev"
Object = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """What the step asks for; durations in seconds."""

    plan: Plan
    scale_out_within_s: float
    back_within_s: float
    zero_within_s: float | None
    overshoot: float


async def _pods_and_wish(deployed: Deployed) -> tuple[list[Object], int]:
    """The pods that are to stay, and how many the autoscaler wants."""
    pods, revisions = await asyncio.gather(deployed.pods(), deployed.kserve.revisions(deployed.name))
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    wishes = [(item.get("status") or {}).get("desiredReplicas") for item in revisions]
    known = [int(wish) for wish in wishes if wish is not None and wish >= 0]
    return staying, sum(known) if known else len(staying)


@dataclass
class Watch:
    """``pods`` tells when each was ready; how many are desired is read again and again. Times of ``time.monotonic``."""

    deployed: Deployed
    pods: PodWatch
    moments_s: list[float] = field(default_factory=list)
    desired: list[int] = field(default_factory=list)

    async def read(self) -> None:
        _, desired = await _pods_and_wish(self.deployed)
        self.moments_s.append(time.monotonic())
        self.desired.append(desired)

    async def follow(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(POLL_S)

    def ready(self, start_s: float) -> Steps:
        return analysis.ready_steps(list(self.pods.changes), start_s)

    def desired_steps(self, start_s: float) -> Steps:
        return Steps(np.array(self.moments_s) - start_s, np.array(self.desired, dtype=np.float64))


class _Suite:
    def __init__(
        self, deployed: Deployed, course: Course, samples_name: str, progress: Callable[[Progress], None]
    ) -> None:
        self.deployed = deployed
        self.course = course
        self.samples_name = samples_name
        self.progress = progress
        self.judge = Judge(SUITE, deployed.endpoint, course.plan.name)
        self.encoded: list[Encoded] = []
        self.batch: SampleBatch | None = None
        self.result: LoadResult | None = None

    async def run(self) -> AsyncIterator[Record]:
        settings = await self._settings()
        self.encoded = await encode(self.deployed.endpoint, self.course.plan)
        await self._rest(settings)
        idle_s = await self._idle_s(settings)
        control = Control()
        async with self.deployed.kserve.watch_pods(self.deployed.name) as pods:
            watch = Watch(self.deployed, pods)
            await watch.read()
            following = asyncio.create_task(watch.follow())
            try:
                generators = LocalGenerators(self.course.plan.processes, control)
                plan, endpoint = self.course.plan, self.deployed.endpoint
                # Asked again here, the service would have a load before the load, which the model knows nothing of.
                async for record in run_plan(
                    endpoint, plan, self.samples_name, self.progress, generators, lambda text: None, self.encoded, False
                ):
                    if isinstance(record, StageEnd):
                        continue
                    if isinstance(record, SampleBatch):
                        self.batch = record
                    elif isinstance(record, LoadResult):
                        self.result = record
                    yield record
                start_s = control.start_ns / 1e9
                await self._way_back(watch, start_s, settings, following)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        ready = watch.ready(start_s)
        seen = self._watched(watch, ready, start_s)
        for item in self._judged(seen, ready, settings, idle_s):
            yield item
        if self.course.zero_within_s is not None and ready.values[-1] == 0:
            yield await self._wake()

    async def _settings(self) -> Settings:
        """Of the revision that serves. Raises MeasurementError where it is not Knative's autoscaler that scales it."""
        component = await self.deployed.component()
        name = component.get("latestReadyRevision")
        revision = next(
            (
                item
                for item in await self.deployed.kserve.revisions(self.deployed.name)
                if item["metadata"]["name"] == name
            ),
            None,
        )
        if revision is None:
            raise MeasurementError(
                f"{self.deployed.name}: no ready revision; autoscaling is judged in KServe's Knative mode"
            )
        annotations = revision["metadata"].get("annotations") or {}
        kind = annotations.get(PREFIX + "class", KPA)
        if kind != KPA:
            raise MeasurementError(f"{self.deployed.name}: scaled by {kind}; expected {KPA}")
        try:
            config = await self.deployed.kserve.config_map(NAMESPACE, CONFIG_MAP)
        except (LookupError, ClusterError):
            config = dict(DEFAULTS)  # not ours to read: what Knative has when nobody has changed it
        try:
            return settings_of(annotations, config, int(revision["spec"].get("containerConcurrency") or 0))
        except ValueError as error:
            raise MeasurementError(f"{self.deployed.name}: {error}") from error

    async def _rest(self, settings: Settings) -> None:
        """Until the pods are gone, and wanted no more, that a load before this one has brought. Raises MeasurementError
        where they stay."""
        floor = max(1, settings.least)
        deadline = time.monotonic() + self.course.back_within_s
        while True:
            pods, desired = await _pods_and_wish(self.deployed)
            if max(len(pods), desired) <= floor:
                return
            if time.monotonic() > deadline:
                raise MeasurementError(
                    f"{self.course.plan.name}: {len(pods)} pods without load after {self.course.back_within_s:g} s,"
                    f" {floor} are to be there: does something else send requests?"
                )
            await asyncio.sleep(POLL_S)

    async def _idle_s(self, settings: Settings) -> int:
        """How long the service has been there without load, as far as the stable window reaches."""
        since = [
            datetime.fromisoformat(item["lastTransitionTime"])
            for pod in await self.deployed.ready_pods()
            for item in pod["status"]["conditions"]
            if item["type"] == "Ready"
        ]
        ahead_s = likely_offset_s(await self.deployed.kserve.clock_offset_s())
        age_s = (datetime.now(UTC) - min(since)).total_seconds() + ahead_s if since else 0.0
        return int(min(settings.spec.stable_window_s, max(0.0, age_s)))

    async def _way_back(self, watch: Watch, start_s: float, settings: Settings, following: asyncio.Task[None]) -> None:
        """Returns when the pods are gone, or the time for that is over."""
        course = self.course
        load_end_s = start_s + course.plan.length_s
        least = 0 if course.zero_within_s is not None else max(1, settings.least)
        limit_s = max(course.zero_within_s or 0.0, course.back_within_s)
        while True:
            if following.done():
                following.result()  # raises what the watch died of
                raise MeasurementError(f"{course.plan.name}: the pods are not watched any more")
            watch.pods.check()
            after_s = time.monotonic() - load_end_s
            if watch.ready(start_s).values[-1] <= least and after_s > POLL_S:
                return
            if after_s > limit_s + RESOLUTION_S:
                return
            await asyncio.sleep(POLL_S / 2)

    def _watched(self, watch: Watch, ready: Steps, start_s: float) -> Watched:
        assert self.batch is not None
        batch = self.batch
        length_s = self.course.plan.length_s
        seconds = max(math.ceil(length_s), int(watch.moments_s[-1] - start_s))
        sent = batch.sent_ns >= 0
        offered = np.bincount((batch.due_ns / 1e9).astype(int), minlength=seconds)[:seconds]
        return Watched(
            offered=offered.astype(np.float64),
            concurrency=analysis.concurrency_by_second(batch.sent_ns[sent] / 1e9, batch.done_ns[sent] / 1e9, seconds),
            desired=watch.desired_steps(start_s).by_second(seconds),
            ready=ready.by_second(seconds),
            load_s=length_s,
        )

    # Judging

    def _judged(self, seen: Watched, ready: Steps, settings: Settings, idle_s: int) -> list[Record]:
        assert self.batch is not None
        fine = (self.batch.error == 0) & (self.batch.sent_ns >= 0)
        if not fine.any():
            raise MeasurementError(f"{self.course.plan.name}: no request was answered")
        service_s = float(np.quantile((self.batch.done_ns - self.batch.sent_ns)[fine] / 1e9, 0.1))
        plan = self.course.plan
        segments = plan.segments or steady(plan.rate_per_s or 0.0, plan.duration_s)
        ideal = analysis.ideal_pods(analysis.planned_rate(segments, seen.seconds), service_s, settings)
        finely = analysis.planned_rate(segments, seen.seconds, PER_SECOND)
        lags = analysis.lags(analysis.ideal_pods(finely, service_s, settings), ready, seen.load_s)
        fit, turns = best_fit(settings, seen, idle_s), most_reversals(settings, seen, idle_s)
        columns = {
            "t_s": np.arange(seen.seconds, dtype=np.float64),
            "offered_per_s": seen.offered,
            "concurrency": seen.concurrency.round(4),
            "per_pod": seen.per_pod.round(4),
            "desired": seen.desired,
            "ready": seen.ready,
            "ideal": ideal,
            "low": fit.low,
            "high": fit.high,
        }
        series = Series(
            "replicas", self.deployed.name, self.course.plan.name, {name: col.tolist() for name, col in columns.items()}
        )
        return [
            series,
            *self._out(seen, ideal, lags),
            *self._excess(seen, ideal, settings, turns),
            self._lossless(),
            self._model(seen, fit),
            *self._back(seen, ready, settings),
            *self._cost(seen, ideal),
        ]

    def _out(self, seen: Watched, ideal: analysis.Floats, found: list[Lag]) -> list[Record]:
        """Scale-out: to the first pod more, and to as many as the load needs."""
        limit_s, plan = self.course.scale_out_within_s, self.course.plan
        if not found:
            needs, has = int(ideal[: math.ceil(seen.load_s)].max()), int(seen.ready[0])
            raise MeasurementError(
                f"{plan.name}: the load needs {needs} pods at the target, and {has} were there at its start: raise the"
                " rate, or lower the target, so that there is something to scale"
            )
        missing = [lag for lag in found if lag.lag_s is None]
        records: list[Record] = []
        if found[0].lag_s is not None:
            records.append(self.judge.measurement("scale_out.first", found[0].lag_s, "s", 1))
        slowest = max((lag.lag_s for lag in found if lag.lag_s is not None), default=math.nan)
        if not missing:
            records.append(self.judge.measurement("scale_out.enough", slowest, "s", len(found)))
            observed = f"{slowest:.2f} s for {found[-1].pods} pods, {found[0].lag_s:.2f} s for the first one more"
        else:
            observed = (
                f"{missing[0].pods} pods were needed at {missing[0].needed_s:g} s and never ready; at most"
                f" {int(seen.ready.max())} were"
            )
        records.append(
            self._timed(
                "scale_out",
                f"There are enough pods within {limit_s:g} s of the load that needs them.",
                None if missing else slowest,
                limit_s,
                expected=f"{found[-1].pods} pods within {limit_s:g} s",
                observed=observed,
            )
        )
        return records

    def _timed(
        self,
        name: str,
        requirement: str,
        took_s: float | None,
        limit_s: float,
        *,
        expected: str,
        observed: str,
        source: str = "scenario",
    ) -> CheckResult:
        """``took_s`` is never too short, and too long by ``RESOLUTION_S`` at most; None where it never came."""
        if took_s is not None and limit_s < took_s <= limit_s + RESOLUTION_S:
            reason = f"a lag is known to {RESOLUTION_S:g} s, and this one is nearer to its limit than that"
            return self.judge.undecided(name, requirement, expected=expected, observed=observed, reason=reason)
        passed = took_s is not None and took_s <= limit_s
        return self.judge.check(name, requirement, passed, source=source, expected=expected, observed=observed)

    def _excess(self, seen: Watched, ideal: analysis.Floats, settings: Settings, turns: int) -> list[Record]:
        load = math.ceil(seen.load_s)
        # What queued up while there were too few pods is load as well, and the autoscaler is right to see it.
        backlog = analysis.smoothed(seen.concurrency, 2) / settings.spec.target_value
        needed = settings.bounded(max(int(ideal[:load].max()), math.ceil(float(backlog[:load].max()))))
        most, limit = int(seen.desired.max()), math.ceil(needed * self.course.overshoot)
        reversals = analysis.reversals(seen.desired)
        return [
            self.judge.measurement("overshoot", most / max(needed, 1), "times", 1),
            self.judge.check(
                "overshoot",
                f"At most {self.course.overshoot:g} times the pods that the load needs.",
                most <= limit,
                expected=f"at most {limit} pods, where {needed} are needed",
                observed=f"{most} pods",
            ),
            self.judge.measurement("reversals", reversals, "times", 1),
            self.judge.check(
                "flapping",
                "The number of pods does not turn round and round.",
                reversals <= turns + MORE_REVERSALS,
                expected=f"at most {turns + MORE_REVERSALS} reversals (Knative's model: {turns})",
                observed=f"the desired number turned round {reversals} time{'s' if reversals != 1 else ''}",
            ),
        ]

    def _lossless(self) -> CheckResult:
        assert self.result is not None
        result = self.result
        text = in_words(result.errors_seen) or "none"
        return self.judge.check(
            "lossless",
            "No request fails while the number of pods changes.",
            not result.errors,
            expected=f"0 of {result.requests} failed",
            observed=f"{result.errors} of {result.requests} failed: {text}",
        )

    def _model(self, seen: Watched, fit: Fit) -> CheckResult:
        requirement = "The desired number of pods is what Knative's autoscaler would want, and when it would."
        expected = (
            f"one load between {min(FACTORS):.0%} and {max(FACTORS):.0%} of what was sent explains all decisions, each"
            f" at most {LATE_S} s late and {EARLY_S} s early"
        )
        if fit.agrees and not fit.moves:
            return self.judge.undecided(
                "model",
                requirement,
                expected=expected,
                observed="the model wants the same number of pods all the time",
                reason="there was no decision to compare: a load that needs more pods has some",
            )
        worst = sorted(fit.outside, key=lambda item: -item.seconds)[:4]
        told = "; ".join(str(item) for item in sorted(worst, key=lambda item: item.first))
        return self.judge.check(
            "model",
            requirement,
            fit.agrees,
            source="knative/serving, pkg/autoscaler/scaling/autoscaler.go",
            expected=expected,
            observed=f"{fit.moves} decisions in {seen.seconds} s, best explained by {fit.factors[0]:.0%} to"
            f" {fit.factors[1]:.0%} of the load" + (f"; {told}" if told else ""),
        )

    def _back(self, seen: Watched, ready: Steps, settings: Settings) -> list[Record]:
        course, floor = self.course, max(1, settings.least)
        back_s = analysis.first_below(ready, seen.load_s, floor)
        still = f"{int(ready.values[-1])} were still ready"
        records: list[Record] = []
        if back_s is not None:
            records.append(self.judge.measurement("back", back_s, "s", 1))
        records.append(
            self._timed(
                "back",
                f"The pods that nobody needs any more are gone within {course.back_within_s:g} s.",
                back_s,
                course.back_within_s,
                expected=f"{floor} ready within {course.back_within_s:g} s of the end of the load",
                observed=f"{back_s:.2f} s" if back_s is not None else still,
            )
        )
        if course.zero_within_s is not None:
            zero_s = analysis.first_below(ready, seen.load_s, 0)
            if zero_s is not None:
                records.append(self.judge.measurement("to_zero", zero_s, "s", 1))
            records.append(
                self._timed(
                    "to_zero",
                    f"An idle service has no pod within {course.zero_within_s:g} s.",
                    zero_s,
                    course.zero_within_s,
                    source="Knative: scale to zero",
                    expected=f"no pod within {course.zero_within_s:g} s of the end of the load",
                    observed=f"after {zero_s:.2f} s" if zero_s is not None else still,
                )
            )
        return records

    def _cost(self, seen: Watched, ideal: analysis.Floats) -> list[Record]:
        used, best = analysis.replica_seconds(seen.ready), analysis.replica_seconds(ideal)
        return [
            self.judge.measurement("replica_seconds", used, "s", seen.seconds),
            self.judge.measurement("replica_seconds.ideal", best, "s", seen.seconds),
            self.judge.measurement("concurrency_per_pod.max", float(seen.per_pod.max()), "requests", 1),
        ]

    async def _wake(self) -> CheckResult:
        """One request to the service that has no pod."""
        plan = replace(self.course.plan, timeout_s=max(60.0, self.course.plan.timeout_s))
        job = replace(build_job(self.deployed.endpoint, plan, self.encoded), check_every=1)
        try:
            stage = await run_stage(
                job, [item.body for item in self.encoded], np.zeros(1, dtype=np.int64), lambda progress: None
            )
        except WorkerError as error:
            raise MeasurementError(f"{plan.name}: {error}") from error
        failure = stage_errors(stage)
        failure = failure or next(iter(wrong_answers(plan.protocol, stage, self.encoded, job.cycle).values()), "")
        took_s = float(stage.columns["done_ns"][0] - stage.columns["due_ns"][0]) / 1e9
        return self.judge.check(
            "wake",
            "A service without a pod answers the next request.",
            not failure,
            level=Level.MUST,
            source="Knative: the activator holds requests while a revision scales from zero",
            expected="the right answer",
            observed=f"{failure or 'the right answer'} after {format_duration(took_s)}",
        )


async def autoscaling(
    deployed: Deployed, course: Course, samples_name: str, progress: Callable[[Progress], None]
) -> AsyncIterator[Record]:
    """Raises MeasurementError where the load needs no more pods than there are, or nothing was answered."""
    async for record in _Suite(deployed, course, samples_name, progress).run():
        yield record
