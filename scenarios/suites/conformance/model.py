"""What a scenario says of a conformance step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from harness.base.fields import Duration
from harness.base.protocols import Profile
from scenarios.model.steps import Step


class ConformanceStep(Step):
    """Whether the service speaks the Open Inference Protocol."""

    through_ingress: ClassVar[bool] = False

    suite: Literal["conformance"]
    profiles: list[Profile] = Field(default=["rest", "grpc"], description="repository unloads the model for a moment")
    fuzz: Duration | None = Field(None, description="afterwards, requests that nobody wrote down, for so long")
    metrics: str = Field("/metrics", description="where the service speaks to Prometheus: a path, or a whole URL")

    @field_validator("fuzz")
    @classmethod
    def _some_fuzz(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("expected more than 0s; leave it out for none")
        return value

    def asks_grpc(self) -> bool:
        return "grpc" in self.profiles
