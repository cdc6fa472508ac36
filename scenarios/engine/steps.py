"""Carries out one step of a scenario: asks its suite and writes down what it learns."""

from __future__ import annotations

import time

from harness.results.observer import Observer
from harness.results.runstore import RunStore
from scenarios.model.steps import Step
from scenarios.suites import suites
from scenarios.suites.shared.suite import Target, Task


async def run_step(step: Step, name: str, target: Target, seed: int, store: RunStore, observer: Observer) -> int:
    """How many records it gave. Whatever the suite raises goes through; what came before is written down."""
    started = time.monotonic()
    count = 0

    def samples_name(stage: str) -> str:
        return store.samples_name(target.there.service, stage)

    def save(file: str, text: str) -> str:
        return store.save(f"{name}-{file}", text)

    task = Task(name, target, seed, observer, samples_name, save)
    async for record in suites()[step.suite].run(step, task):
        store.add(record)
        observer.record(record)
        count += 1
    observer.step_done(name, time.monotonic() - started)
    return count
