"""Load: one stage at a rate (open loop) or a concurrency (closed loop), judged against objectives."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from harness.base.errors import MeasurementError, UsageError
from harness.load.distributed import Address
from harness.load.distributed.fleet import Place, open_fleet
from harness.load.job import Job
from harness.load.runner import Generators, LocalGenerators, Progress, WorkerError
from harness.results.records import CheckResult, LoadResult, SampleBatch
from harness.target.endpoint import Endpoint
from scenarios.suites.shared.stage.beforehand import brief, encode
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.requests import Encoded, build_job
from scenarios.suites.shared.stage.results import (
    LATE,
    STEADY_WINDOWS,
    StageEnd,
    end_of_stage,
    is_steady,
    judge,
)

__all__ = ["Plan", "StageEnd", "Within", "load", "open_generators", "run_plan"]
STEADY_PIECES = 10
SEARCH_PIECE_S = 2.0
SEARCH_GAIN = 0.03
MOST_CLIENTS = 4096


class Within(Protocol):
    """Starts generators in the cluster of the service."""

    def open(self, workers: int) -> contextlib.AbstractAsyncContextManager[Place]: ...

    def beside_the_model(self) -> list[str]:
        """Nodes that a generator shares with a model."""
        ...


@contextlib.asynccontextmanager
async def open_generators(
    plan: Plan, note: Callable[[str], None], within: Within | None = None
) -> AsyncIterator[Generators]:
    """Whatever sends the load, for any number of stages; ``within`` starts it in the cluster. Raises MeasurementError
    when it cannot be had."""
    if not plan.workers:
        yield LocalGenerators(plan.processes)
        return
    try:
        address = Address.parse(plan.workers)
    except ValueError as error:
        raise UsageError(f"workers: {error}") from error
    async with contextlib.AsyncExitStack() as stack:
        place = None
        if address.in_cluster:
            if within is None:
                raise UsageError(f"workers {plan.workers}: generators in a cluster need a scenario on a real cluster")
            place = await stack.enter_async_context(within.open(address.expect))
            if shared := await asyncio.to_thread(within.beside_the_model):
                note(f"generators and model share {', '.join(shared)}: what is measured is less than the model can do")
        try:
            fleet = await stack.enter_async_context(open_fleet(address, note, place))
        except WorkerError as error:
            raise MeasurementError(f"{plan.name}: {error}") from error
        yield fleet


async def load(
    endpoint: Endpoint,
    plan: Plan,
    samples_name: str,
    progress: Callable[[Progress], None],
    note: Callable[[str], None] = lambda text: None,
    within: Within | None = None,
) -> AsyncIterator[LoadResult | SampleBatch | CheckResult]:
    """One stage, by generators of its own; raises as ``run_plan`` does."""
    async with open_generators(plan, note, within) as generators:
        async for record in run_plan(endpoint, plan, samples_name, progress, generators, note):
            if not isinstance(record, StageEnd):
                yield record


async def run_plan(
    endpoint: Endpoint,
    plan: Plan,
    samples_name: str,
    progress: Callable[[Progress], None],
    generators: Generators,
    note: Callable[[str], None],
    encoded: Sequence[Encoded] | None = None,
    again: bool = True,
) -> AsyncIterator[LoadResult | SampleBatch | StageEnd | CheckResult]:
    """``encoded`` are the requests of a stage before; None looks at the service first. ``again``: a stage that this
    machine has disturbed is taken a second time, and both are said.

    Raises UnreachableError or NotServedError where the model does not answer beforehand, MeasurementError when nothing
    could be measured.
    """
    due = plan.due_ns() if plan.open_loop else None
    if encoded is None:
        encoded = await encode(endpoint, plan, brief(plan))
    job = build_job(endpoint, plan, encoded)
    bodies = [item.body for item in encoded]
    started = time.monotonic()
    try:
        if plan.most_throughput:
            clients = await _most_throughput(plan, job, bodies, progress, generators, note)
            plan, job = replace(plan, concurrency=clients), replace(job, concurrency=clients)
        warmed_s = await _warm_up(plan, job, bodies, progress, generators) if plan.warmup_s is None else 0.0
        taken_again = ""
        while True:
            stage = await generators.run(job, bodies, due, progress)
            end = end_of_stage(endpoint, plan, stage, encoded, job.cycle, samples_name, warmed_s, generators.count)
            late = plan.open_loop and end.result.invalid_reason.startswith(LATE)
            if taken_again or not again or not late:
                break
            taken_again = end.result.invalid_reason
            note(f"{plan.name} is taken again, once: {taken_again}")
    except WorkerError as error:
        raise MeasurementError(f"{plan.name}: {error}") from error
    end = replace(end, result=replace(end.result, taken_again=taken_again))
    yield end.batch
    yield end.result
    yield end
    elapsed = round(time.monotonic() - started, 3)
    for check in judge(endpoint, end, encoded, job.cycle, elapsed):
        yield check


async def _warm_up(
    plan: Plan, job: Job, bodies: Sequence[bytes], progress: Callable[[Progress], None], generators: Generators
) -> float | None:
    """Sends what the stage begins with, three seconds at a time, until they look alike; the time it took, or None when
    they never did."""
    piece_s = float(STEADY_WINDOWS)
    for count in range(1, STEADY_PIECES + 1):
        due = plan.opening_ns(piece_s) if plan.open_loop else None
        if due is not None and due.size == 0:
            return None  # a request every few seconds: nothing that could look alike
        piece = replace(job, duration_s=0.0 if plan.open_loop else piece_s)
        columns = (await generators.run(piece, bodies, due, progress)).columns
        if is_steady(columns["due_ns"], (columns["done_ns"] - columns["due_ns"]) / 1e9):
            return count * piece_s
    return None


async def _most_throughput(
    plan: Plan,
    job: Job,
    bodies: Sequence[bytes],
    progress: Callable[[Progress], None],
    generators: Generators,
    note: Callable[[str], None],
) -> int:
    """Doubles the clients until two doublings in a row brought nothing more; the fewest that reach the highest
    throughput within 3 %. Requests that failed do not count."""
    rates: dict[int, float] = {}
    clients = max(job.concurrency or 1, generators.count)
    while clients <= MOST_CLIENTS:
        piece = replace(job, concurrency=clients, duration_s=SEARCH_PIECE_S)
        columns = (await generators.run(piece, bodies, None, progress)).columns
        good = columns["error"] == 0
        last_ns = columns["done_ns"].max(initial=0)
        rates[clients] = float(good.sum()) / max(last_ns / 1e9, SEARCH_PIECE_S)
        note(f"{clients:6d} clients: {rates[clients]:.1f} answers/s")
        earlier = [rate for count, rate in rates.items() if count * 4 <= clients]
        if not rates[clients] or (earlier and max(rates.values()) <= max(earlier) * (1 + SEARCH_GAIN)):
            break
        clients *= 2
    best = max(rates.values())
    if not best:
        raise MeasurementError(f"{plan.name}: no request succeeded, so there is no throughput to search")
    return min(count for count, rate in rates.items() if rate * (1 + SEARCH_GAIN) >= best)
