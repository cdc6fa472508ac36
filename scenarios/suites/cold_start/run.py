"""Carries out a cold-start step."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.cold_start.model import ColdStartStep
from scenarios.suites.cold_start.suite import ColdStart, cold_start
from scenarios.suites.shared.suite import Task


def run(step: ColdStartStep, task: Task) -> AsyncIterator[Record]:
    wanted = ColdStart(
        step.trials,
        step.requests,
        step.warm,
        step.within,
        step.zero_within,
        {str(phase): limit for phase, limit in step.budget.items()},
    )
    return cold_start(task.target.on_cluster(step.suite), wanted, task.name, task.observer.status)
