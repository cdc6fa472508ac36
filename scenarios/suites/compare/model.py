"""What a scenario says of a comparison."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.base.fields import Duration, Rate, Share, Strict
from harness.base.protocols import Profile, Unary
from scenarios.model.counters import Counter
from scenarios.model.steps import Right, Traffic


class Against(Strict):
    """What the baseline is compared with: another service, or the same one by another protocol."""

    name: str = Field("", description="how reports call it; by default the service and the protocol")
    service: str | None = Field(None, description="a service of this scenario; the step's own by default")
    protocol: Unary | None = Field(None, description="the step's own by default")
    price_per_hour: float | None = Field(None, gt=0, description="of what it runs on; the step's own by default")

    @model_validator(mode="after")
    def _differs(self) -> Against:
        if self.service is None and self.protocol is None:
            raise ValueError("expected another 'service', another 'protocol', or both")
        return self


CompareMetric = Literal[
    "p50", "p90", "p95", "p99", "mean", "throughput", "capacity", "cold_start", "cpu", "memory", "cost"
]


class CompareStep(Traffic):
    """Whether other variants are faster than this one: blocks of load in turns, ratios with intervals."""

    suite: Literal["compare"]
    against: list[Against] = Field(min_length=1, max_length=6)
    deploy: Literal["side_by_side", "in_turn"] = Field(
        "side_by_side", description="in_turn: one at a time, deployed anew for each block; for one GPU, say"
    )
    protocol: Unary = "rest"
    rate: Rate | None = Field(None, description="open loop: requests a second, of each block")
    concurrency: int | None = Field(None, ge=1, description="closed loop: so many clients, of each block")
    rounds: int = Field(12, ge=6, le=1000, description="blocks of each variant")
    warmup: Duration = Field(0.5, validate_default=False, description="of each block")
    margin: Share = Field(0.05, validate_default=False, description="what counts as equivalent, stated beforehand")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of all verdicts together")
    metrics: list[CompareMetric] = Field(
        default=["p50", "p95", "p99"],
        min_length=1,
        description="capacity: the highest rate that meets 'slo', searched for in each block from 'rate' on;"
        " cold_start: from deploying to the first answer, with deploy: in_turn; cpu: seconds a request; memory: the"
        " most seen; cost: of a million requests",
    )
    tolerance: float = Field(0.05, gt=0, lt=1, description="how close the search for the capacity comes")
    fail_on: list[Literal["slower", "undecided", "faster", "parity", "conformance"]] = Field(
        default_factory=list, description="verdicts and differences that fail the run; none by default"
    )
    conformance: list[Profile] = Field(
        default_factory=list, description="profiles that each variant is checked for, to say how they differ"
    )
    price_per_hour: float | None = Field(None, gt=0, description="of what the baseline runs on, in any currency")
    cpu: Counter | None = Field(
        None, description="a counter of CPU seconds that pods keep; 'metrics: [cpu]' without it asks the kubelets"
    )
    memory: Counter | None = Field(
        None, description="a gauge of bytes that pods keep; 'metrics: [memory]' without it asks the kubelets"
    )

    @model_validator(mode="after")
    def _one_loop(self) -> CompareStep:
        if (self.rate is None) == (self.concurrency is None):
            raise ValueError("expected one of 'rate' (open loop) and 'concurrency' (closed loop)")
        if self.duration is None:
            raise ValueError("expected a 'duration', of each block")
        if self.workers:
            raise ValueError("blocks are sent from this machine: leave 'workers' out")
        if "throughput" in self.metrics and self.rate is not None:
            raise ValueError("'throughput' needs 'concurrency': with a rate it is the rate")
        return self

    @model_validator(mode="after")
    def _metrics_fit(self) -> CompareStep:
        searched = "capacity" in self.metrics
        if searched != bool(self.slo):
            raise ValueError(
                "'slo' goes with 'metrics: [capacity]', the highest rate that meets it; expected both or none"
            )
        if searched and self.rate is None:
            raise ValueError("'capacity' needs a 'rate', from which the search begins")
        if others := [
            name
            for name in self.metrics
            if searched and name not in ("capacity", "cold_start", "cpu", "memory", "cost")
        ]:
            raise ValueError(
                f"at a rate of its own each variant has another {others[0]}: leave it out beside 'capacity'"
            )
        if "cold_start" in self.metrics and self.deploy != "in_turn":
            raise ValueError("'cold_start' needs 'deploy: in_turn', which deploys before each block")
        if ("cost" in self.metrics) != (self.price_per_hour is not None):
            raise ValueError("'price_per_hour' goes with 'metrics: [cost]'; expected both or none")
        if "cost" in self.metrics and not searched and self.concurrency is None:
            raise ValueError("'cost' needs 'concurrency' or 'capacity': with a rate, requests cost what the rate says")
        if self.deploy == "in_turn" and any(item.service is None for item in self.against):
            raise ValueError("'deploy: in_turn' needs another 'service' for each variant")
        return self

    def others(self) -> list[tuple[tuple[str | int, ...], str]]:
        return [
            (("against", place, "service"), item.service)
            for place, item in enumerate(self.against)
            if item.service is not None
        ]

    def in_turn(self) -> bool:
        return self.deploy == "in_turn"

    def asked(self) -> set[tuple[str, str]]:
        return {
            (self.service, self.protocol),
            *((item.service or self.service, item.protocol or self.protocol) for item in self.against),
        }

    def rights(self) -> list[Right]:
        kubelets = ("cpu" in self.metrics and self.cpu is None) or ("memory" in self.metrics and self.memory is None)
        return [("get", "", "nodes/proxy")] if kubelets else []
