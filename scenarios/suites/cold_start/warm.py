"""Requests to a service that is awake, one after the other: what a cold one is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.base.errors import MeasurementError
from harness.base.protocols import Protocol
from harness.load.runner import Control, Progress, StageResult, WorkerError, run_stage
from harness.target.endpoint import Endpoint
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.errors import mark_wrong, stage_errors
from scenarios.suites.shared.stage.requests import Encoded, build_job, wrong_answers

LEAST_WARM = 5
"""Fewer answers are nothing to hold a cold request against."""


@dataclass(frozen=True)
class Warm:
    """Latencies of the right answers to ``sent`` requests, of which ``inspected`` were looked at."""

    latency_s: tuple[float, ...]
    sent: int
    errors: str
    inspected: int


def errors_of(
    protocol: Protocol, stage: StageResult, encoded: Sequence[Encoded], cycle: Sequence[int]
) -> tuple[npt.NDArray[np.int16], dict[int, str]]:
    """The errors of a stage, a wrong answer being one as far as answers were kept; and what is wrong, by the number of
    the request."""
    wrong = wrong_answers(protocol, stage, encoded, cycle)
    # Answers are kept of requests without an error alone, so that none is hidden by this.
    errors: npt.NDArray[np.int16] = mark_wrong(stage.columns, wrong)["error"]
    return errors, wrong


async def warm_requests(endpoint: Endpoint, plan: Plan, encoded: Sequence[Encoded], count: int) -> Warm:
    """So many, each sent when the one before has its answer. Raises MeasurementError where none is answered rightly."""
    control = Control()

    def enough(progress: Progress) -> None:
        if progress.done >= count:
            control.enough()

    # A closed loop ends by time, or when there is enough; what it sent beyond that is left out.
    plan = replace(plan, rate_per_s=None, concurrency=1, duration_s=count * plan.timeout_s)
    job = replace(build_job(endpoint, plan, encoded), check_every=1)
    try:
        stage = await run_stage(job, [item.body for item in encoded], None, enough, control=control)
    except WorkerError as error:
        raise MeasurementError(f"{plan.name}: {error}") from error
    errors = errors_of(plan.protocol, stage, encoded, job.cycle)[0][:count]
    fine = errors == 0
    if not fine.any():
        said = stage_errors(stage, errors)
        raise MeasurementError(f"{plan.name}: none of {fine.size} warm requests was answered rightly: {said}")
    latency_s = (stage.columns["done_ns"][:count] - stage.columns["due_ns"][:count])[fine] / 1e9
    inspected = int(np.isin(stage.columns["row"][:count][fine], list(stage.answers)).sum())
    return Warm(tuple(float(value) for value in latency_s), int(fine.size), stage_errors(stage, errors), inspected)
