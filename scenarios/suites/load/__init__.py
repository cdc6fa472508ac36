"""Load: one stage at a rate (open loop) or a concurrency (closed loop), judged against objectives."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import numpy as np

from harness.endpoint import Endpoint
from harness.errors import MeasurementError
from harness.load.job import Job
from harness.load.recording import WRONG_ANSWER
from harness.load.runner import Progress, WorkerError, run_stage
from harness.records import CheckResult, LoadResult, SampleBatch
from scenarios.suites.load.plan import Plan
from scenarios.suites.load.requests import build_job, encode, wrong_answers
from scenarios.suites.load.results import STEADY_WINDOWS, batch_of, is_steady, judge, summarize_stage

__all__ = ["Plan", "load"]
STEADY_PIECES = 10


async def load(
    endpoint: Endpoint, plan: Plan, samples_name: str, progress: Callable[[Progress], None]
) -> AsyncIterator[LoadResult | SampleBatch | CheckResult]:
    """Raises UnreachableError when the service does not answer before the stage, MeasurementError when nothing could
    be measured."""
    due = plan.due_ns() if plan.open_loop else None
    encoded = await encode(endpoint, plan)
    job = build_job(endpoint, plan, encoded)
    bodies = [item.body for item in encoded]
    started = time.monotonic()
    try:
        warmed_s = await _warm_up(plan, job, bodies, progress) if plan.warmup_s is None else 0.0
        stage = await run_stage(job, bodies, due, progress, plan.processes)
    except WorkerError as error:
        raise MeasurementError(f"{plan.name}: {error}") from error
    wrong = wrong_answers(plan.protocol, stage, encoded, job.cycle)
    errors = stage.columns["error"].copy()
    errors[np.isin(stage.columns["row"], list(wrong))] = WRONG_ANSWER
    columns = {**stage.columns, "error": errors}
    batch = batch_of(endpoint, plan, columns)
    if not len(batch):
        raise MeasurementError(f"{plan.name}: the stage ended before its warm-up did; nothing was measured")
    result = summarize_stage(endpoint, plan, columns, batch, stage, samples_name, warmed_s)
    yield batch
    yield result
    elapsed = round(time.monotonic() - started, 3)
    for check in judge(endpoint, plan, result, wrong, encoded, job.cycle, elapsed):
        yield check


async def _warm_up(plan: Plan, job: Job, bodies: Sequence[bytes], progress: Callable[[Progress], None]) -> float | None:
    """Sends what the stage begins with, three seconds at a time, until they look alike; the time it took, or None when
    they never did."""
    piece_s = float(STEADY_WINDOWS)
    for count in range(1, STEADY_PIECES + 1):
        due = plan.opening_ns(piece_s) if plan.open_loop else None
        if due is not None and due.size == 0:
            return None  # a request every few seconds: nothing that could look alike
        piece = replace(job, duration_s=0.0 if plan.open_loop else piece_s)
        columns = (await run_stage(piece, bodies, due, progress, plan.processes)).columns
        if is_steady(columns["due_ns"], (columns["done_ns"] - columns["due_ns"]) / 1e9):
            return count * piece_s
    return None
