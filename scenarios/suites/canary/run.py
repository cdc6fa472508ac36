"""Carries out a canary step."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.canary.model import ByCounter, ByHeader, CanaryStep
from scenarios.suites.canary.phases import Rollout
from scenarios.suites.canary.rollout import canary
from scenarios.suites.shared.suite import Task


def run(step: CanaryStep, task: Task) -> AsyncIterator[Record]:
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
        seed=task.seed,
    )
    return canary(task.target.on_cluster(step.suite), rollout, task.name, task.observer.note)
