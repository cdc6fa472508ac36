"""Locust's workers as generators of a stage."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.load.distributed import Address
from harness.load.job import Job
from harness.load.runner import (
    Progress,
    StageResult,
    Times,
    Together,
    WorkerError,
    merge,
    read_result,
    shares,
    stage_length_s,
    write_task,
)

STOP_S = 10.0
SLACK_S = 90.0
"""For getting ready, and for bringing the rows back."""


class Place(Protocol):
    """Where Locust's master runs."""

    def command(self) -> list[str]: ...

    async def send(self, directory: Path) -> str:
        """Makes the folder there; its name there."""
        ...

    async def fetch(self, directory: Path) -> None:
        """Brings back what is in it."""
        ...


@dataclasses.dataclass(frozen=True)
class Here:
    address: Address

    def command(self) -> list[str]:
        master = [sys.executable, "-m", "harness.load.distributed.master"]
        return [*master, self.address.host, str(self.address.port)]

    async def send(self, directory: Path) -> str:
        return str(directory)

    async def fetch(self, directory: Path) -> None:
        pass


class Fleet:
    """``count`` workers, for any number of stages."""

    def __init__(self, process: asyncio.subprocess.Process, place: Place) -> None:
        self.place = place
        self.count = 0
        self.port = 0
        self._process = process
        assert process.stderr is not None
        self._errors = asyncio.create_task(process.stderr.read())

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line:
            said: dict[str, Any] = json.loads(line)
            return said
        await self._process.wait()
        words = (await self._errors).decode(errors="replace").strip()
        raise WorkerError(f"Locust's master ended with exit code {self._process.returncode}: {words[-2000:]}")

    async def connect(self, address: Address, note: Callable[[str], None]) -> None:
        self.port = (await self._line())["listening"]
        if address.in_cluster:
            start = "kubectl.log has what their pods said"
            note(f"waiting for {address.expect} load workers to find the master")
        else:
            start = f"start others: 'servecert worker locust://{address.host}:{self.port}'"
            note(f"waiting for {address.expect} load workers: servecert worker locust://{address.host}:{self.port}")
        try:
            async with asyncio.timeout(address.wait_s):
                while self.count < address.expect:
                    self.count = (await self._line()).get("workers", self.count)
        except TimeoutError as error:
            raise WorkerError(
                f"{self.count} of {address.expect} load workers connected within {address.wait_s:g} s; {start}"
            ) from error

    async def run(
        self, job: Job, bodies: Sequence[bytes], due_ns: Times | None, progress: Callable[[Progress], None]
    ) -> StageResult:
        """Cancelling it ends the stage, and with it the fleet. Raises WorkerError."""
        limit_s = stage_length_s(job, due_ns) + job.timeout_s + SLACK_S
        together = Together(progress)
        with tempfile.TemporaryDirectory(prefix="servecert-fleet-", ignore_cleanup_errors=True) as name:
            folders = []
            for place, (mine, part) in enumerate(shares(job, due_ns, self.count)):
                folders.append(Path(name) / str(place))
                folders[-1].mkdir()
                write_task(folders[-1], mine, bodies, part)
            assert self._process.stdin is not None
            there = await self.place.send(Path(name))
            self._process.stdin.write(json.dumps({"stage": there, "limit_s": limit_s}).encode() + b"\n")
            while True:
                said = await self._line()
                if "progress" in said:
                    together.part(said["place"], Progress.read(said["progress"]))
                elif "workers" in said:
                    self.count = said["workers"]
                elif "failed" in said:
                    raise WorkerError(said["failed"])
                elif "done" in said:
                    break
            await self.place.fetch(Path(name))
            for folder in folders:
                (folder / "answers").mkdir(exist_ok=True)
            return dataclasses.replace(merge([read_result(folder) for folder in folders]), start_ns=said["start_ns"])

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the master takes this as the order to send the workers home
        try:
            async with asyncio.timeout(STOP_S):
                assert self._process.stdout is not None
                await self._process.stdout.read()
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        finally:
            self._errors.cancel()


@contextlib.asynccontextmanager
async def open_fleet(address: Address, note: Callable[[str], None], place: Place | None = None) -> AsyncIterator[Fleet]:
    """Raises WorkerError when Locust is missing, the port is taken or the workers do not come."""
    if place is None and importlib.util.find_spec("locust") is None:
        raise WorkerError("load from several machines needs Locust: pip install 'servecert[locust]'")
    place = place or Here(address)
    process = await asyncio.create_subprocess_exec(
        *place.command(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    fleet = Fleet(process, place)
    try:
        await fleet.connect(address, note)
        yield fleet
    finally:
        await fleet.end()
