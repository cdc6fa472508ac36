"""What a scenario file may say: the cluster, the services, and the steps that are carried out on them.

The JSON schema of the format comes from these models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from cluster.model import ClusterChoice, Local
from harness.base.fields import NAME, Duration, Rate, Share, Strict
from harness.load.arrivals import Segment
from harness.load.distributed import Address
from harness.load.shapes import EXPECTED, parse_shape
from harness.results.slo import Objective, parse_slo
from harness.target.numeric import Tolerance
from scenarios.model.objectives import Slo


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


class Service(Strict):
    """One InferenceService: a runtime and a model of the catalog, or a whole manifest."""

    runtime: str | None = Field(None, description="a runtime of the catalog, NAME or NAME@VERSION")
    model: str | None = Field(None, description="a model of the catalog")
    predictor: dict[str, Any] = Field(
        default_factory=dict, description="fields of spec.predictor, passed through unchanged (minReplicas, timeout, …)"
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="of the InferenceService itself")
    faults: list[str] = Field(
        default_factory=list,
        description="what the embedded cluster does wrong on purpose, such as slow-load=3s",
    )
    manifest: dict[str, Any] | None = Field(None, description="a whole InferenceService, instead of runtime and model")
    expose: Literal["http", "grpc"] = Field(
        "http", description="the port that Knative routes to: it has one a service; with grpc it speaks h2c"
    )
    served_model: str | None = Field(
        None, description="the model's name in URLs, where it is not the service's (with manifest)"
    )
    ready_within: Duration = Field(300.0, validate_default=False, description="how long it may take to become ready")

    @model_validator(mode="after")
    def _one_way(self) -> Service:
        own_model = "storageUri" in (self.predictor.get("model") or {})
        if self.manifest is None and (self.runtime is None or (self.model is None and not own_model)):
            raise ValueError("expected either 'runtime' and 'model' (or predictor.model.storageUri), or 'manifest'")
        if self.manifest is not None and self.expose == "grpc":
            raise ValueError("'expose' cannot be given beside 'manifest': write the port into the manifest")
        if self.manifest is not None and self.predictor:
            raise ValueError("'predictor' cannot be given beside 'manifest': write the fields into the manifest")
        return self


class Variant(Strict):
    """Another version of a service: what is not given stays as the service has it."""

    runtime: str | None = Field(None, description="a runtime of the catalog, NAME or NAME@VERSION")
    model: str | None = Field(None, description="a model of the catalog")
    predictor: dict[str, Any] = Field(
        default_factory=dict, description="fields of spec.predictor, merged into those of the service"
    )

    @model_validator(mode="after")
    def _differs(self) -> Variant:
        if self.runtime is None and self.model is None and not self.predictor:
            raise ValueError("expected a 'runtime', a 'model' or fields of a 'predictor' that are not the service's")
        return self


class _Step(Strict):
    service: str = Field(description="a service of this scenario")
    name: str = Field("", description="how reports call the step; by default its suite, service and position")


class ConformanceStep(_Step):
    """Whether the service speaks the Open Inference Protocol."""

    suite: Literal["conformance"]
    profiles: list[Literal["rest", "binary", "grpc", "repository", "statistics", "openai", "generate", "metrics"]] = (
        Field(default=["rest", "grpc"], description="repository unloads the model for a moment")
    )
    fuzz: Duration | None = Field(None, description="afterwards, requests that nobody wrote down, for so long")
    metrics: str = Field("/metrics", description="where the service speaks to Prometheus: a path, or a whole URL")

    @field_validator("fuzz")
    @classmethod
    def _some_fuzz(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("expected more than 0s; leave it out for none")
        return value


class ToleranceChoice(Strict):
    relative: float = Field(0.0, ge=0, allow_inf_nan=False)
    absolute: float = Field(0.0, ge=0, allow_inf_nan=False)


class ParityStep(_Step):
    """Whether the service gives the numbers that the model's framework gives offline."""

    suite: Literal["parity"]
    tolerances: dict[str, ToleranceChoice] = Field(default_factory=dict, description="by datatype, such as FP32")

    def chosen(self) -> dict[str, Tolerance]:
        return {name: Tolerance(item.relative, item.absolute) for name, item in self.tolerances.items()}


