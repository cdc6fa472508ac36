"""What a scenario says of a search for the capacity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.base.fields import Duration, Rate
from scenarios.model.steps import Traffic


class CapacityStep(Traffic):
    """The highest rate at which the service meets its objectives."""

    suite: Literal["capacity"]
    start: Rate = Field(10.0, validate_default=False, description="the first rate tried")
    most: Rate = Field(100_000.0, validate_default=False, description="no higher rate is tried")
    tolerance: float = Field(0.05, gt=0, lt=1, description="how close the search comes, as a share of the rate")
    repeats: int = Field(3, ge=1, le=20, description="trials that must all meet the objectives at a rate")
    warmup: Duration = Field(1.0, validate_default=False, description="of each trial")

    @model_validator(mode="after")
    def _has_a_goal(self) -> CapacityStep:
        if not self.slo:
            raise ValueError("expected at least one objective in 'slo'")
        if self.duration is None:
            raise ValueError("expected a 'duration', of each trial")
        if self.start > self.most:
            raise ValueError("expected 'start' to be at most 'most'")
        return self
