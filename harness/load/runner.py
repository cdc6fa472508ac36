"""The parent's side: starts a worker, follows it, and reads what it measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.load.job import Job

STOP_S = 5.0


class WorkerError(Exception):
    """The worker ended without a result; the message holds its last words."""


@dataclass(frozen=True)
class Progress:
    elapsed_s: float
    done: int
    errors: int
    in_flight: int


@dataclass(frozen=True)
class StageResult:
    """``columns`` as the worker wrote them, warm-up included; ``answers`` the kept bodies by row."""

    columns: dict[str, npt.NDArray[Any]]
    answers: dict[int, bytes]
    cpu: float
    """Processor time of the generator as a share of one core."""
    stopped: bool


async def run_stage(job: Job, bodies: Sequence[bytes], progress: Callable[[Progress], None]) -> StageResult:
    """Runs one stage in a process of its own. Cancelling ends that process. Raises WorkerError."""
    with tempfile.TemporaryDirectory(prefix="servecert-load-") as name:
        directory = Path(name)
        for request, body in zip(job.requests, bodies, strict=True):
            (directory / request.body).write_bytes(body)
        job.write(directory)
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
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        limit_s = job.warmup_s + job.duration_s + job.timeout_s + 30
        errors = asyncio.create_task(process.stderr.read())
        try:
            async with asyncio.timeout(limit_s):
                async for line in process.stdout:
                    progress(Progress(**json.loads(line)))
                await process.wait()
        except TimeoutError as error:
            raise WorkerError(f"the load worker did not end within {limit_s:g} s") from error
        finally:
            process.stdin.close()  # the worker takes this as the order to end
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            finally:
                with contextlib.suppress(asyncio.CancelledError):
                    words = (await errors).decode(errors="replace")
        if process.returncode != 0 or not (directory / "summary.json").exists():
            raise WorkerError(f"the load worker ended with exit code {process.returncode}: {words[-2000:]}")
        return _read(directory)


def _read(directory: Path) -> StageResult:
    with np.load(directory / "samples.npz") as file:
        columns = {name: file[name] for name in file.files}
    summary = json.loads((directory / "summary.json").read_text())
    answers = {int(path.name): path.read_bytes() for path in (directory / "answers").iterdir()}
    return StageResult(columns, answers, summary["cpu"], summary["stopped"])
