"""What is recorded of answers that come in pieces: server-sent events or messages, one token or a few each.

Source: WHATWG HTML, Server-sent events, 9.2.6; OpenAI API, streaming (``data: [DONE]`` ends the stream).
"""

from __future__ import annotations

import time
from array import array

import numpy as np
import numpy.typing as npt

DONE = b"[DONE]"


class StreamColumns:
    """One row a request: when its first event came, and how many there were; and every gap between two events."""

    def __init__(self, count: int) -> None:
        self.first_event_ns = np.zeros(count, np.int64)
        self.events = np.zeros(count, np.int32)
        self.finished = np.zeros(count, np.bool_)
        """Whether the end came: ``[DONE]``, or a stream's status OK."""
        self.gap_rows = array("q")
        self.gaps_ns = array("q")

    def grow(self) -> None:
        for name in ("first_event_ns", "events", "finished"):
            values = getattr(self, name)
            setattr(self, name, np.concatenate([values, np.zeros_like(values)]))

    def relative(self, start_ns: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
        first = self.first_event_ns[:count]
        return {
            "first_event_ns": np.where(first == 0, -1, first - start_ns),
            "events": self.events[:count],
            "finished": self.finished[:count],
        }


class Events:
    """The events of one answer, as they arrive."""

    def __init__(self, columns: StreamColumns, row: int) -> None:
        self._columns = columns
        self._row = row
        self._rest = b""
        self._last_ns = 0

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if line[5:].strip() == DONE:
                self.finish()
            else:
                self.event()

    def event(self) -> None:
        now = time.monotonic_ns()
        columns, row = self._columns, self._row
        columns.events[row] += 1
        if self._last_ns:
            columns.gap_rows.append(row)
            columns.gaps_ns.append(now - self._last_ns)
        else:
            columns.first_event_ns[row] = now
        self._last_ns = now

    def finish(self) -> None:
        self._columns.finished[self._row] = True
