"""The generator's process: ``python -m harness.load.worker DIRECTORY``.

Reads ``job.json`` and what lies beside it, says that it is ready, starts at the moment that it is told, prints a line
of JSON twice a second, and writes ``columns/`` (of a long stage as it goes on) and ``answers/``. SIGTERM ends it early,
with what there is. When its standard input closes, nobody waits for the result any more: it ends without one and
removes the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
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
import numpy.typing as npt
import uvloop

from harness.base.columns import PIECE_ROWS, WHOLE_PAGES_ROWS, ColumnWriter, open_columns
from harness.load.http1 import Pool, encode
from harness.load.job import DUE, Job
from harness.load.recorder import Recorder, abandon
from harness.load.recording import Columns
from harness.load.sketch import bins_of
from harness.load.template import Template
from harness.load.timer import Timer

SWEEP_S = 0.02
REPORT_S = 0.5
SEEN_ROWS = 2048
WRITE_S = 0.5
AWAKE_NS = 150_000
AWAKE_SHARE = 0.08
LEAST_AWAKE_NS = 10_000
"""The loop waits awake at most so long before a request is due, and at most so great a share of the time."""


class Sender(Protocol):
    def submit(self, row: int) -> None: ...

    def expire(self, row: int) -> None: ...

    async def close(self) -> None: ...


class Stage:
    def __init__(self, directory: Path, job: Job, bodies: list[bytes], due_ns: npt.NDArray[np.int64] | None) -> None:
        self.job = job
        self.loop = asyncio.get_running_loop()
        self.open_loop = due_ns is not None
        self.recorder = Recorder(Columns(4096 if due_ns is None else due_ns.size, due_ns), job)
        self.written = ColumnWriter(directory / "columns")
        self.planned = 0 if due_ns is None else due_ns.size
        self.sender = self._sender(bodies)
        self.timer = Timer(self.loop, self._release)
        self.over = asyncio.Event()
        self.stopped = False
        self.abandoned = False
        self.stall_s = 0.0
        """How late the loop itself was at most: a callback that took long, or a processor that was not there."""
        self.awake = False
        """Whether the loop goes round until the next request is due."""
        self.count = 0
        """Rows dispatched so far."""
        self.failure: OSError | None = None
        """Why what was measured could not be written down."""
        self.reported = 0
        """Rows that reports have told of."""
        self.thinking = 0
        """Clients of a closed loop between two requests."""
        self.deadlines: deque[int] = deque()
        self.timeout_ns = int(job.timeout_s * 1e9)

    def _sender(self, bodies: list[bytes]) -> Sender:
        job = self.job
        if job.protocol in ("grpc", "grpc-stream"):
            from harness.load.grpc_calls import Channel, StreamingChannel  # others need not wait for it

            templates = [Template.of(body) for body in bodies]
            method = job.requests[0].target
            ca = job.ca if job.tls else None
            kind = Channel if job.protocol == "grpc" else StreamingChannel
            return kind(self.recorder, f"{job.host}:{job.port}", job.authority, method, templates, job.timeout_s, ca)
        templates = [
            Template.of(encode(request.target, job.authority, request.headers, body))
            for request, body in zip(job.requests, bodies, strict=True)
        ]
        tls = job.authority.rpartition(":")[0] or job.authority if job.tls else None
        limit = job.concurrency or job.connections
        return Pool(self.recorder, job.host, job.port, templates, limit, tls, job.ca)

    async def run(self, start_ns: int) -> float:
        """From ``start_ns`` (``time.monotonic_ns``) on; the processor time used, as a share of one core."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        self.start_ns = self.recorder.start_ns = start_ns
        self.end_ns = start_ns + int(self.job.duration_s * 1e9)
        columns = self.recorder.columns
        sweeping = self.loop.create_task(self._sweep())
        writing = self.loop.create_task(self._write())
        if self.open_loop:
            self.recorder.after = lambda row: self._finished()
            self.timer.set(start_ns + int(columns.due_ns[0]) if self.planned else start_ns)
            if not self.planned:
                self.over.set()
        else:
            self.recorder.after = lambda row: self._next_turn()
            self.timer.set(start_ns)
        await self.over.wait()
        elapsed_s = (time.monotonic_ns() - start_ns) / 1e9
        sweeping.cancel()
        self.recorder.after = lambda row: None
        await writing
        abandon(self.recorder, self.count)
        await self.sender.close()
        self.timer.close()
        after = resource.getrusage(resource.RUSAGE_SELF)
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return used_s / max(elapsed_s, 1e-9)

    def stop(self) -> None:
        self.stopped = True
        self.over.set()

    def wind_down(self) -> None:
        """Nothing new is sent; what is under way is waited for."""
        self.stopped = True
        self.planned = self.count
        self._finished()
        if not self.open_loop and self.recorder.done >= self.count and not self.thinking:
            self.over.set()

    def abandon(self) -> None:
        """Nobody waits for the result any more: the parent closed our standard input, or is no longer there."""
        self.abandoned = True
        self.stop()

    # Open loop

    def _release(self) -> None:
        if not self.open_loop:
            for _ in range(self.job.concurrency or 0):
                self._start_turn()
            return
        columns = self.recorder.columns
        while self.count < self.planned and not self.stopped:
            now = time.monotonic_ns()
            due = self.start_ns + int(columns.due_ns[self.count])
            if due > now:
                self._wait(due, now)
                return
            self.awake = False
            row, self.count = self.count, self.count + 1
            columns.dispatched_ns[row] = now
            self.deadlines.append(row)
            self.sender.submit(row)

    def _wait(self, due_ns: int, now_ns: int) -> None:
        """Wakes up a little early and goes round the loop until the moment is there: a processor that slept is late by
        the time that it takes to wake."""
        if self.awake:
            self.loop.call_soon(self._release)
            return
        early_ns = min(AWAKE_NS, int((due_ns - now_ns) * AWAKE_SHARE))
        self.awake = early_ns >= LEAST_AWAKE_NS
        self.timer.set(due_ns - early_ns if self.awake else due_ns)

    def _finished(self) -> None:
        if self.recorder.done >= self.planned:
            self.over.set()

    # Closed loop

    def _next_turn(self) -> None:
        """A client has its answer: it thinks, and asks again."""
        if self.job.think_s and time.monotonic_ns() < self.end_ns:
            self.thinking += 1
            self.loop.call_later(self.job.think_s, self._thought)
        else:
            self._start_turn()

    def _thought(self) -> None:
        self.thinking -= 1
        self._start_turn()

    def _start_turn(self) -> None:
        now = time.monotonic_ns()
        if self.stopped or now >= self.end_ns:
            if self.recorder.done >= self.count and not self.thinking:
                self.over.set()
            return
        if self.count == self.recorder.columns.due_ns.size:
            self.recorder.grow()
        row, self.count = self.count, self.count + 1
        columns = self.recorder.columns
        columns.due_ns[row] = now - self.start_ns
        columns.dispatched_ns[row] = now
        self.deadlines.append(row)
        # Not within the end of the request before: a server that refuses at once would recurse without end.
        self.loop.call_soon(self.sender.submit, row)

    async def _sweep(self) -> None:
        """Rows are dispatched in the order of their due times, so the oldest deadline is always first."""
        columns = self.recorder.columns
        reported = 0.0
        last = time.monotonic_ns()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic_ns()
            self.stall_s = max(self.stall_s, (now - last) / 1e9 - SWEEP_S)
            last = now
            overdue_ns = now - self.start_ns - self.timeout_ns
            while self.deadlines and (
                columns.done_ns[self.deadlines[0]] or columns.due_ns[self.deadlines[0]] < overdue_ns
            ):
                row = self.deadlines.popleft()
                if not columns.done_ns[row]:
                    self.sender.expire(row)
            if time.monotonic() - reported >= REPORT_S:
                reported = time.monotonic()
                self._report(now)

    async def _write(self) -> None:
        """Rows that are done leave the memory of a long stage. The disk has a thread of its own, so that the loop waits
        for nothing."""
        columns = self.recorder.columns
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), WRITE_S)
            done = self.deadlines[0] if self.deadlines else self.count
            if done - columns.settled < self.job.rows_in_memory or self.recorder.stream is not None:
                continue
            first, last = columns.settled, done - done % WHOLE_PAGES_ROWS
            if last <= first:
                continue
            try:
                await self.loop.run_in_executor(None, self.write, first, last)
            except OSError as error:
                self.failure = error
                self.stop()
                return
            columns.settle(last)

    def write(self, first: int, last: int) -> None:
        for begin in range(first, max(last, first + 1), PIECE_ROWS):
            end = min(begin + PIECE_ROWS, last)
            columns = self.recorder.columns.relative(self.start_ns, begin, end)
            columns["row"] = np.arange(begin, end, dtype=np.int64) * self.job.stride + self.job.first_row
            self.written.write(columns)

    def write_rest(self) -> None:
        """What has not been written down yet, which ends it."""
        if self.recorder.stream is not None:
            self.written.write(self.recorder.stream.relative(self.start_ns, self.count))
        self.write(self.recorder.columns.settled, self.count)
        self.written.close()

    def _report(self, now_ns: int) -> None:
        recorder = self.recorder
        line = {
            "elapsed_s": round((now_ns - self.start_ns) / 1e9, 3),
            "done": recorder.done,
            "errors": recorder.errors,
            "in_flight": self.count - recorder.done,
            "bins": list(self._recent().items()),
        }
        print(json.dumps(line), flush=True)

    def _recent(self) -> dict[int, int]:
        """Latencies of what has ended since the last report; of many, some that stand for all."""
        columns = self.recorder.columns
        first = max(self.reported, columns.settled)
        self.reported = self.deadlines[0] if self.deadlines else self.count
        every = max(1, (self.reported - first) // SEEN_ROWS)
        part = slice(first, self.reported, every)
        return bins_of(columns.done_ns[part] - self.start_ns - columns.due_ns[part], every)


class Orders:
    """What the parent says on standard input: a line with the moment to start; perhaps another, when it has enough; its
    end, when nobody waits any more."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.start = asyncio.get_running_loop().create_future()
        self._text = b""

    def read(self) -> None:
        data = os.read(sys.stdin.fileno(), 4096)
        self._text += data
        if not self.start.done() and b"\n" in self._text:
            first, _, self._text = self._text.partition(b"\n")
            self.start.set_result(int(first))
        if self.start.done() and b"\n" in self._text:
            self.stage.wind_down()
        if not data:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.stage.abandon()
            if not self.start.done():
                self.start.set_result(time.monotonic_ns())


async def serve(directory: Path) -> None:
    job = Job.read(directory)
    due = directory / DUE
    bodies = [(directory / request.body).read_bytes() for request in job.requests]
    stage = Stage(
        directory, job, bodies, open_columns(directory, {due.name: "int64"})[due.name] if due.exists() else None
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stage.stop)
    orders = Orders(stage)
    loop.add_reader(sys.stdin.fileno(), orders.read)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    print(json.dumps({"ready": True}), flush=True)
    start_ns = await orders.start
    cpu = await stage.run(start_ns)
    loop.remove_reader(sys.stdin.fileno())
    if stage.abandoned:
        shutil.rmtree(directory, ignore_errors=True)
        return
    answers = directory / "answers"
    answers.mkdir()
    for row, answer in stage.recorder.answers.items():
        (answers / str(row)).write_bytes(answer)
    if job.mark:
        (directory / "marks.json").write_text(json.dumps(stage.recorder.marks))
    if stage.failure is not None:
        raise stage.failure
    stage.write_rest()
    stream = stage.recorder.stream
    if stream is not None:
        gap_rows = np.array(stream.gap_rows, np.int64) * job.stride + job.first_row
        np.savez(directory / "gaps.npz", row=gap_rows, gap_ns=np.array(stream.gaps_ns, np.int64))
    recorder = stage.recorder
    summary = {
        "cpu": cpu,
        "stopped": stage.stopped,
        "stall_s": stage.stall_s,
        "columns": stage.written.dtypes,
        "limited": recorder.limited,
        "resent": recorder.resent,
        "examples": [[*kind, dataclasses.asdict(one)] for kind, one in recorder.examples.items()],
    }
    (directory / "summary.json").write_text(json.dumps(summary))


def main() -> int:
    # Late by its own scheduling is the one thing that a generator must not be. Only root may ask; others go on without.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle: it closes standard input
    directory = Path(sys.argv[1])
    try:
        uvloop.run(serve(directory))
    except BrokenPipeError:  # the parent was gone before we were ready
        shutil.rmtree(directory, ignore_errors=True)
    except OSError as error:
        print(
            f"could not write what was measured into {directory}: {error.strerror or error}; free some space there, or"
            " name another place in TMPDIR (a request takes about 70 bytes)",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
