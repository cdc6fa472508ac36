"""What the steps of all suites share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from harness.base.fields import Duration, Strict
from harness.base.protocols import Protocol
from harness.load.distributed import Address
from harness.results.slo import Objective, parse_slo
from scenarios.model.objectives import Slo

Port = Literal["http", "grpc"]
Right = tuple[str, str, str]
"""A verb, an API group and a resource, as Kubernetes' roles name them."""


def _workers(value: object) -> object:
    Address.parse(str(value))
    return value


Workers = Annotated[
    str,
    BeforeValidator(_workers),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^(locust|cluster)://",
            "examples": ["locust://0.0.0.0:5557?expect=2", "cluster://?expect=4"],
        }
    ),
]


class Step(Strict):
    """What a suite is asked to do with a service. A suite's own model says what it needs for that."""

    if TYPE_CHECKING:
        suite: str  # each suite's model has it, as the literal of its name
    service: str = Field(description="a service of this scenario")
    name: str = Field("", description="how reports call the step; by default its suite, service and position")

    needs_golden: ClassVar[bool] = False
    """Golden outputs, which only a service with a model of the catalog has."""
    needs_knative: ClassVar[bool] = False
    through_ingress: ClassVar[bool] = True
    """Whether the answers must come the way that clients come; otherwise a port forwarded to a pod will do."""
    single_requests: ClassVar[bool] = False
    """Whether single requests over HTTP are sent beside the load, through the ingress."""

    def others(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Services besides ``service`` that the step names, each with the place of its name in the step."""
        return []

    def in_turn(self) -> bool:
        """Whether its services are deployed one after the other, each when it is its turn."""
        return False

    def asked(self) -> set[tuple[str, str]]:
        """Services and the protocols by which they are asked through the ingress."""
        return {(self.service, str(getattr(self, "protocol", "rest")))}

    def asks_grpc(self) -> bool:
        """Of a step whose answers need not come through the ingress: whether some must come by gRPC."""
        return False

    def generators_in_cluster(self) -> int:
        """How many load generators run in pods of the cluster."""
        return 0

    def rights(self) -> list[Right]:
        """What it does with the Kubernetes API beside deploying, watching and deleting services."""
        return []


class Traffic(Step):
    """What load and capacity steps share."""

    duration: Duration | None = Field(None, description="of the measured part, such as 30s")
    arrivals: Literal["constant", "poisson", "gamma"] = Field(
        "poisson", description="how requests of an open loop are spread over time"
    )
    burstiness: float = Field(1.0, gt=0, description="of gamma arrivals: 1 is Poisson, above it comes in bursts")
    protocol: Protocol = Field("rest", description="how the service is asked; openai is streamed chat")
    timeout: Duration = Field(10.0, validate_default=False, description="from the moment a request is due")
    connections: int = Field(256, ge=1, description="at most so many at once; more requests wait on the client's side")
    processes: int = Field(1, ge=1, le=64, description="generators; one a core")
    workers: Workers | None = Field(
        None,
        description="generators elsewhere, by Locust: locust://HOST:PORT?expect=N, where they connect to, or"
        " cluster://?expect=N in the cluster itself",
    )
    slo: list[Slo] = Field(default_factory=list, description="an objective, such as 'p99 < 50ms'")

    @field_validator("duration", "timeout")
    @classmethod
    def _some_time(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("expected more than 0s")
        return value

    @model_validator(mode="after")
    def _bursts_are_gammas(self) -> Traffic:
        if self.burstiness != 1 and self.arrivals != "gamma":
            raise ValueError("'burstiness' goes with 'arrivals: gamma'")
        if self.workers and self.processes != 1:
            raise ValueError("'processes' are generators on this machine, 'workers' elsewhere; expected one of them")
        return self

    def objectives(self) -> tuple[Objective, ...]:
        return tuple(parse_slo(text) for text in self.slo)

    def generators_in_cluster(self) -> int:
        address = Address.parse(self.workers) if self.workers else None
        return address.expect if address is not None and address.in_cluster else 0
