"""Carries out a load step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from harness.results.records import Measurement, Record, TimelineEvent
from scenarios.suites.load.model import LoadStep, Published
from scenarios.suites.shared.live import Live
from scenarios.suites.shared.planning import plan_of, watched
from scenarios.suites.shared.stage import load
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.suite import Task


def _plan(step: LoadStep, task: Task) -> Plan:
    return replace(
        plan_of(step, task),
        warmup_s=None if step.warmup == "steady" else float(step.warmup),
        rate_per_s=step.rate,
        segments=tuple(step.segments()),
        shape=step.shape or "",
        trace=step.trace,
        concurrency=1 if step.concurrency == "max" else step.concurrency,
        most_throughput=step.concurrency == "max",
        think_s=step.think,
    )


def run(step: LoadStep, task: Task) -> AsyncIterator[Record]:
    plan = _plan(step, task)
    live = Live(task.name, plan.lead_in_s + plan.length_s, task.observer.status)
    target, samples = task.target, task.samples_name(task.name)
    records: AsyncIterator[Record] = load(target.there, plan, samples, live.show, task.observer.note, target.within)
    if step.published is not None:
        records = _beside(step.published, task, records)
    return watched(records, task, live)


async def _beside(published: Published, task: Task, stage: AsyncIterator[Record]) -> AsyncIterator[Record]:
    """The stage's records, and what was published for one like it."""
    async for record in stage:
        yield record
    service = task.target.there.service
    for figure, value in published.latencies_s().items():
        yield Measurement(f"published.{figure}", value, "s", 1, service, task.name)
    if published.success is not None:
        yield Measurement("published.success", published.success, "share", 1, service, task.name)
    yield TimelineEvent("servecert", task.name, "published figures", published.source)
