"""What a suite learns, as immutable records.

A verdict is a pure function of these, so they must survive a JSON round trip unchanged: every field is a plain value.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.columns import elapsed_s, let_go, pieces


class Level(StrEnum):
    """How much a requirement binds (RFC 2119). A MAY is reported and never fails a run."""

    MUST = "must"
    SHOULD = "should"
    MAY = "may"


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ERROR = "error"
    """The check itself could not be carried out: no evidence either way, so never a pass."""
    UNDECIDED = "undecided"
    """It was carried out, and the sample is too small to say: never a pass. ``reason`` says what would decide it."""


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, kept as evidence. ``request`` is a line that a person can run again."""

    request: str
    sent: str
    status: str
    received: str


@dataclass(frozen=True)
class Deviation:
    """A known difference of a runtime version from the specification."""

    reason: str
    issue: str = ""


@dataclass(frozen=True)
class CheckResult:
    id: str
    suite: str
    level: Level
    outcome: Outcome
    service: str
    runtime: str
    requirement: str
    source: str
    expected: str = ""
    observed: str = ""
    reason: str = ""
    duration_s: float = 0.0
    evidence: tuple[Exchange, ...] = ()
    deviation: Deviation | None = None
    step: str = ""
    """The scenario step that asked; empty for a command of its own."""

    @property
    def group(self) -> str:
        """``rest.errors`` of ``rest.errors.empty_body.status``."""
        return ".".join(self.id.split(".")[:2])

    @property
    def known(self) -> bool:
        """Failed in the way that the runtime's list of deviations says it does."""
        return self.deviation is not None and self.outcome in (Outcome.FAILED, Outcome.ERROR)

    @property
    def gone(self) -> bool:
        """Listed as a deviation, and yet it passed: the list is out of date, which is news as well."""
        return self.deviation is not None and self.outcome is Outcome.PASSED

    @property
    def deviation_reason(self) -> str:
        return self.deviation.reason if self.deviation else ""

    @property
    def fails_run(self) -> bool:
        """SHOULD and MAY are reported; a MUST, an error, or a list that is out of date decides."""
        if self.gone:
            return True
        if self.known:
            return False
        if self.outcome is Outcome.ERROR:
            return True
        return self.outcome in (Outcome.FAILED, Outcome.UNDECIDED) and self.level is Level.MUST


@dataclass(frozen=True)
class Measurement:
    """A number with its unit, how many observations made it, and its 95 % confidence interval where there is one."""

    name: str
    value: float
    unit: str
    n: int
    service: str = ""
    step: str = ""
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True)
class TimelineEvent:
    """``monotonic_s`` orders and compares; ``wall`` (UTC, ISO 8601) is for people."""

    source: str
    object: str
    what: str
    detail: str = ""
    monotonic_s: float = field(default_factory=time.monotonic)
    wall: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


