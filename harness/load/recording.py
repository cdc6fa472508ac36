"""What a worker writes down of each request: fixed columns, allocated before the run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
)
"""Error classes by number; 0 is no error. ``truncated``: the connection ended within an answer. ``not_sent``: the run
was stopped before the request was sent."""
CONNECT, RESET, TIMEOUT, HTTP_4XX, HTTP_5XX, HTTP_OTHER, PROTOCOL, TRUNCATED, GRPC_STATUS, WRONG_ANSWER, NOT_SENT = (
    range(1, len(ERRORS))
)


def count_errors(errors: npt.NDArray[np.int16]) -> dict[str, int]:
    """How many of each class there are; classes that did not occur are left out."""
    counts = np.bincount(errors, minlength=len(ERRORS))
    return {name: int(count) for name, count in zip(ERRORS, counts, strict=True) if name and count}


def errors_text(errors: npt.NDArray[np.int16]) -> str:
    """The same in words; empty where there is none."""
    return ", ".join(f"{count} {name}" for name, count in count_errors(errors).items())


TIMES = ("due_ns", "dispatched_ns", "sent_ns", "first_byte_ns", "done_ns")


class Columns:
    """One row a request. Times are nanoseconds of ``time.monotonic_ns``; 0 where the moment never came."""

    def __init__(self, due_ns: npt.NDArray[np.int64]) -> None:
        count = due_ns.size
        self.due_ns = due_ns
        self.dispatched_ns = np.zeros(count, np.int64)
        self.sent_ns = np.zeros(count, np.int64)
        self.first_byte_ns = np.zeros(count, np.int64)
        self.done_ns = np.zeros(count, np.int64)
        self.status = np.zeros(count, np.int32)
        self.bytes = np.zeros(count, np.int64)
        self.error = np.zeros(count, np.int16)

    def relative(self, start_ns: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
        """The first ``count`` rows, times counted from ``start_ns``, -1 where the moment never came."""
        columns: dict[str, npt.NDArray[np.generic]] = {}
        for name in TIMES:
            values = getattr(self, name)[:count]
            columns[name] = np.where(values == 0, -1, values - start_ns)
        for name in ("status", "bytes", "error"):
            columns[name] = getattr(self, name)[:count]
        return columns


def error_of_status(status: int) -> int:
    if 200 <= status < 300:
        return 0
    if 400 <= status < 500:
        return HTTP_4XX
    return HTTP_5XX if 500 <= status < 600 else HTTP_OTHER
