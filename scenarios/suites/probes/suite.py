"""Probes: whether readiness and liveness tell the truth, under load, while draining and while rolling over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from harness.base.errors import ClusterError, MeasurementError, ServecertError
from harness.base.protocols import Protocol
from harness.base.units import format_duration
from harness.kubernetes.events import more_often
from harness.kubernetes.kserve import is_pod_running
from harness.kubernetes.podwatch import PodWatch
from harness.results.records import CheckResult, Level, Record
from harness.target.inputs import cases_for
from harness.target.protocol.rest import RestClient, json_request
from scenarios.suites.probes.pods import (
    has_address,
    http_port,
    needed_s,
    of_service,
    readiness_changes,
    restarts,
    told,
)
from scenarios.suites.shared.deployed import Deployed
from scenarios.suites.shared.judging import Judge
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.background import Traffic, background, pause
from scenarios.suites.shared.stage.beforehand import encode
from scenarios.suites.shared.stage.requests import Encoded, differs, read_answer

SUITE = "probes"
POLL_S = 0.005
MARGIN_S = 60.0
"""Seconds of load added to the time limit of the change it runs beside."""
AFTER_S = 1.0
"""Seconds of load before the change and, at least, after it."""
MOST_BUSY_S = 60.0
"""The busy stage is lengthened up to this, so that each probe is asked while it goes on."""
EVENTS_S = 1.0
"""Events may be so late."""
RESTARTED = "servecert.io/restarted-at"
Object = dict[str, Any]


@dataclass(frozen=True)
class Probes:
    """Rates in requests a second, durations in seconds."""

    rate_per_s: float
    busy: int
    duration_s: float
    protocol: Protocol
    timeout_s: float
    ready_within_s: float
    seed: int


@dataclass
class Polled:
    """Readiness asked again and again, a few milliseconds apart, with an inference at once whenever it was yes."""

    ready: int = 0
    not_ready: int = 0
    refused: int = 0
    """Inferences that failed, or were answered wrongly, although the answer before was yes."""
    first: str = ""


@dataclass(frozen=True)
class Loaded:
    """``during`` requests were due while something was done to the service, which took ``took_s``; of ``inspected`` of
    them the answer was looked at."""

    traffic: Traffic
    during: int
    inspected: int
    took_s: float


class _Suite:
    def __init__(self, deployed: Deployed, wanted: Probes, step: str, status: Callable[[str], None]) -> None:
        self.deployed = deployed
        self.wanted = wanted
        self.step = step
        self.status = status
        self.judge = Judge(SUITE, deployed.endpoint, step)
        self.stages = 0
        self.encoded: list[Encoded] = []
        """What is sent, and what was right to it at the beginning."""

    def _plan(self, name: str, **shape: Any) -> Plan:
        self.stages += 1
        wanted = self.wanted
        return Plan(
            name=f"{self.step}-{name}",
            protocol=wanted.protocol,
            timeout_s=wanted.timeout_s,
            warmup_s=0.0,
            seed=wanted.seed + self.stages,
            **shape,
        )

    def _rest(self) -> RestClient:
        endpoint = self.deployed.endpoint
        return endpoint.rest(self.wanted.timeout_s)

    async def run(self) -> AsyncIterator[Record]:
        yield await self._start()
        self.encoded = await encode(self.deployed.endpoint, self._plan("start", rate_per_s=1.0, duration_s=1.0))
        if problem := next((item.problem for item in self.encoded if item.problem), ""):
            raise MeasurementError(f"{self.step}: before the load, a request was not answered: {problem}")
        self.status(f"{self.step}: busy")
        for record in await self._busy():
            yield record
        self.status(f"{self.step}: draining")
        for record in await self._drain():
            yield record
        self.status(f"{self.step}: rolling over")
        for record in await self._roll_over():
            yield record

    # Start

    async def _start(self) -> Record:
        """The service says that it is ready: it must answer now. Later it must, or there is nothing to go on with."""
        endpoint = self.deployed.endpoint
        deadline = time.monotonic() + self.wanted.ready_within_s
        first = ""
        async with self._rest() as rest:
            while True:
                try:
                    case = (await cases_for(endpoint, rest, None))[0]
                    wrong = differs(case.outputs or (), await rest.infer(case.inputs))
                    first = first or wrong
                    break
                except ServecertError as error:
                    first = first or str(error)[:300]
                    if time.monotonic() > deadline:
                        raise
                await asyncio.sleep(0.05)
        return self.judge.check(
            "start",
            "A service that says that it is ready answers.",
            not first,
            source="KServe: condition Ready",
            expected="an answer to the first request",
            observed=first or "an answer",
        )

    # Busy

    async def _busy(self) -> list[Record]:
        """Under full load the container is neither restarted nor called unready. The load lasts until each pod's probes
        have been asked during it, so that they could have failed."""
        kserve, name = self.deployed.kserve, self.deployed.name
        before = await kserve.happened("Unhealthy")
        pods = [pod for pod in await self.deployed.pods() if not pod["metadata"].get("deletionTimestamp")]
        if not pods:
            raise MeasurementError(f"{self.step}: there is no pod that could be kept busy")
        now_s = time.time() + (await kserve.clock_offset_s())[0]
        liveness_s = needed_s(pods, "livenessProbe", 1, now_s)
        readiness_s = needed_s(pods, "readinessProbe", None, now_s)
        lasts_s = max(self.wanted.duration_s, min(MOST_BUSY_S, max(liveness_s or 0.0, readiness_s or 0.0)))
        plan = self._plan("busy", duration_s=lasts_s + AFTER_S, concurrency=self.wanted.busy)
        async with kserve.watch_pods(name) as watch:
            async with background(self.deployed.endpoint, plan, self.encoded) as running:
                since_s = time.monotonic()
                await pause(running, lasts_s)
                traffic = await running.finish()
            await asyncio.sleep(EVENTS_S)
            changed, restarted = readiness_changes(watch.changes, since_s), restarts(watch.changes, since_s)
        unhealthy = more_often(before, await kserve.happened("Unhealthy"))
        dead, unready = of_service(unhealthy, name, "Liveness"), of_service(unhealthy, name, "Readiness")
        again = [f"{container} (×{count})" for container, count in restarted.items()]
        lost = int(traffic.lost.sum())
        return [
            self.judge.measurement("busy.requests", len(traffic), "requests", len(traffic)),
            self._probed(
                "busy.liveness",
                "Liveness holds under full load: no container is restarted.",
                "liveness",
                not restarted and not dead,
                expected="no restart, and no failed liveness probe",
                observed=f"restarted: {', '.join(again) or 'none'}; liveness: {told(dead) or 'held'}",
                needed=liveness_s,
                lasted_s=lasts_s,
            ),
            self._probed(
                "busy.readiness",
                "Readiness does not flap under full load.",
                "readiness",
                not changed,
                expected="every pod stays ready",
                observed=(
                    f"{len(changed)} times not ready: {', '.join(sorted(set(changed)))}"
                    if changed
                    else "all stayed ready"
                )
                + (f"; failed probes: {told(unready)}" if unready else ""),
                needed=readiness_s,
                lasted_s=lasts_s,
            ),
            self.judge.check(
                "busy.answers",
                "Requests are answered under full load.",
                not lost,
                level=Level.SHOULD,
                expected=f"{len(traffic)} right answers",
                observed=f"{lost} of {len(traffic)} failed: {traffic.errors_text(traffic.lost)}"
                f"{traffic.inspected_text()}",
            ),
        ]

    def _probed(
        self,
        name: str,
        requirement: str,
        kind: str,
        held: bool,
        *,
        expected: str,
        observed: str,
        needed: float | None,
        lasted_s: float,
    ) -> CheckResult:
        """Fails by what was seen; passes where the probe was asked often enough to have failed. ``needed`` is how long
        the load had to last for that, None where no container has the probe."""
        if held and needed is None:
            return self.judge.skipped(name, requirement, f"no container has a {kind} probe; {observed}")
        if held and needed is not None and needed > lasted_s:
            reason = (
                f"the {kind} probe shows a failure within {needed:.0f} s at the latest, and the load lasted"
                f" {lasted_s:g} s: set duration to {needed:.0f}s"
            )
            return self.judge.undecided(name, requirement, expected=expected, observed=observed, reason=reason)
        return self.judge.check(
            name, requirement, held, source=f"Kubernetes: {kind} probes", expected=expected, observed=observed
        )

    # Draining

    async def _drain(self) -> list[Record]:
        """A pod is deleted under load: it is not ready from then on, and takes no request with it."""

        async def one() -> bool:
            return bool(await self.deployed.ready_pods())

        await self.deployed.until("a ready pod that could be drained", one, self.wanted.ready_within_s)
        pods = await self.deployed.ready_pods()
        if not pods:
            raise MeasurementError(f"{self.step}: no pod stays ready for long enough to be drained")
        victim = str(pods[0]["metadata"]["name"])
        knative = "serving.knative.dev/revision" in (pods[0]["metadata"].get("labels") or {})
        alone = "it was the only pod, and without Knative nothing holds requests until there is another: minReplicas: 2"
        async with self.deployed.kserve.watch_pods(self.deployed.name) as watch:

            async def change() -> None:
                await self.deployed.kserve.delete_pod(victim)
                gone = await watch.until(
                    lambda item: item.name == victim and item.type == "DELETED", self.wanted.ready_within_s
                )
                if gone is None:
                    raise MeasurementError(f"{self.step}: pod {victim} did not go when it was deleted")

                async def replaced() -> bool:
                    # Not as many as before: an autoscaler may want fewer by now.
                    return any(pod["metadata"]["name"] != victim for pod in await self.deployed.ready_pods())

                await self.deployed.until("another pod in its place", replaced, self.wanted.ready_within_s)

            traffic = await self._under_load("drain", change)
            leaving = [
                item for item in watch.changes if item.name == victim and item.pod["metadata"].get("deletionTimestamp")
            ]
        conditions = [
            entry
            for item in leaving
            for entry in (item.pod.get("status") or {}).get("conditions") or []
            if entry["type"] == "Ready"
        ]
        not_ready = any(entry["status"] == "False" for entry in conditions)
        return [
            self.judge.check(
                "drain.not_ready",
                "A pod that is being deleted says that it is not ready.",
                not_ready,
                level=Level.SHOULD,
                source="Kubernetes: pod termination",
                expected="condition Ready False before it is gone",
                observed="not ready" if not_ready else "it went as a ready pod",
            ),
            self._lossless(
                "drain",
                "A pod that is deleted takes no request with it.",
                traffic,
                why="" if knative or len(pods) > 1 else alone,
            ),
        ]

    # From the start of a process

    async def _newborn(self, watch: PodWatch, known: set[str]) -> list[Record]:
        """The pod that comes next is asked, past every route, from the moment that its process runs: the first yes of
        its readiness must be followed by an inference that succeeds."""
        requirement = (
            "A new pod's readiness says yes only when an inference succeeds, asked from the start of its process."
        )
        within_s = self.wanted.ready_within_s
        endpoint, kserve = self.deployed.endpoint, self.deployed.kserve
        first_case = self.encoded[0]
        body = json_request(first_case.inputs)  # ready before the pod is: it is asked at once
        born = await watch.until(
            lambda item: (
                item.name not in known
                and item.type != "DELETED"
                and (has_address(item.pod) or is_pod_running(item.pod))
            ),
            within_s,
        )
        if born is None:
            return [self.judge.unjudged("newborn", requirement, "no new pod was seen to run")]
        port = http_port(born.pod)
        model = f"/v2/models/{quote(endpoint.model, safe='')}"
        asked, deadline = 0, time.monotonic() + within_s
        while True:
            asked += 1
            try:
                await kserve.ask_pod(born.name, port, f"{model}/ready")
                break
            except (ClusterError, LookupError) as error:
                if time.monotonic() > deadline:
                    return [self.judge.unjudged("newborn", requirement, f"it never said yes: {error}")]
            await asyncio.sleep(POLL_S)
        first_s = time.monotonic() - born.at_s
        try:
            answer = await kserve.ask_pod(born.name, port, f"{model}/infer", body)
            failure = differs(first_case.expected, read_answer("rest", answer.encode()))
        except (ClusterError, LookupError, ServecertError) as error:
            failure = str(error)
        said = f"the first yes came after {format_duration(first_s)} and {asked} question{'s' if asked != 1 else ''}"
        measured = self.judge.measurement("newborn.first_yes", first_s, "s", 1)
        if asked == 1 and not failure:
            late = self.judge.undecided(
                "newborn",
                requirement,
                level=Level.SHOULD,
                expected="a no before the first yes",
                observed=said,
                reason="the model was there before it could be asked: when its readiness began to say yes was not seen",
            )
            return [measured, late]
        return [
            measured,
            self.judge.check(
                "newborn",
                requirement,
                not failure,
                source="Open Inference Protocol: model ready",
                expected="an answer to the inference right after the first yes",
                observed=f"{said}; then: {failure}" if failure else f"{said}; the inference succeeded",
            ),
        ]

    # Rolling over

    async def _roll_over(self) -> list[Record]:
        """The same version once more: new pods in place of the old ones, under load."""
        predictor = self.deployed.predictor
        annotations = {**(predictor.get("annotations") or {}), RESTARTED: f"{time.time():.0f}"}

        async def change() -> None:
            await self.deployed.replace({**predictor, "annotations": annotations})
            # In either deployment mode: the status of the new generation says that it is ready.
            await self.deployed.kserve.wait_ready(self.deployed.name, self.wanted.ready_within_s, self.status)

        polled = Polled()
        async with self.deployed.kserve.watch_pods(self.deployed.name) as watch:
            known = {item.name for item in watch.changes}
            polling = asyncio.create_task(self._poll(polled))
            newborn = asyncio.create_task(self._newborn(watch, known))
            try:
                traffic = await self._under_load("roll-over", change)
                born = await newborn
            finally:
                for task in (polling, newborn):
                    task.cancel()
                outcome = await asyncio.gather(polling, newborn, return_exceptions=True)
                await self.deployed.restore()
        await self.deployed.settled(self.wanted.ready_within_s)
        if isinstance(outcome[0], ServecertError):
            raise outcome[0]
        requirement = "When readiness says yes, an inference at that moment succeeds."
        records: list[Record] = [
            self._lossless("roll_over", "A rolling restart loses no request.", traffic),
            *born,
            self.judge.measurement("roll_over.polls", polled.ready + polled.not_ready, "polls", 1),
        ]
        if not polled.ready:
            return [*records, self.judge.unjudged("ready_means_ready", requirement, "readiness never said yes")]
        records.append(
            self.judge.check(
                "ready_means_ready",
                requirement,
                not polled.refused,
                source="Open Inference Protocol: model ready",
                expected=f"{polled.ready} inferences, each right after a yes",
                observed=f"{polled.refused} failed, the first: {polled.first}"
                if polled.refused
                else f"all {polled.ready} succeeded; {polled.not_ready} times it said no",
            )
        )
        return records

    async def _poll(self, polled: Polled) -> None:
        endpoint = self.deployed.endpoint
        case = self.encoded[0]
        async with self._rest() as rest:
            while True:
                try:
                    answer = await rest.request("GET", f"/v2/models/{endpoint.model}/ready")
                    said_yes = answer.status == 200
                except ServecertError:
                    said_yes = False
                if said_yes:
                    polled.ready += 1
                    try:
                        failure = differs(case.expected, await rest.infer(case.inputs))
                    except ServecertError as error:
                        failure = str(error)
                    if failure:
                        polled.refused += 1
                        polled.first = polled.first or failure[:300]
                else:
                    polled.not_ready += 1
                await asyncio.sleep(POLL_S)

    # Both

    async def _under_load(self, name: str, change: Callable[[], Awaitable[None]]) -> Loaded:
        longest_s = 2 * self.wanted.ready_within_s + self.wanted.duration_s + MARGIN_S
        plan = self._plan(name, duration_s=longest_s, rate_per_s=self.wanted.rate_per_s)
        async with background(self.deployed.endpoint, plan, self.encoded) as running:
            await pause(running, AFTER_S)
            began_s = time.monotonic()
            await change()
            ended_s = time.monotonic()
            await pause(running, max(AFTER_S, self.wanted.duration_s / 4))
            traffic = await running.finish()
        during = traffic.due_between(began_s, ended_s)
        return Loaded(traffic, int(during.sum()), int((during & traffic.inspected).sum()), ended_s - began_s)

    def _lossless(self, name: str, requirement: str, loaded: Loaded, why: str = "") -> Record:
        """``why`` is what to know where requests were lost."""
        traffic, lost = loaded.traffic, loaded.traffic.lost
        expected = f"{len(traffic)} right answers"
        observed = (
            f"{int(lost.sum())} of {len(traffic)} lost ({traffic.errors_text(lost)}), {loaded.during} of all were due"
            f" during the change{traffic.inspected_text()}{f'; {why}' if why and lost.any() else ''}"
        )
        if not loaded.inspected and not lost.any():
            reason = (
                f"no request was due in the {loaded.took_s:.1f} s of the change: raise the rate"
                if not loaded.during
                else "no answer of the time of the change was inspected, there being room for so many only: ask for"
                " smaller answers"
            )
            return self.judge.undecided(
                f"{name}.lossless", requirement, expected=expected, observed=observed, reason=reason
            )
        return self.judge.check(f"{name}.lossless", requirement, not lost.any(), expected=expected, observed=observed)


async def probes(deployed: Deployed, wanted: Probes, step: str, status: Callable[[str], None]) -> AsyncIterator[Record]:
    """Raises MeasurementError where nothing could be watched, DeployError where a new pod does not come up."""
    async for record in _Suite(deployed, wanted, step, status).run():
        yield record
