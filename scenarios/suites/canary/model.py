"""What a scenario says of a rollout."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.base.fields import Duration, Rate, Strict
from harness.base.protocols import Unary
from scenarios.model.counters import Counter
from scenarios.model.services import Variant
from scenarios.model.steps import Step

Percent = Annotated[int, Field(ge=1, le=99)]


class Guards(Strict):
    """What ends a roll-out by itself."""

    errors: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="how much larger the share of the candidate's requests that fail may be than that of the version"
        " before it; 0.001 takes 3,000 requests of the candidate, 0.01 takes 300",
    )
    latency_ratio: float | None = Field(
        1.5,
        gt=1,
        description="how many times slower the candidate may be, at equal load per pod; null does not compare them",
    )
    parity: bool = Field(True, description="whether its answers must be the same, within tolerance")


class ByHeader(Strict):
    header: str = Field(description="a response header that says which version answered")


class ByCounter(Strict):
    counter: Counter


class CanaryStep(Step):
    """Whether a new version can be rolled out by parts, and taken back, without a request being lost."""

    single_requests: ClassVar[bool] = True

    suite: Literal["canary-rollback"]
    candidates: list[Variant] = Field(
        min_length=1, max_length=5, description="new versions, rolled out one after the other"
    )
    told_apart: Literal["model_version"] | ByHeader | ByCounter = Field(
        "model_version",
        description="how answers of versions are told apart: by the model_version that they name, by a response header,"
        " or by counters that the pods keep",
    )
    percents: list[Percent] = Field(default=[10, 50], min_length=1, description="of the traffic, one after the other")
    rate: Rate = Field(50.0, validate_default=False, description="of the load that runs all the time")
    protocol: Unary = "rest"
    timeout: Duration = Field(10.0, validate_default=False, description="of a request")
    resolution: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="a split that is off by so much is found; it decides how many requests are needed",
    )
    settle: Duration = Field(1.0, validate_default=False, description="after the status says so, before requests count")
    ready_within: Duration = Field(300.0, validate_default=False, description="for a new revision")
    rollback_within: Duration = Field(10.0, validate_default=False, description="to the candidate's last answer")
    guards: Guards = Field(default_factory=lambda: Guards.model_validate({}))
    broken: bool = Field(True, description="also try a version whose model cannot be had; it must get no traffic")

    @model_validator(mode="after")
    def _rising(self) -> CanaryStep:
        if self.percents != sorted(set(self.percents)):
            raise ValueError(f"expected 'percents' to rise, got {self.percents}")
        if isinstance(self.told_apart, ByCounter) and self.guards.latency_ratio is not None:
            raise ValueError("counters do not say which version gave an answer: set guards.latency_ratio to null")
        return self