@dataclass(frozen=True)
class SampleBatch:
    """Columns of a load stage, one row a request, in the order of the due times.

    Times are int64 nanoseconds on one monotonic clock, counted from the start of the stage; -1 where the moment never
    came (a request that was never answered has no first byte). ``done`` is always set: a request that failed is done
    when it failed, so that errors stay in the sample.
    """

    service: str
    step: str
    due_ns: npt.NDArray[np.int64]
    dispatched_ns: npt.NDArray[np.int64]
    """When the generator took the request up; from here to ``sent_ns`` it waited for a connection."""
    sent_ns: npt.NDArray[np.int64]
    first_byte_ns: npt.NDArray[np.int64]
    done_ns: npt.NDArray[np.int64]
    status: npt.NDArray[np.int32]
    bytes: npt.NDArray[np.int64]
    error: npt.NDArray[np.int16]
    """Index into ``error_classes``; 0 is no error."""
    error_classes: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.due_ns.size)

    @property
    def failed(self) -> npt.NDArray[np.bool_]:
        return np.not_equal(self.error, 0)

    @property
    def latency_s(self) -> npt.NDArray[np.float64]:
        """From the due time, so that a stalled server cannot hide its stall; infinite where the request failed, so that
        a failing one cannot hide that. A row each, in the order of the due times."""
        return self._until_done_s(self.due_ns)

    @property
    def service_time_s(self) -> npt.NDArray[np.float64]:
        """From the actual send, of requests that succeeded."""
        times = self._until_done_s(self.sent_ns)
        return times[np.isfinite(times)]

    @property
    def from_dispatch_s(self) -> npt.NDArray[np.float64]:
        """Latency without the generator's own delay, of requests that succeeded."""
        times = self._until_done_s(self.dispatched_ns)
        return times[np.isfinite(times)]

    def _until_done_s(self, since_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """A row each, infinite where the request failed; never holds more of mapped columns than a few pieces."""
        times = np.empty(len(self))
        for number, part in enumerate(pieces(len(self))):
            times[part] = (self.done_ns[part] - since_ns[part]) / 1e9
            times[part][self.error[part] != 0] = np.inf
            if number % 8 == 7:
                let_go(self.done_ns, since_ns, self.error)
        let_go(self.done_ns, since_ns, self.error)
        return times

    @property
    def send_lag_s(self) -> npt.NDArray[np.float64]:
        """How late the generator was; waiting for a connection is the server's doing and not part of it."""
        return elapsed_s(self.dispatched_ns, self.due_ns)


@dataclass(frozen=True)
class ErrorSeen:
    """Errors of one class and status in what was measured, and the first that the generator met."""

    kind: str
    """The error class of the samples."""
    status: int
    """Of HTTP, or the number of the gRPC status; 0 where no answer had one."""
    count: int
    first_s: float
    """From the start of the stage to the end of the first of those that are counted."""
    detail: str
    """The first bytes of the body, the gRPC status with its details, or what happened to the connection; control
    characters are visible as escapes."""
    location: str
    """Where a redirect leads."""

    @property
    def name(self) -> str:
        return f"{self.kind} ({self.status})" if self.status and self.kind != "grpc_status" else self.kind

    @property
    def said(self) -> str:
        """What there is to see of the first one; empty where nothing is."""
        where = f"to {self.location}" if self.location else ""
        return ", ".join(part for part in (where, f"'{self.detail}'" if self.detail else "") if part)

    @property
    def text(self) -> str:
        first = f"{self.count} {self.name}: first after {self.first_s:.3g} s"
        return f"{first}: {self.said}" if self.said else first


@dataclass(frozen=True)
class LoadResult:
    """A load stage in numbers; its samples lie beside it. Percentile keys: p50 … p99_9, max, mean.

    ``latency_s`` is of all requests, and infinite from the percentile on that failed ones have reached;
    ``success_latency_s`` and ``service_time_s`` are of those that succeeded.
    """

    service: str
    step: str
    runtime: str
    protocol: str
    offered: str
    """In words: the rate or its shape and the arrival process, or the number of clients."""
    offered_rate_per_s: float | None
    """The mean over the stage; None in a closed loop."""
    concurrency: int | None
    arrivals: str
    duration_s: float
    warmup_s: float
    requests: int
    errors: int
    errors_by_class: dict[str, int]
    achieved_rate_per_s: float
    goodput_per_s: dict[str, float]
    """By objective: successes a second that were within its bound on latency."""
    streaming: dict[str, dict[str, float]]
    """Of streamed answers, empty otherwise: ``ttft_s`` (time to first token, from the due time; infinite where none
    came or the request failed), ``gap_s`` (between two tokens of one answer), each with the percentile keys, and
    ``tokens`` (``total``, ``per_s``, ``per_answer``)."""
    latency_s: dict[str, float]
    latency_ci_s: dict[str, tuple[float, float]]
    """95 %, for requests that depend on each other; of percentiles for which the stage was long enough."""
    service_time_s: dict[str, float]
    send_lag_s: dict[str, float]
    error_rate_ci: tuple[float, float]
    """95 %, as ``latency_ci_s``."""
    generator_cpu: float
    """Processor time of the busiest generator as a share of one core."""
    generator_stall_s: float
    """How long a generator's event loop stood still at most."""
    generators: int
    valid: bool
    invalid_reason: str
    checked_answers: int
    samples: str
    seed: int
    started_s: float | None = None
    """The stage's start on the clock of ``TimelineEvent.monotonic_s``; samples count from there."""
    success_latency_s: dict[str, float] = field(default_factory=dict)
    """Empty where none succeeded."""
    limited: int = 0
    """Requests that waited because the stage's limit on connections was reached."""
    taken_again: str = ""
    """Why a first try of this stage was not used; empty where there was none."""
    errors_seen: tuple[ErrorSeen, ...] = ()
    """By class and status, the most frequent first."""
    resent: int = 0
    """Requests that went out twice, warm-up included: the server had closed the connection before they reached it."""


@dataclass(frozen=True)
class ParityResult:
    """Served against expected outputs over one path. ``worst_index`` is the case, then the place in it, of the element
    that is furthest beyond its own tolerance, or nearest to it. ``excess`` is that element's error over its tolerance:
    1 is the limit, infinite what no tolerance covers."""

    service: str
    runtime: str
    comparison: str
    output: str
    datatype: str
    elements: int
    max_abs_error: float
    max_rel_error: float
    max_ulp: int | None
    argmax_agreement: float | None
    worst_index: tuple[int, ...]
    worst_expected: str
    worst_observed: str
    tolerance: str
    within: bool
    step: str = ""
    excess: float = 0.0

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Orders outputs: the largest is the worst."""
        return not self.within, self.excess, self.max_abs_error


@dataclass(frozen=True)
class Series:
    """Columns of equal length over a suite's trials or its time, for plots and for whoever wants to look closer.

    ``kind`` names the columns: ``replicas`` (``t_s``, ``offered_per_s``, ``concurrency``, ``per_pod``, ``desired``,
    ``ready``, and the model's band ``low`` and ``high``), ``cold-start`` (a row a trial, a column a phase, in
    seconds), ``compare`` (a row a block: ``block``, ``variant``, and a column a metric), ``split`` (``t_s``,
    ``percent``, ``requests``, ``candidate``, ``errors``). Reports draw any other kind as lines over its first column.
    NaN where nothing is known.
    """

    kind: str
    service: str
    step: str
    columns: dict[str, list[float]]


@dataclass(frozen=True)
class Comparison:
    """One metric of a variant over that of the baseline: the ratio with its interval, and what that says.

    ``baseline_value`` and ``variant_value`` are medians over the blocks, in ``unit``; ``confidence`` is this interval's
    own, after the correction for several metrics; ``needed`` blocks of each would decide it, 0 where it is decided.
    ``paired``: blocks were taken in turns, so that drift is not in the ratio. ``replicates`` is what ``blocks`` counts:
    blocks of one run, or ``runs``, or ``one run``: then ``verdict`` is ``descriptive``, the interval (NaN where there
    is none) is of what varied within the two runs, and chance between runs is not in it.
    """

    service: str
    step: str
    baseline: str
    variant: str
    metric: str
    unit: str
    baseline_value: float
    variant_value: float
    ratio: float
    low: float
    high: float
    confidence: float
    margin: float
    verdict: str
    blocks: int
    needed: int
    paired: bool
    replicates: str = "blocks"


Record = CheckResult | Comparison | Measurement | TimelineEvent | SampleBatch | LoadResult | ParityResult | Series


def to_json(record: Any) -> dict[str, Any]:
    return {item.name: plain(getattr(record, item.name)) for item in dataclasses.fields(record)}


def plain(value: Any) -> Any:
    """For JSON, which has no infinity and no NaN: they stand as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def check_from_json(data: dict[str, Any]) -> CheckResult:
    deviation = data.get("deviation")
    return CheckResult(
        **{
            **data,
            "level": Level(data["level"]),
            "outcome": Outcome(data["outcome"]),
            "evidence": tuple(Exchange(**item) for item in data.get("evidence", ())),
            "deviation": Deviation(**deviation) if deviation else None,
        }
    )


def load_from_json(data: dict[str, Any]) -> LoadResult:
    floats = {
        key: {name: float(value) for name, value in data.get(key, {}).items()}
        for key in ("latency_s", "success_latency_s", "service_time_s", "send_lag_s")
    }
    intervals = {name: (float(low), float(high)) for name, (low, high) in data["latency_ci_s"].items()}
    streaming = {name: {k: float(v) for k, v in values.items()} for name, values in data["streaming"].items()}
    low, high = data["error_rate_ci"]
    return LoadResult(
        **{
            **data,
            **floats,
            "latency_ci_s": intervals,
            "streaming": streaming,
            "error_rate_ci": (float(low), float(high)),
            "errors_seen": tuple(ErrorSeen(**item) for item in data.get("errors_seen", ())),
        }
    )


def parity_from_json(data: dict[str, Any]) -> ParityResult:
    return ParityResult(
        **{
            **data,
            "max_abs_error": float(data["max_abs_error"]),
            "max_rel_error": float(data["max_rel_error"]),
            "excess": float(data.get("excess", 0.0)),
            "worst_index": tuple(data["worst_index"]),
        }
    )


def series_from_json(data: dict[str, Any]) -> Series:
    columns = {name: [float(value) for value in values] for name, values in data["columns"].items()}
    return Series(**{**data, "columns": columns})


def comparison_from_json(data: dict[str, Any]) -> Comparison:
    numbers = ("baseline_value", "variant_value", "ratio", "low", "high")
    return Comparison(**{**data, **{name: float(data[name]) for name in numbers}})


def measurement_from_json(data: dict[str, Any]) -> Measurement:
    return Measurement(**{**data, "value": float(data["value"])})
