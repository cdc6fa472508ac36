"""One course of load, watched from its start until the pods that it brought are gone again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from harness.deployed import Deployed
from harness.errors import ClusterError, MeasurementError, ServecertError
from harness.kpa_settings import CONFIG_MAP, DEFAULTS, NAMESPACE, PREFIX, Settings, settings_of
from harness.kserve import is_pod_ready
from harness.load.arrivals import steady
from harness.load.runner import Control, LocalGenerators, Progress
from harness.records import CheckResult, Level, LoadResult, Record, SampleBatch, Series
from harness.units import format_duration
from scenarios.suites.autoscaling import analysis
from scenarios.suites.autoscaling.analysis import Watched
from scenarios.suites.judging import Judge
from scenarios.suites.load import Plan, run_plan
from scenarios.suites.load.errors import in_words

SUITE = "autoscaling"
POLL_S = 0.25
AGREES = 0.9
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
    known = [int(wish) for wish in wishes if wish is not None]
    return staying, sum(known) if known else len(staying)


@dataclass
class Watch:
    """Readings of the number of pods; times of ``time.monotonic``."""

    deployed: Deployed
    moments_s: list[float] = field(default_factory=list)
    desired: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)

    async def read(self) -> None:
        staying, desired = await _pods_and_wish(self.deployed)
        self.moments_s.append(time.monotonic())
        self.desired.append(desired)
        self.ready.append(sum(is_pod_ready(pod) for pod in staying))

    async def follow(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(POLL_S)


class _Suite:
    def __init__(
        self, deployed: Deployed, course: Course, samples_name: str, progress: Callable[[Progress], None]
    ) -> None:
        self.deployed = deployed
        self.course = course
        self.samples_name = samples_name
        self.progress = progress
        self.judge = Judge(SUITE, deployed.endpoint, course.plan.name)
        self.watch = Watch(deployed)
        self.batch: SampleBatch | None = None
        self.result: LoadResult | None = None

    async def run(self) -> AsyncIterator[Record]:
        settings = await self._settings()
        await self._rest(settings)
        idle_s = await self._idle_s(settings)
        await self.watch.read()
        control = Control()
        following = asyncio.create_task(self.watch.follow())
        try:
            generators = LocalGenerators(self.course.plan.processes, control)
            plan, endpoint = self.course.plan, self.deployed.endpoint
            async for record in run_plan(
                endpoint, plan, self.samples_name, self.progress, generators, lambda text: None
            ):
                if isinstance(record, SampleBatch):
                    self.batch = record
                elif isinstance(record, LoadResult):
                    self.result = record
                yield record
            zero_s = await self._way_back(control.start_ns / 1e9 + plan.length_s, settings, following)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        for item in self._judged(self._watched(control.start_ns / 1e9), settings, idle_s, zero_s):
            yield item
        if self.course.zero_within_s is not None and zero_s is not None:
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
        age_s = (datetime.now(UTC) - min(since)).total_seconds() if since else 0.0
        return int(min(settings.spec.stable_window_s, max(0.0, age_s)))

    async def _way_back(self, load_end_s: float, settings: Settings, following: asyncio.Task[None]) -> float | None:
        """Waits for the pods to go; the seconds to none from the end of the load, None where that is not waited for or
        never came."""
        course, watch = self.course, self.watch
        floor = max(1, settings.least)
        to_zero = course.zero_within_s is not None
        limit_s = (
            course.back_within_s if course.zero_within_s is None else max(course.zero_within_s, course.back_within_s)
        )
        while True:
            if following.done():
                following.result()  # raises what the watch died of
                raise MeasurementError(f"{course.plan.name}: the pods are not watched any more")
            after_s = watch.moments_s[-1] - load_end_s
            if to_zero and watch.ready[-1] == 0 and after_s > 0:
                return after_s
            if not to_zero and watch.ready[-1] <= floor and after_s > POLL_S:
                return None
            if after_s > limit_s:
                return None
            await asyncio.sleep(POLL_S / 2)

    def _watched(self, start_s: float) -> Watched:
        assert self.batch is not None
        batch, watch = self.batch, self.watch
        length_s = self.course.plan.length_s
        seconds = max(math.ceil(length_s), int(watch.moments_s[-1] - start_s))
        sent = batch.sent_ns >= 0
        offered = np.bincount((batch.due_ns / 1e9).astype(int), minlength=seconds)[:seconds]
        moments = [moment - start_s for moment in watch.moments_s]
        return Watched(
            offered=offered.astype(np.float64),
            concurrency=analysis.concurrency_by_second(batch.sent_ns[sent] / 1e9, batch.done_ns[sent] / 1e9, seconds),
            desired=analysis.held(moments, watch.desired, seconds),
            ready=analysis.held(moments, watch.ready, seconds),
            load_s=length_s,
        )

    # Judging

    def _judged(self, seen: Watched, settings: Settings, idle_s: int, zero_s: float | None) -> list[Record]:
        assert self.batch is not None
        fine = (self.batch.error == 0) & (self.batch.sent_ns >= 0)
        if not fine.any():
            raise MeasurementError(f"{self.course.plan.name}: no request was answered")
        service_s = float(np.quantile((self.batch.done_ns - self.batch.sent_ns)[fine] / 1e9, 0.1))
        plan = self.course.plan
        segments = plan.segments or steady(plan.rate_per_s or 0.0, plan.duration_s)
        ideal = analysis.ideal_pods(analysis.planned_rate(segments, seen.seconds), service_s, settings)
        low, high, turns = analysis.band(settings, seen, idle_s)
        columns = {
            "t_s": np.arange(seen.seconds, dtype=np.float64),
            "offered_per_s": seen.offered,
            "concurrency": seen.concurrency.round(4),
            "per_pod": seen.per_pod.round(4),
            "desired": seen.desired,
            "ready": seen.ready,
            "ideal": ideal,
            "low": low,
            "high": high,
        }
        series = Series(
            "replicas", self.deployed.name, self.course.plan.name, {name: col.tolist() for name, col in columns.items()}
        )
        return [
            series,
            *self._out(seen, ideal),
            *self._excess(seen, ideal, settings, turns),
            self._lossless(),
            self._model(seen, low, high),
            *self._back(seen, settings, zero_s),
            *self._cost(seen, ideal),
        ]

    def _out(self, seen: Watched, ideal: analysis.Floats) -> list[Record]:
        """Scale-out: to the first pod more, and to as many as the load needs."""
        limit_s, plan = self.course.scale_out_within_s, self.course.plan
        found = analysis.lags(ideal, seen.ready, seen.load_s)
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
            observed = f"{slowest:g} s for {found[-1].pods} pods, {found[0].lag_s:g} s for the first one more"
        else:
            observed = (
                f"{missing[0].pods} pods were needed at {missing[0].needed_s:g} s and never ready; at most"
                f" {int(seen.ready.max())} were"
            )
        records.append(
            self.judge.check(
                "scale_out",
                f"There are enough pods within {limit_s:g} s of the load that needs them.",
                not missing and slowest <= limit_s,
                expected=f"{found[-1].pods} pods within {limit_s:g} s",
                observed=observed,
            )
        )
        return records

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

    def _model(self, seen: Watched, low: analysis.Floats, high: analysis.Floats) -> CheckResult:
        share = analysis.agreement(seen.desired, low, high)
        return self.judge.check(
            "model",
            "The desired number of pods is what Knative's autoscaler would want.",
            share >= AGREES,
            source="knative/serving, pkg/autoscaler/scaling/autoscaler.go",
            expected=f"within the model's band in {AGREES:.0%} of the seconds",
            observed=f"in {share:.0%} of {seen.seconds} seconds",
        )

    def _back(self, seen: Watched, settings: Settings, zero_s: float | None) -> list[Record]:
        course, floor = self.course, max(1, settings.least)
        back_s = analysis.first_below(seen.ready, seen.load_s, floor)
        records: list[Record] = []
        if back_s is not None:
            records.append(self.judge.measurement("back", back_s, "s", 1))
        records.append(
            self.judge.check(
                "back",
                f"The pods that nobody needs any more are gone within {course.back_within_s:g} s.",
                back_s is not None and back_s <= course.back_within_s,
                expected=f"{floor} ready within {course.back_within_s:g} s of the end of the load",
                observed=f"{back_s:g} s" if back_s is not None else f"{int(seen.ready[-1])} were still ready",
            )
        )
        if course.zero_within_s is not None:
            if zero_s is not None:
                records.append(self.judge.measurement("to_zero", zero_s, "s", 1))
            records.append(
                self.judge.check(
                    "to_zero",
                    f"An idle service has no pod within {course.zero_within_s:g} s.",
                    zero_s is not None and zero_s <= course.zero_within_s,
                    source="Knative: scale to zero",
                    expected=f"no pod within {course.zero_within_s:g} s of the end of the load",
                    observed=f"after {zero_s:.1f} s" if zero_s is not None else f"{int(seen.ready[-1])} still ready",
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
        endpoint, plan = self.deployed.endpoint, self.course.plan
        started = time.monotonic()
        async with endpoint.rest(max(60.0, plan.timeout_s)) as rest:
            try:
                answer = await rest.request("GET", f"/v2/models/{endpoint.model}/ready")
                status = str(answer.status)
            except ServecertError as error:
                status = str(error)
        return self.judge.check(
            "wake",
            "A service without a pod answers the next request.",
            status == "200",
            level=Level.MUST,
            source="Knative: the activator holds requests while a revision scales from zero",
            expected="200",
            observed=f"{status} after {format_duration(time.monotonic() - started)}",
        )


async def autoscaling(
    deployed: Deployed, course: Course, samples_name: str, progress: Callable[[Progress], None]
) -> AsyncIterator[Record]:
    """Raises MeasurementError where the load needs no more pods than there are, or nothing was answered."""
    async for record in _Suite(deployed, course, samples_name, progress).run():
        yield record
