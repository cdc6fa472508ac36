"""The state of a stage while it runs: rows, what is under way, and which answers are kept."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from harness.base.shown import SAID_BYTES, visible
from harness.load.job import STREAMED, Job
from harness.load.recording import NOT_SENT, TIMEOUT, Columns, Example
from harness.load.stream import StreamColumns

KEPT_BYTES = 64 << 20
"""Answers kept for inspection end here; how many were kept is in the result."""
MOST_EXAMPLES = 64
"""A server may answer with any number of different statuses."""


class Recorder:
    """``after`` is told of each row that is done; a closed loop starts its next request from it."""

    def __init__(self, columns: Columns, job: Job) -> None:
        self.columns = columns
        self.job = job
        self.answers: dict[int, bytes] = {}
        self.marks: dict[int, str] = {}
        """The value of the job's header, by the row's number."""
        self.examples: dict[tuple[int, int], Example] = {}
        """The first of each error class and status."""
        self.limited = 0
        """Requests that waited because the limit on connections (or calls) was reached, and for nothing else."""
        self.resent = 0
        """Requests that were sent once more: the server had closed an idle connection before they came."""
        self.stream = StreamColumns(columns.due_ns.size) if job.protocol in STREAMED else None
        self.start_ns = 0
        """The stage's start."""
        self.done = 0
        self.errors = 0
        self.after: Callable[[int], None] = lambda row: None
        self._kept = 0

    def number(self, row: int) -> int:
        """The row's number among those of all workers."""
        return self.job.first_row + self.job.stride * row

    def keeps(self, row: int) -> bool:
        return self.number(row) % self.job.check_every == 0 and self._kept < KEPT_BYTES

    def finish(
        self,
        row: int,
        error: int,
        status: int,
        size: int,
        answer: bytes | None = None,
        words: str | bytes = "",
        location: bytes = b"",
    ) -> None:
        """The first end of a row counts: an answer after its timeout changes nothing. ``words`` and ``location`` are
        what there is to see of an error."""
        columns = self.columns
        if row < columns.settled or columns.done_ns[row]:
            return
        columns.done_ns[row] = time.monotonic_ns()
        columns.status[row] = status
        columns.bytes[row] = size
        columns.error[row] = error
        self.done += 1
        if error:
            self.errors += 1
            if (error, status) not in self.examples and len(self.examples) < MOST_EXAMPLES:
                at_s = round((int(columns.done_ns[row]) - self.start_ns) / 1e9, 6)
                where = visible(location, SAID_BYTES)
                self.examples[error, status] = Example(at_s, visible(words[:SAID_BYTES]), where)
        elif answer is not None:
            self.answers[self.number(row)] = answer
            self._kept += len(answer)
        self.after(row)

    def grow(self) -> None:
        self.columns.grow()
        if self.stream is not None:
            self.stream.grow()


def abandon(recorder: Recorder, count: int) -> None:
    """Ends what is still open among the first ``count`` rows: sent rows timed out, the rest were never sent."""
    columns = recorder.columns
    for row in (np.flatnonzero(columns.done_ns[columns.settled : count] == 0) + columns.settled).tolist():
        error = TIMEOUT if columns.sent_ns[row] else NOT_SENT
        recorder.finish(row, error, 0, 0, words="the stage was stopped before the request ended")
