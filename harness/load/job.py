"""What a worker is asked to do, as plain values in ``job.json``; for an open loop, ``due_ns`` lies beside it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from harness.base.protocols import Protocol

STREAMED = ("grpc-stream", "openai")
"""Protocols whose answers come in pieces, which are timed one by one."""
DUE = "due_ns"
"""The file of an open loop's due times: int64, nanoseconds from the start."""
ID_WIDTH = 12
ID_PLACEHOLDER = "~" * ID_WIDTH
"""Stands in a body where each request's own number goes; as wide as every number is written."""


@dataclass(frozen=True)
class Request:
    """``target`` is an HTTP path or a gRPC method; ``headers`` are HTTP only; ``body`` is a file beside the job.

    ``weight`` is how often it is sent compared with the others.
    """

    target: str
    headers: dict[str, str]
    body: str
    weight: float = 1.0


@dataclass(frozen=True)
class Job:
    """``concurrency`` makes a closed loop of ``duration_s``; None is an open loop over the due times.

    ``check_every``: one answer in so many is kept for inspection. ``cycle`` says which request a row sends: row r sends
    ``cycle[r % len(cycle)]``. A row's number is ``first_row + stride * k`` for the k-th of this worker.
    """

    protocol: Protocol
    host: str
    port: int
    authority: str
    requests: tuple[Request, ...]
    cycle: tuple[int, ...] = (0,)
    duration_s: float = 0.0
    concurrency: int | None = None
    think_s: float = 0.0
    timeout_s: float = 10.0
    connections: int = 256
    """An open loop has at most so many connections (over gRPC: calls under way), all its generators together."""
    tls: bool = False
    ca: str = ""
    """With TLS: the certificates to trust, as PEM; empty for the system's."""
    check_every: int = 100
    mark: str = ""
    """A response header whose value is kept of every answer (HTTP only); empty for none."""
    rows_in_memory: int = 1 << 19
    """When more than so many are done, they are written down while the stage goes on."""
    first_row: int = 0
    stride: int = 1

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.think_s < 0:
            raise ValueError("expected a timeout above 0 s, and no negative think time")
        if self.concurrency is not None and (self.concurrency < 1 or self.duration_s <= 0):
            raise ValueError("expected at least one client for more than 0 s")
        if not self.requests:
            raise ValueError("expected at least one request")

    def write(self, directory: Path) -> None:
        (directory / "job.json").write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(directory: Path) -> Job:
        data = json.loads((directory / "job.json").read_text())
        requests = tuple(Request(**item) for item in data["requests"])
        return Job(**{**data, "requests": requests, "cycle": tuple(data["cycle"])})
