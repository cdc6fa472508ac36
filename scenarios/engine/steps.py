"""Carries out one step of a scenario: asks its suite and writes down what it learns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace

from harness.base.errors import UsageError
from harness.load.job import Protocol
from harness.results.observer import Observer
from harness.results.records import Measurement, Record, TimelineEvent
from harness.results.runstore import RunStore
from harness.target.endpoint import Endpoint
from scenarios.engine.live import Live
from scenarios.model.scenario import (
    AutoscalingStep,
    ByCounter,
    ByHeader,
    CanaryStep,
    CapacityStep,
    ColdStartStep,
    CompareStep,
    ConformanceStep,
    LoadStep,
    ProbesStep,
    Published,
    Step,
)
from scenarios.suites.autoscaling import Course, autoscaling
from scenarios.suites.canary import Rollout, canary
from scenarios.suites.cold_start import ColdStart, cold_start
from scenarios.suites.compare import Comparing, Contender, compare
from scenarios.suites.parity.suite import parity
from scenarios.suites.probes import Probes, probes
from scenarios.suites.shared.deployed import Deployed, Turn
from scenarios.suites.shared.search import Search, capacity
from scenarios.suites.shared.stage import Plan, Within, load


@dataclass(frozen=True)
class Target:
    """What a step is carried out on. ``deployed`` is None for a server that is there without a cluster."""

    endpoint: Endpoint | None
    """None for a service that is deployed when it is its turn."""
    deployed: Deployed | None = None
    within: Within | None = None
    """Starts load generators in the cluster, where that can be."""
    others: Mapping[str, Deployed] = field(default_factory=dict)
    """All services of the scenario that are there, by name."""
    turns: Mapping[str, Turn] = field(default_factory=dict)
    """Those whose turn comes in a comparison."""

    @property
    def there(self) -> Endpoint:
        if self.endpoint is None:
            raise UsageError("this service is only there when it is its turn in a comparison")
        return self.endpoint

    def on_cluster(self, suite: str) -> Deployed:
        """Raises UsageError where there is no cluster."""
        if self.deployed is None:
            raise UsageError(f"{suite} changes a service on a cluster: run it as a step of a scenario")
        return self.deployed


def load_plan(step: LoadStep | CapacityStep | AutoscalingStep, name: str, seed: int) -> Plan:
    """A capacity step's plan is one of its trials, without a rate. An autoscaling step's has no warm-up: how a service
    wakes up belongs to what is measured."""
    plan = Plan(
        name=name,
        duration_s=step.duration or 0.0,
        arrivals=step.arrivals,
        burstiness=step.burstiness,
        warmup_s=0.0 if isinstance(step, AutoscalingStep) else _warm_up_s(step),
        protocol=step.protocol,
        timeout_s=step.timeout,
        connections=step.connections,
        processes=step.processes,
        workers=step.workers or "",
        seed=seed,
        objectives=step.objectives(),
    )
    if isinstance(step, CapacityStep):
        return plan
    if isinstance(step, AutoscalingStep):
        return replace(plan, rate_per_s=step.rate, segments=tuple(step.segments()), shape=step.shape or "")
    return replace(
        plan,
        rate_per_s=step.rate,
        segments=tuple(step.segments()),
        shape=step.shape or "",
        trace=step.trace,
        concurrency=1 if step.concurrency == "max" else step.concurrency,
        most_throughput=step.concurrency == "max",
        think_s=step.think,
    )


def _warm_up_s(step: LoadStep | CapacityStep) -> float | None:
    return None if step.warmup == "steady" else float(step.warmup)


def records_of(
    step: Step,
    name: str,
    target: Target,
    seed: int,
    samples_name: Callable[[str], str],
    save: Callable[[str, str], str],
    observer: Observer,
) -> AsyncIterator[Record]:
    if isinstance(step, CompareStep):
        return _compare(step, name, target, seed, observer)
    endpoint = target.there
    if step.suite == "conformance":
        return _conformance(step, name, endpoint, seed, save, observer)
    if step.suite == "parity":
        return parity(endpoint, step.chosen(), step=name)
    if isinstance(step, CanaryStep | ColdStartStep | ProbesStep):
        return _on_cluster(step, name, target.on_cluster(step.suite), seed, observer)
    return _loaded(step, name, target, seed, samples_name, observer)


async def _loaded(
    step: LoadStep | CapacityStep | AutoscalingStep,
    name: str,
    target: Target,
    seed: int,
    samples_name: Callable[[str], str],
    observer: Observer,
) -> AsyncIterator[Record]:
    plan = load_plan(step, name, seed)
    total_s = plan.lead_in_s + (plan.length_s if step.suite != "capacity" else plan.duration_s)
    live = Live(name, total_s, observer.status)
    endpoint, show = target.there, live.show
    stage: AsyncIterator[Record]
    if isinstance(step, AutoscalingStep):
        course = Course(plan, step.scale_out_within, step.back_within, step.zero_within, step.overshoot)
        stage = autoscaling(target.on_cluster(step.suite), course, samples_name(name), show)
    elif isinstance(step, CapacityStep):
        search = Search(plan, step.start, step.most, step.tolerance, step.repeats)
        stage = capacity(endpoint, search, samples_name, show, observer.note, target.within)
    else:
        stage = load(endpoint, plan, samples_name(name), show, observer.note, target.within)
        if step.published is not None:
            stage = _beside(step.published, name, endpoint, stage)
    async with live.counting_pods(target.deployed if observer.live else None):
        async for record in stage:
            yield record


def _compare(step: CompareStep, name: str, target: Target, seed: int, observer: Observer) -> AsyncIterator[Record]:
    """Raises UsageError for a variant that is not there."""
    plan = Plan(
        name=name,
        duration_s=step.duration or 0.0,
        rate_per_s=step.rate,
        concurrency=step.concurrency,
        arrivals=step.arrivals,
        burstiness=step.burstiness,
        warmup_s=step.warmup,
        protocol=step.protocol,
        timeout_s=step.timeout,
        connections=step.connections,
        processes=step.processes,
        seed=seed,
        objectives=step.objectives(),
    )

    def contender(label: str, service: str, protocol: Protocol, price: float | None) -> Contender:
        mine = replace(plan, protocol=protocol)
        if service in target.turns:
            return Contender(label, None, mine, None, target.turns[service], price)
        if service == step.service:
            return Contender(label, target.there, mine, target.deployed, None, price)
        if service not in target.others:
            raise UsageError(f"{name}: service {service} is not there to be compared with")
        deployed = target.others[service]
        return Contender(label, deployed.endpoint, mine, deployed, None, price)

    contenders = [
        contender(_label(step.service, step.protocol, step), step.service, step.protocol, step.price_per_hour)
    ]
    for item in step.against:
        service, protocol = item.service or step.service, item.protocol or step.protocol
        label = item.name or _label(service, protocol, step)
        contenders.append(contender(label, service, protocol, item.price_per_hour or step.price_per_hour))
    wanted = Comparing(
        rounds=step.rounds,
        metrics=tuple(step.metrics),
        margin=step.margin,
        confidence=step.confidence,
        fail_on=tuple(step.fail_on),
        seed=seed,
        cpu=step.cpu,
        memory=step.memory,
        conformance=tuple(step.conformance),
        tolerance=step.tolerance,
    )
    return compare(contenders, wanted, name, observer.status, observer.note)


def _label(service: str, protocol: str, step: CompareStep) -> str:
    """With the protocol, where variants differ by it."""
    protocols = {step.protocol, *(item.protocol for item in step.against if item.protocol)}
    return f"{service}-{protocol}" if len(protocols) > 1 else service


async def _beside(
    published: Published, name: str, endpoint: Endpoint, stage: AsyncIterator[Record]
) -> AsyncIterator[Record]:
    """The stage's records, and what was published for one like it."""
    async for record in stage:
        yield record
    for figure, value in published.latencies_s().items():
        yield Measurement(f"published.{figure}", value, "s", 1, endpoint.service, name)
    if published.success is not None:
        yield Measurement("published.success", published.success, "share", 1, endpoint.service, name)
    yield TimelineEvent("servecert", name, "published figures", published.source)


