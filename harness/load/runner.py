"""The parent's side: starts workers, lets them begin at one moment, follows them, and merges what they measured."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.base.columns import open_columns, together
from harness.load.job import DUE, Job
from harness.load.recording import Example, first_examples
from harness.load.sketch import percentile_of

READY_S = 30.0
STOP_S = 5.0
LEAD_NS = 50_000_000
Times = npt.NDArray[np.int64]


class WorkerError(Exception):
    """A worker ended without a result; the message holds its last words."""


@dataclass(frozen=True)
class Progress:
    """``bins`` counts latencies so far, as ``harness.load.sketch`` has them; in a line of one generator, those since
    its last line."""

    elapsed_s: float
    done: int
    errors: int
    in_flight: int
    bins: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Progress:
        """From a generator's line of JSON."""
        return cls(**{**said, "bins": {int(place): int(count) for place, count in said["bins"]}})

    def percentile_s(self, q: float) -> float | None:
        return percentile_of(self.bins, q)


@dataclass(frozen=True)
class StageResult:
    """``columns`` of all workers in the order of the due times, warm-up included, times counted from the start; ``row``
    is each request's number, and ``answers`` the kept bodies by that number."""

    columns: dict[str, npt.NDArray[Any]]
    answers: dict[int, bytes]
    cpu: float
    """Processor time of the busiest generator as a share of one core."""
    stopped: bool
    stall_s: float = 0.0
    """How long a generator's event loop stood still at most."""
    gaps: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Of streamed answers: ``row`` and ``gap_ns`` of each pause between two events of one answer."""
    start_ns: int = 0
    """The stage's start on this machine's ``time.monotonic_ns``."""
    marks: dict[int, str] = field(default_factory=dict)
    """The value of the job's ``mark`` header, by the row's number, where an answer had one."""
    limited: int = 0
    """Requests that waited because the limit on connections (or calls) was reached, and for nothing else."""
    resent: int = 0
    """Requests that were sent once more: the server had closed an idle connection before they reached it."""
    examples: Mapping[tuple[int, int], Example] = field(default_factory=dict)
    """The first error of each class and status, of all that was sent."""


class Control:
    """For whoever does something while a stage runs: when it started, and how to end it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.start_ns = 0
        self._enough: list[Callable[[], None]] = []

    def begin(self, start_ns: int, enough: list[Callable[[], None]]) -> None:
        self.start_ns, self._enough = start_ns, enough
        self.started.set()

    def enough(self) -> None:
        """No more requests; those under way are waited for."""
        for tell in self._enough:
            tell()


class Together:
    """Adds up what several generators say of themselves."""

    def __init__(self, progress: Callable[[Progress], None]) -> None:
        self._progress = progress
        self._seen: dict[int, Progress] = {}
        self._bins: Counter[int] = Counter()

    def part(self, place: int, one: Progress) -> None:
        self._seen[place] = one
        self._bins.update(one.bins)
        parts = list(self._seen.values())
        self._progress(
            Progress(
                max(part.elapsed_s for part in parts),
                sum(part.done for part in parts),
                sum(part.errors for part in parts),
                sum(part.in_flight for part in parts),
                dict(self._bins),
            )
        )


def stage_length_s(job: Job, due_ns: Times | None) -> float:
    """From its start to its last request. Raises ValueError where the job is neither an open nor a closed loop."""
    if (due_ns is None) == (job.concurrency is None):
        raise ValueError("expected either due times (open loop) or a concurrency (closed loop)")
    if due_ns is None:
        return job.duration_s
    if due_ns.size == 0:
        raise ValueError("expected at least one due time")
    return float(due_ns[-1]) / 1e9


def shares(job: Job, due_ns: Times | None, generators: int) -> list[tuple[Job, Times | None]]:
    """What each generator does: due times in turns, clients and the limit on connections in equal parts; fewer shares
    where there are fewer clients or requests than generators. The limit is the stage's, and at least 1 a generator."""
    busy = min(generators, due_ns.size if due_ns is not None else job.concurrency or generators)
    parts: list[tuple[Job, Times | None]] = []
    for place in range(busy):
        mine = dataclasses.replace(
            job,
            first_row=place,
            stride=generators,
            connections=max(1, _share(job.connections, busy, place)),
            concurrency=None if job.concurrency is None else _share(job.concurrency, busy, place),
        )
        parts.append((mine, None if due_ns is None else due_ns[place::generators]))
    return parts


def _share(total: int, generators: int, place: int) -> int:
    return total // generators + (place < total % generators)


class Generators(Protocol):
    """Whatever carries out a stage: processes on this machine, or workers elsewhere."""

    @property
    def count(self) -> int: ...

    async def run(
        self, job: Job, bodies: Sequence[bytes], due_ns: Times | None, progress: Callable[[Progress], None]
    ) -> StageResult:
        """Cancelling ends it. Raises WorkerError."""
        ...


