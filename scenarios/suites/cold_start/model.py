"""What a scenario says of cold starts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from harness.base.fields import Duration
from scenarios.model.steps import Step

Phase = Literal["created", "node", "scheduled", "storage", "image", "started", "ready", "first_byte", "total"]


class ColdStartStep(Step):
    """How long a service that is scaled to zero takes to answer, and where the time goes."""

    needs_knative: ClassVar[bool] = True
    single_requests: ClassVar[bool] = True

    suite: Literal["cold-start"]
    trials: int = Field(5, ge=1, le=100)
    requests: int = Field(4, ge=1, le=1000, description="sent at once to the cold service; each must be answered")
    warm: int = Field(30, ge=5, le=10_000, description="requests, one after the other, to compare the first one with")
    within: Duration = Field(120.0, validate_default=False, description="for the cold requests to be answered")
    zero_within: Duration = Field(180.0, validate_default=False, description="for the pods to go, idle, before a trial")
    budget: dict[Phase, Duration] = Field(
        default_factory=dict,
        description="how long a phase may take, at the median, with 95 % confidence; total is all of it",
    )

    @field_validator("within", "zero_within")
    @classmethod
    def _some_time(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("expected more than 0s")
        return value

    @field_validator("budget")
    @classmethod
    def _some_budget(cls, value: dict[Phase, float]) -> dict[Phase, float]:
        for name, limit_s in value.items():
            if limit_s <= 0:
                raise ValueError(f"{name}: expected more than 0s")
        return value
