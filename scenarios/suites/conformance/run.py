"""Carries out a conformance step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from harness.results.records import Record
from scenarios.suites.conformance.model import ConformanceStep
from scenarios.suites.conformance.suite import conformance
from scenarios.suites.shared.suite import Task


async def run(step: ConformanceStep, task: Task) -> AsyncIterator[Record]:
    endpoint = task.target.there
    async for result in conformance(replace(endpoint, metrics_path=step.metrics), step.profiles, step=task.name):
        yield result
    if step.fuzz:
        from scenarios.suites.conformance.fuzz import fuzz

        async for found in fuzz(endpoint, step.fuzz, task.seed, task.save, task.observer.status, step=task.name):
            yield found
