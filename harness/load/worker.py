"""The generator's process: ``python -m harness.load.worker DIRECTORY``.

Reads ``job.json`` and the bodies beside it, prints a line of JSON twice a second, and writes ``samples.npz`` and
``answers/`` when the stage is over. SIGTERM ends it early, with what there is. When its standard input closes, nobody
waits for the result any more: it ends without one and removes the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Protocol

import numpy as np
import uvloop

from harness.load.arrivals import due_times
from harness.load.grpc_unary import Channel
from harness.load.http1 import Pool, encode
from harness.load.job import Job
from harness.load.recorder import Recorder, abandon
from harness.load.recording import Columns
from harness.load.timer import Timer

LEAD_NS = 50_000_000
SWEEP_S = 0.02
REPORT_S = 0.5


class Sender(Protocol):
    def submit(self, row: int) -> None: ...

    def expire(self, row: int) -> None: ...

    async def close(self) -> None: ...


class Stage:
    def __init__(self, job: Job, bodies: list[bytes]) -> None:
        self.job = job
        self.loop = asyncio.get_running_loop()
        if job.rate_per_s is not None:
            warmup = due_times(job.arrivals, job.rate_per_s, job.warmup_s, job.seed + 1)
            measured = due_times(job.arrivals, job.rate_per_s, job.duration_s, job.seed)
            due = np.concatenate([warmup, measured + int(job.warmup_s * 1e9)])
        else:
            due = np.zeros(4096, np.int64)
        self.recorder = Recorder(Columns(due), job.check_every)
        self.sender = self._sender(bodies)
        self.timer = Timer(self.loop, self._release)
        self.over = asyncio.Event()
        self.stopped = False
        self.abandoned = False
        self.count = 0
        """Rows dispatched so far."""
        self.deadlines: deque[int] = deque()
        self.timeout_ns = int(job.timeout_s * 1e9)

    def _sender(self, bodies: list[bytes]) -> Sender:
        job = self.job
        if job.protocol == "grpc":
            method = job.requests[0].target
            return Channel(self.recorder, f"{job.host}:{job.port}", job.authority, method, bodies, job.timeout_s)
        requests = [
            encode(request.target, job.authority, {**request.headers, **job.headers}, body)
            for request, body in zip(job.requests, bodies, strict=True)
        ]
        tls = job.authority.rpartition(":")[0] or job.authority if job.tls else None
        limit = job.concurrency or job.connections
        return Pool(self.recorder, job.host, job.port, requests, limit, tls)

    async def run(self) -> tuple[int, float]:
        """The start (``time.monotonic_ns``) and the processor time used, as a share of one core."""
        job = self.job
        before = resource.getrusage(resource.RUSAGE_SELF)
        self.start_ns = time.monotonic_ns() + LEAD_NS
        self.end_ns = self.start_ns + int((job.warmup_s + job.duration_s) * 1e9)
        columns = self.recorder.columns
        sweeping = self.loop.create_task(self._sweep())
        if job.rate_per_s is not None:
            columns.due_ns += self.start_ns
            self.planned = columns.due_ns.size
            self.recorder.after = lambda row: self._finished()
            self.timer.set(int(columns.due_ns[0]))
        else:
            self.recorder.after = lambda row: self._start_user()
            self.timer.set(self.start_ns)
        await self.over.wait()
        elapsed_s = (time.monotonic_ns() - self.start_ns) / 1e9
        sweeping.cancel()
        self.recorder.after = lambda row: None
        abandon(self.recorder, self.count if job.rate_per_s is None or self.stopped else self.planned)
        await self.sender.close()
        self.timer.close()
        after = resource.getrusage(resource.RUSAGE_SELF)
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return self.start_ns, used_s / max(elapsed_s, 1e-9)

    def stop(self) -> None:
        self.stopped = True
        self.over.set()

    def abandon(self) -> None:
        """Nobody waits for the result any more: the parent closed our standard input, or is no longer there."""
        self.abandoned = True
        self.stop()

    # Open loop

    def _release(self) -> None:
        if self.job.rate_per_s is None:
            self._start_users()
            return
        columns = self.recorder.columns
        while self.count < self.planned and not self.stopped:
            now = time.monotonic_ns()
            due = int(columns.due_ns[self.count])
            if due > now:
                self.timer.set(due)
                return
            row, self.count = self.count, self.count + 1
            columns.dispatched_ns[row] = now
            self.deadlines.append(row)
            self.sender.submit(row)

    def _finished(self) -> None:
        if self.recorder.done >= self.planned:
            self.over.set()

    # Closed loop

    def _start_users(self) -> None:
        for _ in range(self.job.concurrency or 0):
            self._start_user()

    def _start_user(self) -> None:
        now = time.monotonic_ns()
        if self.stopped or now >= self.end_ns:
            if self.recorder.done >= self.count:
                self.over.set()
            return
        if self.count == self.recorder.columns.due_ns.size:
            self.recorder.grow()
        row, self.count = self.count, self.count + 1
        columns = self.recorder.columns
        columns.due_ns[row] = columns.dispatched_ns[row] = now
        self.deadlines.append(row)
        # Not within the end of the request before: a server that refuses at once would recurse without end.
        self.loop.call_soon(self.sender.submit, row)

    async def _sweep(self) -> None:
        """Rows are dispatched in the order of their due times, so the oldest deadline is always first."""
        columns = self.recorder.columns
        reported = 0.0
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic_ns()
            while self.deadlines and (
                columns.done_ns[self.deadlines[0]] or columns.due_ns[self.deadlines[0]] + self.timeout_ns < now
            ):
                row = self.deadlines.popleft()
                if not columns.done_ns[row]:
                    self.sender.expire(row)
            if time.monotonic() - reported >= REPORT_S:
                reported = time.monotonic()
                self._report(now)

    def _report(self, now_ns: int) -> None:
        recorder = self.recorder
        line = {
            "elapsed_s": round((now_ns - self.start_ns) / 1e9, 3),
            "done": recorder.done,
            "errors": recorder.errors,
            "in_flight": self.count - recorder.done,
        }
        print(json.dumps(line), flush=True)


async def serve(directory: Path) -> None:
    job = Job.read(directory)
    stage = Stage(job, [(directory / request.body).read_bytes() for request in job.requests])
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stage.stop)
    loop.add_reader(sys.stdin.fileno(), stage.abandon)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    start_ns, cpu = await stage.run()
    loop.remove_reader(sys.stdin.fileno())
    if stage.abandoned:
        shutil.rmtree(directory, ignore_errors=True)
        return
    answers = directory / "answers"
    answers.mkdir()
    for row, answer in stage.recorder.answers.items():
        (answers / str(row)).write_bytes(answer)
    columns = stage.recorder.columns.relative(start_ns, stage.count)
    np.savez(directory / "samples.npz", **columns)  # type: ignore[arg-type]
    summary = {"cpu": cpu, "stopped": stage.stopped}
    (directory / "summary.json").write_text(json.dumps(summary))


def main() -> int:
    # Late by its own scheduling is the one thing that a generator must not be. Only root may ask; others go on without.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle: it closes standard input
    uvloop.run(serve(Path(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
