"""Load that goes on while something is done to a service; each answer is kept: who gave it, and whether it is right."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.base.errors import MeasurementError
from harness.base.protocols import Protocol
from harness.load.job import Job
from harness.load.recording import WRONG_ANSWER, Examples
from harness.load.runner import Control, StageResult, WorkerError, run_stage
from harness.target.endpoint import Endpoint
from scenarios.suites.shared.stage.beforehand import encode
from scenarios.suites.shared.stage.errors import errors_seen, in_words
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.requests import (
    KNOWN_ANSWERS,
    Encoded,
    build_job,
    read_answer,
    without_id,
    wrong_answers,
)

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Traffic:
    """All requests of a stage, in the order of their due times.

    Shapes: (requests,) of each. Times are seconds of ``time.monotonic``; ``version`` is the model version that an
    answer named, empty where there was none; ``wrong`` says what is wrong with an answer, by its place.
    """

    due_s: npt.NDArray[np.float64]
    done_s: npt.NDArray[np.float64]
    error: npt.NDArray[np.int16]
    version: npt.NDArray[np.str_]
    wrong: dict[int, str]
    status: npt.NDArray[np.int32]
    start_s: float
    examples: Examples
    """The first error of each class and status."""
    inspected: Bools
    """Whether an answer was kept, so that a wrong one would have been noticed; where it is large, not all are."""
    compared: Bools
    """Whether its values were compared as well, there being something to compare them with."""

    def __len__(self) -> int:
        return int(self.due_s.size)

    @property
    def latency_s(self) -> npt.NDArray[np.float64]:
        return self.done_s - self.due_s

    @property
    def failed(self) -> Bools:
        return np.not_equal(self.error, 0)

    @property
    def classes(self) -> npt.NDArray[np.int16]:
        """Errors, a wrong answer being one of them."""
        found = self.error.copy()
        places = [place for place in self.wrong if not found[place]]
        found[places] = WRONG_ANSWER
        return found

    @property
    def lost(self) -> Bools:
        """Requests without an answer, or with one that was found wrong; ``inspected`` says which were looked at."""
        return np.not_equal(self.classes, 0)

    def inspected_text(self, which: Bools | None = None) -> str:
        """What is to be said where not every answer was inspected; empty where each was."""
        answers = ~self.failed if which is None else ~self.failed & which
        seen, all_ = int((self.inspected & answers).sum()), int(answers.sum())
        return "" if seen == all_ else f"; {seen} of {all_} answers were inspected, for the others there was no room"

    def due_between(self, start_s: float, end_s: float) -> Bools:
        return (self.due_s >= start_s) & (self.due_s < end_s)

    def errors_text(self, which: Bools) -> str:
        """How many of each class and status, and what the first of them said."""
        done_ns = ((self.done_s[which] - self.start_s) * 1e9).astype(np.int64)
        return in_words(errors_seen(self.classes[which], self.status[which], done_ns, self.examples)) or "none"


class Background:
    """A stage that is under way. ``finish`` ends it and gives what it saw."""

    def __init__(self, endpoint: Endpoint, plan: Plan, job: Job, encoded: Sequence[Encoded]) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.job = job
        self.encoded = encoded
        self.control = Control()
        due = plan.due_ns() if plan.open_loop else None
        bodies = [item.body for item in encoded]
        stage = run_stage(job, bodies, due, lambda progress: None, plan.processes, self.control)
        self.task = asyncio.create_task(stage, name=f"load {plan.name}")

    def check(self) -> None:
        """Raises MeasurementError where the load has ended by itself."""
        if self.task.done():
            if not self.task.cancelled() and (error := self.task.exception()) is not None:
                raise MeasurementError(f"{self.plan.name}: {error}") from error
            raise MeasurementError(f"{self.plan.name}: the load was over before what it accompanies")

    async def started(self) -> None:
        begun = asyncio.create_task(self.control.started.wait())
        await asyncio.wait({begun, self.task}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if not self.control.started.is_set():
            self.check()

    async def finish(self) -> Traffic:
        """Raises MeasurementError where nothing was sent."""
        self.control.enough()
        try:
            stage = await self.task
        except WorkerError as error:
            raise MeasurementError(f"{self.plan.name}: {error}") from error
        if not stage.columns["due_ns"].size:
            raise MeasurementError(f"{self.plan.name}: no request was sent")
        return self._traffic(stage)

    def _traffic(self, stage: StageResult) -> Traffic:
        rows = stage.columns["row"]
        places = {int(row): place for place, row in enumerate(rows.tolist())}
        wrong = wrong_answers(self.plan.protocol, stage, self.encoded, self.job.cycle)
        inspected = np.isin(rows, list(stage.answers))
        cycle = np.array(self.job.cycle)
        valued = np.array([bool(item.expected) for item in self.encoded])[cycle[rows % cycle.size]]
        versions = [""] * rows.size
        if self.job.mark:
            for row, mark in stage.marks.items():
                versions[places[row]] = mark
        else:
            known: dict[bytes, str] = {}
            for row, content in stage.answers.items():
                shape = without_id(content, row)
                version = known.get(shape) if shape is not None else None
                if version is None:
                    version = _version(self.plan.protocol, content)
                    if shape is not None and len(known) < KNOWN_ANSWERS:
                        known[shape] = version
                versions[places[row]] = version

        def moments(name: str) -> npt.NDArray[np.float64]:
            return np.where(stage.columns[name] < 0, np.nan, (stage.columns[name] + stage.start_ns) / 1e9)

        return Traffic(
            due_s=moments("due_ns"),
            done_s=moments("done_ns"),
            error=stage.columns["error"],
            version=np.array(versions, dtype=np.str_),
            wrong={places[row]: what for row, what in wrong.items()},
            status=stage.columns["status"],
            start_s=stage.start_ns / 1e9,
            examples=stage.examples,
            inspected=inspected,
            compared=inspected & valued,
        )


def _version(protocol: Protocol, content: bytes) -> str:
    """The model version that an answer names. What cannot be read whole is among the wrong ones, and may yet say whose
    it is."""
    try:
        return read_answer(protocol, content).model_version or ""
    except Exception:  # whatever a server may send; protobuf raises its own kinds
        found = re.search(rb'"model_version":\s*"([^"]*)"', content)
        return found[1].decode(errors="replace") if found else ""


@contextlib.asynccontextmanager
async def background(
    endpoint: Endpoint, plan: Plan, encoded: Sequence[Encoded] | None = None, header: str = ""
) -> AsyncIterator[Background]:
    """The stage has begun when the body does, and is over when it ends. ``encoded`` are the requests of a stage before,
    with what was right then; None asks the service. ``header`` names the response header that says whose an answer
    is; empty takes the model version in it. Raises UnreachableError when the service does not answer before,
    and MeasurementError when its answers cannot be read."""
    if encoded is None:
        encoded = await encode(endpoint, plan)
    if problem := next((item.problem for item in encoded if item.problem), ""):
        raise MeasurementError(f"{plan.name}: before the load, a request was not answered: {problem}")
    job = replace(build_job(endpoint, plan, encoded), check_every=1, mark=header)
    running = Background(endpoint, plan, job, encoded)
    try:
        await running.started()
        yield running
    finally:
        if not running.task.done():
            running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)


async def pause(running: Background, seconds: float) -> None:
    """Lets the load go on for so long. Raises MeasurementError as soon as it has broken."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(0.25, left))
        running.check()
