"""Phases: each is a stage of load of its own, with what it changes inside."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.base.errors import MeasurementError
from harness.base.protocols import Protocol
from harness.kubernetes.kserve import is_pod_ready
from harness.results.stats import draws_needed
from scenarios.model.counters import Counter
from scenarios.model.services import Variant
from scenarios.suites.canary.errors import Count, Exposed
from scenarios.suites.canary.guards import Limits
from scenarios.suites.canary.latency import Bools
from scenarios.suites.canary.modes import STATUS_S
from scenarios.suites.shared.counters import read
from scenarios.suites.shared.deployed import Deployed, revision_of
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.background import Traffic, background, pause
from scenarios.suites.shared.stage.beforehand import encode
from scenarios.suites.shared.stage.requests import Encoded

ALPHA, POWER = 1e-4, 0.99
"""Of the test of a split: how often a right one is called wrong, and one that is off by the resolution is found."""
LEAST_S = 3.0
"""Of the part of a phase that counts."""
MARGIN_S = 60.0
"""Seconds of load added to the time limit of the change it runs beside."""
WATCH_S = 1.0
"""Between two looks at the pods."""
PODS_WITHIN_S = 30.0
"""How much longer a phase is made for the pods to become as many as the load needs."""
Object = dict[str, Any]
Watched = list[tuple[float, list[Object]]]
"""When, and which pods there were."""


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
    latency_ratio: float | None
    parity: bool
    broken: bool
    header: str
    """The response header that says which version answered; empty takes the model version in the answers."""
    counter: Counter | None
    """What pods count their requests by, where nothing in an answer says whose it is."""
    seed: int

    def requests(self, percent: int) -> int:
        """Of the split alone."""
        return draws_needed(percent / 100, self.resolution, ALPHA, POWER)

    @property
    def limits(self) -> Limits:
        return Limits(self.errors, self.latency_ratio, len(self.percents))


@dataclass
class Phase:
    """One stage of load. ``changed_s`` is when the change was asked for, ``counts_s`` from when on requests count;
    times of ``time.monotonic``."""

    name: str
    traffic: Traffic
    changed_s: float
    counts_s: float
    pods: list[Object] = field(default_factory=list)
    """At its end."""
    watched: Watched = field(default_factory=list)
    """The pods that there were, from when requests counted to the end."""
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
    def counted(self) -> Bools:
        return self.traffic.due_s >= self.counts_s

    @property
    def counts(self) -> Count:
        """Of the requests that count; pods count all of the stage."""
        if self.by_revision is not None:
            return Count(int(self.traffic.failed.sum()), len(self.traffic))
        return Count(int((self.traffic.failed & self.counted).sum()), int(self.counted.sum()))

    @property
    def changing(self) -> Count:
        """Of those before they count: while the change was made, and right before it."""
        if self.before is not None:
            return Count(int(self.before.failed.sum()), len(self.before))
        return Count(int((self.traffic.failed & ~self.counted).sum()), int((~self.counted).sum()))

    def exposed(self, candidate: str, stable: str) -> Exposed:
        """A failed answer counts as a version's where it has the header that names one."""

        def of(version: str) -> Count:
            if self.by_revision is not None:
                return Count(0, self.by_revision.get(version, 0))
            ours = self.counted & (self.traffic.version == version)
            return Count(int((ours & self.traffic.failed).sum()), int(ours.sum()))

        return Exposed(self.counts, of(candidate) if candidate else Count(0, 0), of(stable))

    def versions(self) -> Tally[str]:
        """Of the answers that count, failed ones with a header included: which versions, or where pods count them,
        which revisions."""
        if self.by_revision is not None:
            return Tally({name: count for name, count in self.by_revision.items() if count})
        return Tally(version for version in self.traffic.version[self.counted].tolist() if version)


class Stages:
    def __init__(self, deployed: Deployed, rollout: Rollout, step: str) -> None:
        self.deployed = deployed
        self.rollout = rollout
        self.step = step
        self.stages = 0
        self.encoded: Sequence[Encoded] | None = None

    async def phase(
        self,
        name: str,
        seconds: float,
        change: Callable[[], Awaitable[None]] | None = None,
        until: Callable[[Watched], float] | None = None,
    ) -> Phase:
        """Load; the change, which returns when the status says that it is done; and load that counts, for ``seconds``,
        or until the moment that ``until`` says of the pods that there have been, at most ``PODS_WITHIN_S`` longer than
        ``seconds``. Where pods count the requests, a stage of its own follows, with nothing but load in it."""
        if self.rollout.counter is None:
            return await self._stage(name, seconds, change, until)
        if self.encoded is None:
            self.encoded = await encode(self.deployed.endpoint, self._plan(name, 1.0))
        found = await self._stage(name, 0.0, change, None)
        before = await read(self.deployed, self.rollout.counter)
        counting = await self._stage(f"{name}-count", seconds, None, until)
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

    async def _stage(
        self,
        name: str,
        seconds: float,
        change: Callable[[], Awaitable[None]] | None,
        until: Callable[[Watched], float] | None,
    ) -> Phase:
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
            watched: Watched = []
            if until is None:
                await pause(running, max(seconds, LEAST_S))
            else:
                last_s = counts_s + max(seconds, LEAST_S) + PODS_WITHIN_S
                while True:
                    watched.append((time.monotonic(), await self.deployed.pods()))
                    left_s = min(max(until(watched), counts_s + LEAST_S), last_s) - time.monotonic()
                    if left_s <= 0:
                        break
                    await pause(running, min(left_s, WATCH_S))
            pods = watched[-1][1] if watched else await self.deployed.pods()
            traffic = await running.finish()
        found = Phase(name, traffic, changed_s, counts_s, pods, watched)
        if not found.counted.any():
            raise MeasurementError(f"{self.step}: no request of phase {name} counts; raise the rate")
        return found


def pods_of(pods: list[Object], revision: str) -> int:
    """How many get requests."""
    return sum(
        revision_of(pod) == revision and is_pod_ready(pod) and not pod["metadata"].get("deletionTimestamp")
        for pod in pods
    )
