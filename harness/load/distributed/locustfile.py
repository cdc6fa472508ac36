"""What Locust's workers run: ``servecert worker locust://HOST:PORT``, or Locust itself with this as its file.

    locust -f harness/load/distributed/locustfile.py --worker --master-host HOST --master-port PORT

The user class carries a whole generator: a process of ``harness.load.worker``, as on one machine. It gets its share of
the stage from the master, starts at the moment that the master names in this machine's own clock, and sends back the
files that the generator left, byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gevent
from gevent import subprocess
from gevent.event import AsyncResult
from gevent.queue import Queue
from locust import User, constant, events, task
from locust.runners import WorkerRunner

from harness.load.distributed import MESSAGES_VERSION, PARENT_VARIABLE

CHUNK_BYTES = 4 << 20
STOP_S = 5.0


class Carrier:
    """One worker's side of the conversation with the master."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.stages: Queue[dict[str, Any]] = Queue()
        self.start: AsyncResult[int] = AsyncResult()
        self.process: Any = None
        self.directory: Path | None = None
        self.leaving = False
        """This worker is about to be gone, so that what then fails is no failure of the stage."""
        runner.register_message("servecert_stage", self._stage)
        runner.register_message("servecert_clock", self._clock)
        runner.register_message("servecert_start", self._start)
        runner.register_message("servecert_abandon", self._abandon)

    def _stage(self, environment: Any, msg: Any, **_: Any) -> None:
        self.start = AsyncResult()
        self.stages.put(msg.data)

    def _clock(self, environment: Any, msg: Any, **_: Any) -> None:
        self.tell("servecert_clock", sent=msg.data["sent"], here=time.monotonic_ns())

    def _start(self, environment: Any, msg: Any, **_: Any) -> None:
        self.start.set(msg.data["start_ns"])

    def _abandon(self, environment: Any, msg: Any, **_: Any) -> None:
        gevent.spawn(self.end)

    def tell(self, kind: str, **data: Any) -> None:
        self.runner.send_message(kind, data)

    def carry(self, stage: dict[str, Any]) -> None:
        """A stage from its task to its result; what goes wrong is told to the master."""
        try:
            if stage["version"] != MESSAGES_VERSION:
                raise RuntimeError(
                    f"this worker speaks version {MESSAGES_VERSION} of the messages, the master {stage['version']};"
                    " install the same servecert on both"
                )
            self._generate(stage)
        except Exception as error:
            if not self.leaving:
                self.tell("servecert_failed", stage=stage["stage"], reason=f"{type(error).__name__}: {error}"[:4000])
        finally:
            self.end()

    def _generate(self, stage: dict[str, Any]) -> None:
        number = stage["stage"]
        self.directory = directory = Path(tempfile.mkdtemp(prefix="servecert-load-"))
        for name, content in stage["files"].items():
            (directory / Path(name).name).write_bytes(content)
        with (directory / "stderr").open("wb") as errors:
            self.process = process = subprocess.Popen(
                [sys.executable, "-m", "harness.load.worker", str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        if process.stdout.readline():
            self.tell("servecert_ready", stage=number)
            process.stdin.write(b"%d\n" % self.start.get())
            process.stdin.flush()
            for line in process.stdout:
                self.tell("servecert_progress", stage=number, progress=json.loads(line))
        code = process.wait()
        if code or not (directory / "summary.json").exists():
            words = (directory / "stderr").read_bytes()[-2000:].decode(errors="replace")
            raise RuntimeError(f"the generator ended with exit code {code}: {words}")
        results = [*(directory / "columns").iterdir(), *directory.glob("gaps.npz"), *(directory / "answers").iterdir()]
        for path in [*results, directory / "summary.json"]:
            self._send(number, path, str(path.relative_to(directory)))
        self.tell("servecert_done", stage=number)

    def _send(self, stage: int, path: Path, name: str) -> None:
        with path.open("rb") as file:
            while True:
                content = file.read(CHUNK_BYTES)
                self.tell("servecert_file", stage=stage, name=name, content=content)
                if len(content) < CHUNK_BYTES:
                    return

    def end(self) -> None:
        """The generator takes the end of its input as the order to end, and so does one that has ended."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        directory, self.directory = self.directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


class Generator(User):
    """One on each worker. Locust may move users between workers when one joins; a stage that has begun goes on."""

    wait_time = constant(0)

    @task
    def stage(self) -> None:
        carrier: Carrier = self.environment.servecert
        stage = carrier.stages.get()
        gevent.spawn(carrier.carry, stage).join()


@events.init.add_listener  # type: ignore[untyped-decorator]
def _(environment: Any, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        environment.servecert = Carrier(environment.runner)
        if parent := os.environ.get(PARENT_VARIABLE):
            gevent.spawn(_end_with, int(parent), environment)


def _end_with(parent: int, environment: Any) -> None:
    while os.getppid() == parent:
        gevent.sleep(1)
    environment.servecert.leaving = True
    environment.servecert.end()
    os._exit(1)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _(environment: Any, **_: Any) -> None:
    if (carrier := getattr(environment, "servecert", None)) is not None:
        carrier.leaving = True
        carrier.end()