class _Traffic(_Step):
    """What load and capacity steps share."""

    duration: Duration | None = Field(None, description="of the measured part")
    arrivals: Literal["constant", "poisson", "gamma"] = "poisson"
    burstiness: float = Field(1.0, gt=0, description="of gamma arrivals: 1 is Poisson, above it comes in bursts")
    protocol: Literal["rest", "binary", "grpc", "grpc-stream", "openai"] = "rest"
    timeout: Duration = Field(10.0, validate_default=False, description="from the moment a request is due")
    connections: int = Field(256, ge=1, description="at most so many at once; more requests wait on the client's side")
    processes: int = Field(1, ge=1, le=64, description="generators; one a core")
    workers: Workers | None = Field(
        None,
        description="generators elsewhere, by Locust: locust://HOST:PORT?expect=N, where they connect to, or"
        " cluster://?expect=N in the cluster itself",
    )
    slo: list[Slo] = Field(default_factory=list)

    @field_validator("duration", "timeout")
    @classmethod
    def _some_time(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("expected more than 0s")
        return value

    @model_validator(mode="after")
    def _bursts_are_gammas(self) -> _Traffic:
        if self.burstiness != 1 and self.arrivals != "gamma":
            raise ValueError("'burstiness' goes with 'arrivals: gamma'")
        if self.workers and self.processes != 1:
            raise ValueError("'processes' are generators on this machine, 'workers' elsewhere; expected one of them")
        return self

    def objectives(self) -> tuple[Objective, ...]:
        return tuple(parse_slo(text) for text in self.slo)


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


class LoadStep(_Traffic):
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


class CapacityStep(_Traffic):
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


class Counter(Strict):
    """A counter of inference requests that each pod keeps, read through the API server."""

    metric: str = Field(description="a Prometheus counter; its samples of all labels are added up")
    port: int = Field(8080, ge=1, le=65535, description="of the container")
    path: str = "/metrics"


class Against(Strict):
    """What the baseline is compared with: another service, or the same one by another protocol."""

    name: str = Field("", description="how reports call it; by default the service and the protocol")
    service: str | None = Field(None, description="a service of this scenario; the step's own by default")
    protocol: Literal["rest", "binary", "grpc"] | None = Field(None, description="the step's own by default")
    price_per_hour: float | None = Field(None, gt=0, description="of what it runs on; the step's own by default")

    @model_validator(mode="after")
    def _differs(self) -> Against:
        if self.service is None and self.protocol is None:
            raise ValueError("expected another 'service', another 'protocol', or both")
        return self


CompareMetric = Literal[
    "p50", "p90", "p95", "p99", "mean", "throughput", "capacity", "cold_start", "cpu", "memory", "cost"
]


class CompareStep(_Traffic):
    """Whether other variants are faster than this one: blocks of load in turns, ratios with intervals."""

    suite: Literal["compare"]
    against: list[Against] = Field(min_length=1, max_length=6)
    deploy: Literal["side_by_side", "in_turn"] = Field(
        "side_by_side", description="in_turn: one at a time, deployed anew for each block; for one GPU, say"
    )
    protocol: Literal["rest", "binary", "grpc"] = "rest"
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
    conformance: list[Literal["rest", "binary", "grpc", "repository", "statistics", "openai", "generate"]] = Field(
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


Percent = Annotated[int, Field(ge=1, le=99)]
Phase = Literal["created", "node", "scheduled", "storage", "image", "started", "ready", "first_byte", "total"]


class ColdStartStep(_Step):
    """How long a service that is scaled to zero takes to answer, and where the time goes."""

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


class AutoscalingStep(_Traffic):
    """How the number of pods follows the load."""

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


class CanaryStep(_Step):
    """Whether a new version can be rolled out by parts, and taken back, without a request being lost."""

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
    protocol: Literal["rest", "binary", "grpc"] = "rest"
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


class ProbesStep(_Step):
    """Whether readiness and liveness tell the truth: at start, under load, while draining and while rolling over."""

    suite: Literal["probes"]
    rate: Rate = Field(50.0, validate_default=False, description="of the load that runs all the time")
    busy: int = Field(32, ge=1, le=1024, description="clients of a closed loop that keep the service fully busy")
    duration: Duration = Field(10.0, validate_default=False, description="of each stage of load")
    protocol: Literal["rest", "binary", "grpc"] = "rest"
    timeout: Duration = Field(10.0, validate_default=False, description="of a request")
    ready_within: Duration = Field(300.0, validate_default=False, description="for a new pod")


Step = Annotated[
    ConformanceStep
    | ParityStep
    | LoadStep
    | CapacityStep
    | CompareStep
    | ColdStartStep
    | AutoscalingStep
    | CanaryStep
    | ProbesStep,
    Field(discriminator="suite"),
]


class Scenario(Strict):
    """A servecert scenario."""

    name: str = Field(pattern=NAME)
    description: str = ""
    seed: int = 1
    cluster: ClusterChoice = Field(default_factory=Local)
    namespace: str = Field("servecert", pattern=NAME)
    services: dict[Annotated[str, Field(pattern=NAME)], Service] = Field(min_length=1)
    steps: list[Step] = Field(min_length=1)

    def in_turn(self) -> set[str]:
        """Services that are deployed when it is their turn in a comparison, and not before."""
        found: set[str] = set()
        for step in self.steps:
            if isinstance(step, CompareStep) and step.deploy == "in_turn":
                found |= {step.service, *(item.service for item in step.against if item.service is not None)}
        return found

    def step_name(self, index: int) -> str:
        step = self.steps[index]
        return step.name or f"{index + 1}-{step.suite}-{step.service}"
