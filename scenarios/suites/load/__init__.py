"""Load: one stage at a rate (open loop) or a concurrency (closed loop), judged against objectives."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import numpy as np

from harness.endpoint import Endpoint
from harness.errors import MeasurementError
from harness.load.recording import WRONG_ANSWER
from harness.load.runner import Progress, WorkerError, run_stage
from harness.records import CheckResult, LoadResult, SampleBatch
from scenarios.suites.load.plan import Plan
from scenarios.suites.load.requests import build_job, encode, wrong_answers
from scenarios.suites.load.results import batch_of, judge, measured_window, summarize_stage

__all__ = ["Plan", "load"]


async def load(
    endpoint: Endpoint, plan: Plan, samples_name: str, progress: Callable[[Progress], None]
) -> AsyncIterator[LoadResult | SampleBatch | CheckResult]:
    """Raises UnreachableError when the service does not answer before the stage, MeasurementError when nothing could
    be measured."""
    due = plan.due_ns() if plan.open_loop else None
    encoded = await encode(endpoint, plan)
    job = build_job(endpoint, plan, encoded)
    started = time.monotonic()
    try:
        stage = await run_stage(job, [item.body for item in encoded], due, progress, plan.processes)
    except WorkerError as error:
        raise MeasurementError(f"{plan.name}: {error}") from error
    wrong = wrong_answers(plan.protocol, stage, encoded, job.cycle)
    errors = stage.columns["error"].copy()
    errors[np.isin(stage.columns["row"], list(wrong))] = WRONG_ANSWER
    columns = {**stage.columns, "error": errors}
    window = measured_window(plan, columns)
    batch = batch_of(endpoint, plan, columns, *window[:2])
    if not len(batch):
        raise MeasurementError(f"{plan.name}: the stage ended before its warm-up did; nothing was measured")
    result = summarize_stage(endpoint, plan, columns, batch, window, stage, samples_name)
    yield batch
    yield result
    elapsed = round(time.monotonic() - started, 3)
    for check in judge(endpoint, plan, result, wrong, encoded, job.cycle, elapsed):
        yield check
