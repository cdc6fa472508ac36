"""What a scenario says of probes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.base.fields import Duration, Rate
from harness.base.protocols import Unary
from scenarios.model.steps import Right, Step


class ProbesStep(Step):
    """Whether readiness and liveness tell the truth: at start, under load, while draining and while rolling over."""

    single_requests: ClassVar[bool] = True

    suite: Literal["probes"]
    rate: Rate = Field(50.0, validate_default=False, description="of the load that runs all the time")
    busy: int = Field(32, ge=1, le=1024, description="clients of a closed loop that keep the service fully busy")
    duration: Duration = Field(10.0, validate_default=False, description="of each stage of load")
    protocol: Unary = "rest"
    timeout: Duration = Field(10.0, validate_default=False, description="of a request")
    ready_within: Duration = Field(300.0, validate_default=False, description="for a new pod")

    def rights(self) -> list[Right]:
        return [("delete", "", "pods"), ("get", "", "pods/proxy"), ("create", "", "pods/proxy")]
