"""What a scenario says of autoscaling."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from harness.base.fields import Duration, Rate
from harness.load.arrivals import Segment
from harness.load.shapes import EXPECTED, parse_shape
from scenarios.model.steps import Traffic


class AutoscalingStep(Traffic):
    """How the number of pods follows the load."""

    needs_knative: ClassVar[bool] = True
    single_requests: ClassVar[bool] = True

    suite: Literal["autoscaling"]
    rate: Rate | None = Field(None, description="a steady rate from a standing start")
    shape: str | None = Field(None, description=f"a rate over time: {EXPECTED.removeprefix('expected ')}")
    scale_out_within: Duration = Field(
        30.0, validate_default=False, description="from the moment that the load needs them until there are enough pods"
    )
    back_within: Duration = Field(
        120.0,
        validate_default=False,
        description="from the end of the load to the fewest pods, or to one",
    )
    zero_within: Duration | None = Field(
        None, description="from the end of the load to no pod, for a service with minReplicas 0"
    )
    overshoot: float = Field(1.5, ge=1, description="at most so many times the pods that the load needs")

    @model_validator(mode="after")
    def _one_shape(self) -> AutoscalingStep:
        if (self.rate is None) == (self.shape is None):
            raise ValueError("expected one of 'rate' and 'shape'")
        if self.duration is None:
            raise ValueError("expected a 'duration' of the load")
        if self.workers:
            raise ValueError("the load that scales a service comes from this machine: leave 'workers' out")
        self.segments()
        return self

    def segments(self) -> list[Segment]:
        return parse_shape(self.shape, self.duration or 0.0) if self.shape is not None else []
