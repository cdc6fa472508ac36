"""What a scenario says of a load step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.base.fields import Duration, Rate, Strict
from harness.load.arrivals import Segment
from harness.load.shapes import EXPECTED, parse_shape
from scenarios.model.steps import Traffic

Concurrency = Annotated[int, Field(ge=1)] | Literal["max"]


class Published(Strict):
    """What somebody else has measured and published, to stand beside ours; nothing is judged by it."""

    source: str = Field(description="where it is published, and on what machine it was measured")
    mean: Duration | None = None
    p50: Duration | None = None
    p90: Duration | None = None
    p95: Duration | None = None
    p99: Duration | None = None
    success: float | None = Field(None, ge=0, le=1, description="share of requests that succeeded")

    def latencies_s(self) -> dict[str, float]:
        values = {name: getattr(self, name) for name in ("mean", "p50", "p90", "p95", "p99")}
        return {name: value for name, value in values.items() if value is not None}


class LoadStep(Traffic):
    """How the service answers under load."""

    suite: Literal["load"]
    rate: Rate | None = Field(None, description="open loop: requests a second, whatever the server does")
    shape: str | None = Field(None, description=f"open loop, a rate over time: {EXPECTED.removeprefix('expected ')}")
    trace: Path | None = Field(None, description="open loop, a CSV file with a time in seconds first on each line")
    concurrency: Concurrency | None = Field(
        None,
        description="closed loop: so many clients, each waiting for its answer (1 is a single stream); or max: as many"
        " as bring the highest throughput",
    )
    think: Duration = Field(0.0, validate_default=False, description="between an answer and the client's next request")
    published: Published | None = Field(None, description="figures to stand beside ours in the report")
    warmup: Duration | Literal["steady"] = Field(
        1.0, validate_default=False, description="sent before, and not in the result; or until the service is steady"
    )

    @model_validator(mode="after")
    def _one_loop(self) -> LoadStep:
        given = [self.rate, self.shape, self.trace, self.concurrency]
        if sum(item is not None for item in given) != 1:
            raise ValueError("expected one of 'rate', 'shape', 'trace' (open loops) and 'concurrency' (closed loop)")
        if (self.duration is None) == (self.trace is None):
            raise ValueError("expected a 'duration', except with a 'trace', which has its own")
        if self.think and self.concurrency is None:
            raise ValueError("'think' goes with 'concurrency': an open loop waits for nobody")
        if self.rate is not None and self.duration is not None and self.rate * self.duration < 1:
            raise ValueError("expected at least one request: lengthen 'duration' or raise 'rate'")
        self.segments()
        return self

    def segments(self) -> list[Segment]:
        if self.shape is None:
            return []
        return parse_shape(self.shape, self.duration or 0.0)
