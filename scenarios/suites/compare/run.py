"""Carries out a comparison."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from harness.base.errors import UsageError
from harness.base.protocols import Protocol
from harness.results.records import Record
from scenarios.suites.compare.contenders import Comparing, Contender
from scenarios.suites.compare.model import CompareStep
from scenarios.suites.compare.suite import compare
from scenarios.suites.shared.planning import plan_of
from scenarios.suites.shared.suite import Task


def run(step: CompareStep, task: Task) -> AsyncIterator[Record]:
    """Raises UsageError for a variant that is not there."""
    wanted = Comparing(
        rounds=step.rounds,
        metrics=tuple(step.metrics),
        margin=step.margin,
        confidence=step.confidence,
        fail_on=tuple(step.fail_on),
        seed=task.seed,
        cpu=step.cpu,
        memory=step.memory,
        conformance=tuple(step.conformance),
        tolerance=step.tolerance,
    )
    return compare(contenders(step, task), wanted, task.name, task.observer.status, task.observer.note)


def contenders(step: CompareStep, task: Task) -> list[Contender]:
    """The baseline, and what it is compared with. Raises UsageError for one that is not there."""
    target = task.target
    plan = replace(plan_of(step, task), rate_per_s=step.rate, concurrency=step.concurrency, warmup_s=step.warmup)

    def contender(label: str, service: str, protocol: Protocol, price: float | None) -> Contender:
        mine = replace(plan, protocol=protocol)
        if service in target.turns:
            return Contender(label, None, mine, None, target.turns[service], price)
        if service == step.service:
            return Contender(label, target.there, mine, target.deployed, None, price)
        if service not in target.others:
            raise UsageError(f"{task.name}: service {service} is not there to be compared with")
        deployed = target.others[service]
        return Contender(label, deployed.endpoint, mine, deployed, None, price)

    baseline = contender(_label(step.service, step.protocol, step), step.service, step.protocol, step.price_per_hour)
    found = [baseline]
    for item in step.against:
        service, protocol = item.service or step.service, item.protocol or step.protocol
        label = item.name or _label(service, protocol, step)
        found.append(contender(label, service, protocol, item.price_per_hour or step.price_per_hour))
    return found


def _label(service: str, protocol: str, step: CompareStep) -> str:
    """With the protocol, where variants differ by it."""
    protocols = {step.protocol, *(item.protocol for item in step.against if item.protocol)}
    return f"{service}-{protocol}" if len(protocols) > 1 else service
