"""Carries out one step of a scenario: asks its suite and writes down what it learns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from harness.endpoint import Endpoint
from harness.load.runner import Progress
from harness.observer import Observer
from harness.records import Record
from harness.runstore import RunStore
from harness.scenario import CapacityStep, ConformanceStep, LoadStep, ParityStep
from scenarios.suites.capacity import Search, capacity
from scenarios.suites.conformance import conformance
from scenarios.suites.load import Plan, load
from scenarios.suites.parity import parity

AnyStep = ConformanceStep | ParityStep | LoadStep | CapacityStep


def load_plan(step: LoadStep | CapacityStep, name: str, seed: int) -> Plan:
    """A capacity step's plan is one of its trials, without a rate."""
    plan = Plan(
        name=name,
        duration_s=step.duration or 0.0,
        arrivals=step.arrivals,
        burstiness=step.burstiness,
        warmup_s=None if step.warmup == "steady" else float(step.warmup),
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


def records_of(
    step: AnyStep,
    name: str,
    endpoint: Endpoint,
    seed: int,
    samples_name: Callable[[str], str],
    save: Callable[[str, str], str],
    observer: Observer,
) -> AsyncIterator[Record]:
    if step.suite == "conformance":
        return _conformance(step, name, endpoint, seed, save, observer)
    if step.suite == "parity":
        return parity(endpoint, step.chosen(), step=name)
    plan = load_plan(step, name, seed)
    total_s = plan.lead_in_s + (plan.length_s if step.suite == "load" else plan.duration_s)

    def show(progress: Progress) -> None:
        observer.status(
            f"{name}: {min(progress.elapsed_s, total_s):.0f} of {total_s:.0f} s, {progress.done} done,"
            f" {progress.errors} errors, {progress.in_flight} in flight"
        )

    if step.suite == "load":
        return load(endpoint, plan, samples_name(name), show, observer.note)
    search = Search(plan, step.start, step.most, step.tolerance, step.repeats)
    return capacity(endpoint, search, samples_name, show, observer.note)


async def _conformance(
    step: ConformanceStep, name: str, endpoint: Endpoint, seed: int, save: Callable[[str, str], str], observer: Observer
) -> AsyncIterator[Record]:
    async for result in conformance(replace(endpoint, metrics_path=step.metrics), step.profiles, step=name):
        yield result
    if step.fuzz:
        from scenarios.suites.conformance.fuzz import fuzz

        async for found in fuzz(endpoint, step.fuzz, seed, save, observer.status, step=name):
            yield found


async def run_step(step: AnyStep, name: str, endpoint: Endpoint, seed: int, store: RunStore, observer: Observer) -> int:
    """How many records it gave. Whatever the suite raises goes through; what came before is written down."""
    started = time.monotonic()
    count = 0

    def samples_name(stage: str) -> str:
        return store.samples_name(endpoint.service, stage)

    def save(file: str, text: str) -> str:
        return store.save(f"{name}-{file}", text)

    async for record in records_of(step, name, endpoint, seed, samples_name, save, observer):
        store.add(record)
        observer.record(record)
        count += 1
    observer.step_done(name, time.monotonic() - started)
    return count
