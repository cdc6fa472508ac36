"""Carries out one step of a scenario: asks its suite and writes down what it learns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from harness.endpoint import Endpoint
from harness.load.runner import Progress
from harness.observer import Observer
from harness.records import Record
from harness.runstore import RunStore
from harness.scenario import ConformanceStep, LoadStep, ParityStep
from scenarios.suites.conformance import conformance
from scenarios.suites.load import Plan, load
from scenarios.suites.parity import parity

AnyStep = ConformanceStep | ParityStep | LoadStep


def load_plan(step: LoadStep, name: str, seed: int) -> Plan:
    return Plan(
        name=name,
        duration_s=step.duration,
        rate_per_s=step.rate,
        concurrency=step.concurrency,
        arrivals=step.arrivals,
        warmup_s=step.warmup,
        protocol=step.protocol,
        timeout_s=step.timeout,
        connections=step.connections,
        seed=seed,
        objectives=step.objectives(),
    )


def records_of(
    step: AnyStep, name: str, endpoint: Endpoint, seed: int, samples_name: str, observer: Observer
) -> AsyncIterator[Record]:
    if step.suite == "conformance":
        return conformance(endpoint, step.profiles, step=name)
    if step.suite == "parity":
        return parity(endpoint, step.chosen(), step=name)
    plan = load_plan(step, name, seed)
    total_s = plan.warmup_s + plan.duration_s

    def show(progress: Progress) -> None:
        observer.status(
            f"{name}: {min(progress.elapsed_s, total_s):.0f} of {total_s:.0f} s, {progress.done} done,"
            f" {progress.errors} errors, {progress.in_flight} in flight"
        )

    return load(endpoint, plan, samples_name, show)


async def run_step(step: AnyStep, name: str, endpoint: Endpoint, seed: int, store: RunStore, observer: Observer) -> int:
    """How many records it gave. Whatever the suite raises goes through; what came before is written down."""
    started = time.monotonic()
    count = 0
    samples_name = store.samples_name(endpoint.service, name)
    async for record in records_of(step, name, endpoint, seed, samples_name, observer):
        store.add(record)
        observer.record(record)
        count += 1
    observer.step_done(name, time.monotonic() - started)
    return count
