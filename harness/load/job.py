"""What a worker is asked to do: one stage of load, as plain values in ``job.json``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Protocol = Literal["rest", "binary", "grpc"]


@dataclass(frozen=True)
class Request:
    """``target`` is an HTTP path or a gRPC method; ``headers`` are HTTP only; ``body`` is a file beside the job."""

    target: str
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class Job:
    """``rate_per_s`` makes an open loop, ``concurrency`` a closed one; exactly one of them is set.

    ``check_every``: one answer in so many is kept for inspection. ``duration_s`` counts after ``warmup_s``.
    """

    protocol: Protocol
    host: str
    port: int
    authority: str
    requests: tuple[Request, ...]
    duration_s: float
    rate_per_s: float | None = None
    concurrency: int | None = None
    arrivals: str = "poisson"
    warmup_s: float = 0.0
    timeout_s: float = 10.0
    connections: int = 256
    tls: bool = False
    seed: int = 1
    check_every: int = 100
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.rate_per_s is None) == (self.concurrency is None):
            raise ValueError("expected either a rate (open loop) or a concurrency (closed loop)")
        if self.duration_s <= 0 or self.warmup_s < 0 or self.timeout_s <= 0:
            raise ValueError("expected a duration and a timeout above 0 s, and no negative warm-up")
        if self.rate_per_s is not None and self.rate_per_s * self.duration_s < 1:
            raise ValueError(
                f"no request is due within {self.duration_s:g} s at {self.rate_per_s:g}/s;"
                " lengthen the stage or raise the rate"
            )
        if not self.requests:
            raise ValueError("expected at least one request")

    def write(self, directory: Path) -> None:
        (directory / "job.json").write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(directory: Path) -> Job:
        data = json.loads((directory / "job.json").read_text())
        return Job(**{**data, "requests": tuple(Request(**item) for item in data["requests"])})