@dataclass(frozen=True)
class LocalGenerators:
    count: int = 1
    control: Control | None = None

    async def run(
        self, job: Job, bodies: Sequence[bytes], due_ns: Times | None, progress: Callable[[Progress], None]
    ) -> StageResult:
        return await run_stage(job, bodies, due_ns, progress, self.count, self.control)


async def run_stage(
    job: Job,
    bodies: Sequence[bytes],
    due_ns: Times | None,
    progress: Callable[[Progress], None],
    processes: int = 1,
    control: Control | None = None,
) -> StageResult:
    """One stage by ``processes`` generators; ``due_ns``, from the start, makes it an open loop, in turns. ``control``
    tells when it starts, and may end it before its last request.

    Cancelling ends them. Raises WorkerError.
    """
    limit_s = stage_length_s(job, due_ns) + job.timeout_s + 30
    tell = Together(progress)
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(_worker(mine, bodies, part))
            for mine, part in shares(job, due_ns, processes)
        ]
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.gather(*(worker.ready() for worker in workers))
            start_ns = time.monotonic_ns() + LEAD_NS
            async with asyncio.timeout(limit_s):
                following = [worker.follow(start_ns, partial(tell.part, place)) for place, worker in enumerate(workers)]
                if control is not None:
                    control.begin(start_ns, [worker.enough for worker in workers])
                await asyncio.gather(*following)
        except TimeoutError as error:
            raise WorkerError(f"a load worker did not end within {limit_s:g} s") from error
        results = [worker.result() for worker in workers]
    return dataclasses.replace(merge(results), start_ns=start_ns)


def merge(results: Sequence[StageResult]) -> StageResult:
    """Exact: every row of every worker, in the order of the due times."""
    return StageResult(
        _merged([result.columns for result in results]),
        {row: answer for result in results for row, answer in result.answers.items()},
        max(result.cpu for result in results),
        any(result.stopped for result in results),
        max(result.stall_s for result in results),
        {name: np.concatenate([result.gaps[name] for result in results]) for name in results[0].gaps},
        marks={row: mark for result in results for row, mark in result.marks.items()},
        limited=sum(result.limited for result in results),
        resent=sum(result.resent for result in results),
        examples=first_examples(result.examples for result in results),
    )


def _merged(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    if len(parts) == 1:
        return dict(parts[0])  # a generator's rows are in the order of its due times
    order = np.lexsort(tuple(np.concatenate([part[name] for part in parts]) for name in ("row", "due_ns")))
    return together(parts, order)


def read_result(directory: Path) -> StageResult:
    """What one generator left in its directory."""
    summary = json.loads((directory / "summary.json").read_text())
    columns = open_columns(directory / "columns", summary["columns"])
    answers = {int(path.name): path.read_bytes() for path in (directory / "answers").iterdir()}
    gaps = {}
    if (directory / "gaps.npz").exists():
        with np.load(directory / "gaps.npz") as file:
            gaps = {name: file[name] for name in file.files}
    marks: dict[int, str] = {}
    if (directory / "marks.json").exists():
        marks = {int(row): mark for row, mark in json.loads((directory / "marks.json").read_text()).items()}
    return StageResult(
        columns,
        answers,
        summary["cpu"],
        summary["stopped"],
        summary["stall_s"],
        gaps,
        marks=marks,
        limited=summary["limited"],
        resent=summary["resent"],
        examples={(error, status): Example(**one) for error, status, one in summary["examples"]},
    )


def write_task(directory: Path, job: Job, bodies: Sequence[bytes], due_ns: Times | None) -> None:
    """What a generator needs to find in its directory."""
    for request, body in zip(job.requests, bodies, strict=True):
        (directory / request.body).write_bytes(body)
    if due_ns is not None:
        due_ns.tofile(directory / DUE)
    job.write(directory)


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        assert process.stderr is not None
        self._errors = asyncio.create_task(process.stderr.read())

    async def ready(self) -> None:
        assert self.process.stdout is not None
        if not await self.process.stdout.readline():
            await self._failed()

    async def follow(self, start_ns: int, progress: Callable[[Progress], None]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"%d\n" % start_ns)
        async for line in self.process.stdout:
            progress(Progress.read(json.loads(line)))
        await self.process.wait()
        if self.process.returncode != 0 or not (self.directory / "summary.json").exists():
            await self._failed()

    def enough(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"enough\n")

    async def _failed(self) -> None:
        await self.process.wait()
        words = (await self._errors).decode(errors="replace")
        raise WorkerError(f"the load worker ended with exit code {self.process.returncode}: {words[-2000:]}")

    def result(self) -> StageResult:
        return read_result(self.directory)

    async def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # the worker takes this as the order to end
        try:
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        finally:
            self._errors.cancel()


@contextlib.asynccontextmanager
async def _worker(job: Job, bodies: Sequence[bytes], due_ns: Times | None) -> AsyncIterator[_Worker]:
    with tempfile.TemporaryDirectory(prefix="servecert-load-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        write_task(directory, job, bodies, due_ns)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "harness.load.worker",
            name,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        worker = _Worker(process, directory)
        try:
            yield worker
        finally:
            await worker.end()
