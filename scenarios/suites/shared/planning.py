"""The plan of a stage of load, from what a scenario says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.model.steps import Traffic
from scenarios.suites.shared.live import Live
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.suite import Task


def plan_of(step: Traffic, task: Task) -> Plan:
    """What all steps of load say alike; the rate, the clients and the warm-up are left to the suite."""
    return Plan(
        name=task.name,
        duration_s=step.duration or 0.0,
        arrivals=step.arrivals,
        burstiness=step.burstiness,
        protocol=step.protocol,
        timeout_s=step.timeout,
        connections=step.connections,
        processes=step.processes,
        workers=step.workers or "",
        seed=task.seed,
        objectives=step.objectives(),
    )


async def watched(records: AsyncIterator[Record], task: Task, live: Live) -> AsyncIterator[Record]:
    """The same records, while the service's pods are counted for whoever watches."""
    async with live.counting_pods(task.target.deployed if task.observer.live else None):
        async for record in records:
            yield record
