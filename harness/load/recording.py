"""What a worker writes down of each request: fixed columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.columns import Room, let_go

ERRORS = (
    "",
    "connect",
    "reset",
    "timeout",
    "http_4xx",
    "http_5xx",
    "http_other",
    "protocol",
    "truncated",
    "grpc_status",
    "wrong_answer",
    "not_sent",
    "redirect",
)
"""Error classes by number; 0 is no error. ``truncated``: the connection ended within an answer. ``not_sent``: the run
was stopped before the request was sent. ``redirect``: a status 3xx. New classes go to the end: samples hold numbers."""
CONNECT, RESET, TIMEOUT, HTTP_4XX, HTTP_5XX, HTTP_OTHER = range(1, 7)
PROTOCOL, TRUNCATED, GRPC_STATUS, WRONG_ANSWER, NOT_SENT, REDIRECT = range(7, len(ERRORS))


def count_errors(errors: npt.NDArray[np.int16]) -> dict[str, int]:
    """How many of each class there are; classes that did not occur are left out."""
    counts = np.bincount(errors, minlength=len(ERRORS))
    return {name: int(count) for name, count in zip(ERRORS, counts, strict=True) if name and count}


TIMES = ("due_ns", "dispatched_ns", "sent_ns", "first_byte_ns", "done_ns")
COLUMNS = {**dict.fromkeys(TIMES, "int64"), "status": "int32", "bytes": "int64", "error": "int16"}


class Columns:
    """One row a request. ``due_ns`` counts from the stage's start, the other times are ``time.monotonic_ns``; 0 where
    the moment never came. Rows before ``settled`` have been written down elsewhere, and are gone from here."""

    due_ns: npt.NDArray[np.int64]
    dispatched_ns: npt.NDArray[np.int64]
    sent_ns: npt.NDArray[np.int64]
    first_byte_ns: npt.NDArray[np.int64]
    done_ns: npt.NDArray[np.int64]
    status: npt.NDArray[np.int32]
    bytes: npt.NDArray[np.int64]
    error: npt.NDArray[np.int16]

    def __init__(self, count: int, due_ns: npt.NDArray[np.int64] | None = None) -> None:
        """``due_ns`` are those of an open loop, for ``count`` rows; a closed loop writes its own."""
        self.settled = 0
        self._rooms: dict[str, Room] = {}
        for name, dtype in COLUMNS.items():
            if name == "due_ns" and due_ns is not None:
                self.due_ns = due_ns
            else:
                room = self._rooms[name] = Room(count, dtype)
                setattr(self, name, room.array)

    def is_done(self, row: int) -> bool:
        return row < self.settled or bool(self.done_ns[row])

    def grow(self) -> None:
        """Doubles the room, for closed loops: nobody knows the number of their requests before."""
        count = self.due_ns.size
        for name in self._rooms:
            room = Room(2 * count, COLUMNS[name])
            room.array[self.settled : count] = getattr(self, name)[self.settled :]
            self._rooms[name] = room
            setattr(self, name, room.array)

    def relative(self, start_ns: int, first: int, last: int) -> dict[str, npt.NDArray[Any]]:
        """Rows ``first`` to ``last``, times counted from ``start_ns``, -1 where the moment never came."""
        columns: dict[str, npt.NDArray[Any]] = {}
        for name in COLUMNS:
            values = getattr(self, name)[first:last]
            if name in TIMES and name != "due_ns":
                values = np.where(values == 0, -1, values - start_ns)
            columns[name] = values
        return columns

    def settle(self, last: int) -> None:
        """Rows before ``last``, a multiple of ``WHOLE_PAGES_ROWS``, are done and written down; their memory is free."""
        first, self.settled = self.settled, last
        for room in self._rooms.values():
            room.discard(first, last)
        let_go(self.due_ns)


def error_of_status(status: int) -> int:
    if 200 <= status < 300:
        return 0
    if 300 <= status < 400:
        return REDIRECT
    if 400 <= status < 500:
        return HTTP_4XX
    return HTTP_5XX if 500 <= status < 600 else HTTP_OTHER


@dataclass(frozen=True)
class Example:
    """The first of its kind of error: what there was to see of it, with control characters visible."""

    at_s: float
    """From the start of the stage to the end of the request."""
    detail: str
    """The first bytes of the body; the name of a gRPC status and its details; the words of an exception."""
    location: str = ""
    """Where a redirect leads."""


Examples = Mapping[tuple[int, int], Example]
"""By error class and status."""


def first_examples(parts: Iterable[Examples]) -> dict[tuple[int, int], Example]:
    """Of several generators: the earliest of each kind."""
    found: dict[tuple[int, int], Example] = {}
    for part in parts:
        for kind, one in part.items():
            if kind not in found or one.at_s < found[kind].at_s:
                found[kind] = one
    return found