def _on_cluster(
    step: CanaryStep | ColdStartStep | ProbesStep, name: str, deployed: Deployed, seed: int, observer: Observer
) -> AsyncIterator[Record]:
    if isinstance(step, CanaryStep):
        rollout = Rollout(
            candidates=tuple(step.candidates),
            percents=tuple(step.percents),
            rate_per_s=step.rate,
            protocol=step.protocol,
            timeout_s=step.timeout,
            resolution=step.resolution,
            settle_s=step.settle,
            ready_within_s=step.ready_within,
            rollback_within_s=step.rollback_within,
            errors=step.guards.errors,
            latency_ratio=step.guards.latency_ratio,
            parity=step.guards.parity,
            broken=step.broken,
            header=step.told_apart.header if isinstance(step.told_apart, ByHeader) else "",
            counter=step.told_apart.counter if isinstance(step.told_apart, ByCounter) else None,
            seed=seed,
        )
        return canary(deployed, rollout, name, observer.note)
    if isinstance(step, ColdStartStep):
        wanted = ColdStart(
            step.trials,
            step.requests,
            step.warm,
            step.within,
            step.zero_within,
            {str(phase): limit for phase, limit in step.budget.items()},
        )
        return cold_start(deployed, wanted, name, observer.status)
    told = Probes(step.rate, step.busy, step.duration, step.protocol, step.timeout, step.ready_within, seed)
    return probes(deployed, told, name, observer.status)


async def _conformance(
    step: ConformanceStep, name: str, endpoint: Endpoint, seed: int, save: Callable[[str, str], str], observer: Observer
) -> AsyncIterator[Record]:
    from scenarios.suites.conformance import conformance

    async for result in conformance(replace(endpoint, metrics_path=step.metrics), step.profiles, step=name):
        yield result
    if step.fuzz:
        from scenarios.suites.conformance.fuzz import fuzz

        async for found in fuzz(endpoint, step.fuzz, seed, save, observer.status, step=name):
            yield found


async def run_step(step: Step, name: str, target: Target, seed: int, store: RunStore, observer: Observer) -> int:
    """How many records it gave. Whatever the suite raises goes through; what came before is written down."""
    started = time.monotonic()
    count = 0

    def samples_name(stage: str) -> str:
        return store.samples_name(target.there.service, stage)

    def save(file: str, text: str) -> str:
        return store.save(f"{name}-{file}", text)

    async for record in records_of(step, name, target, seed, samples_name, save, observer):
        store.add(record)
        observer.record(record)
        count += 1
    observer.step_done(name, time.monotonic() - started)
    return count
