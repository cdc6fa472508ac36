"""Load: one stage at a rate (open loop) or a concurrency (closed loop), judged against objectives."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import numpy.typing as npt

from harness.endpoint import Endpoint
from harness.errors import MeasurementError, ProtocolError, ServecertError, UnreachableError, UsageError
from harness.inputs import Case, cases_for
from harness.load.job import Job, Protocol, Request
from harness.load.recording import ERRORS, WRONG_ANSWER
from harness.load.runner import Progress, StageResult, WorkerError, run_stage
from harness.numeric import EXACT, TOLERANCES, distance
from harness.protocol.grpc_client import GrpcClient, infer_request
from harness.protocol.grpc_client import parse_infer as parse_grpc
from harness.protocol.messages import MESSAGES, SERVICE
from harness.protocol.rest import HEADER_LENGTH, RestAnswer, RestClient, binary_request, json_body, json_request
from harness.protocol.rest import parse_infer as parse_rest
from harness.protocol.tensors import InferResult, Tensor
from harness.records import CheckResult, Exchange, Level, LoadResult, Outcome, SampleBatch
from harness.slo import Objective
from harness.stats import percentile_intervals, summarize, wilson
from harness.units import format_duration

SUITE = "load"
LAG_SHARE, LAG_FLOOR_S = 0.05, 0.0005
"""A reported percentile may owe the generator's lateness a twentieth of itself, or half a millisecond."""
CPU_LIMIT = 0.95


@dataclass(frozen=True)
class Plan:
    """One stage. Exactly one of ``rate_per_s`` and ``concurrency`` is set."""

    name: str
    duration_s: float
    rate_per_s: float | None = None
    concurrency: int | None = None
    arrivals: str = "poisson"
    warmup_s: float = 1.0
    protocol: Protocol = "rest"
    timeout_s: float = 10.0
    connections: int = 256
    seed: int = 1
    objectives: tuple[Objective, ...] = ()

    @property
    def check_every(self) -> int:
        """One answer in so many is inspected: about 500 of a stage, and of a short one every third."""
        return max(3, round((self.rate_per_s or 1000) * self.duration_s / 500))


@dataclass(frozen=True)
class Encoded:
    """A case as it goes out, and what must come back. ``id`` is echoed by a conforming server.

    ``expected`` is empty where the model does not repeat itself; ``problem`` says why not even a single request got an
    answer that can be read.
    """

    request: Request
    body: bytes
    id: str
    expected: tuple[Tensor, ...] = ()
    problem: str = ""


async def load(
    endpoint: Endpoint, plan: Plan, samples_name: str, progress: Callable[[Progress], None]
) -> AsyncIterator[LoadResult | SampleBatch | CheckResult]:
    """Raises UnreachableError when the service does not answer before the stage, MeasurementError when nothing could
    be measured."""
    encoded = await _encode(endpoint, plan)
    job = _job(endpoint, plan, encoded)
    started = time.monotonic()
    try:
        stage = await run_stage(job, [item.body for item in encoded], progress)
    except WorkerError as error:
        raise MeasurementError(f"{plan.name}: {error}") from error
    wrong = _wrong_answers(plan.protocol, stage, encoded)
    error_column = stage.columns["error"].copy()
    error_column[list(wrong)] = WRONG_ANSWER
    columns = {**stage.columns, "error": error_column}
    measured = columns["due_ns"] >= int(plan.warmup_s * 1e9)
    if not measured.any():
        raise MeasurementError(f"{plan.name}: the stage ended before its warm-up did; nothing was measured")
    batch = SampleBatch(
        service=endpoint.service,
        step=plan.name,
        error_classes=ERRORS,
        **{name: values[measured] for name, values in columns.items()},
    )
    result = summarize_stage(endpoint, plan, columns, batch, stage, samples_name, len(stage.answers))
    yield batch
    yield result
    elapsed = round(time.monotonic() - started, 3)
    for check in _judge(endpoint, plan, result, wrong, encoded, elapsed):
        yield check


# Before the stage


async def _encode(endpoint: Endpoint, plan: Plan) -> list[Encoded]:
    """Each case is asked once alone: what nobody knows the right answer to is compared with that."""
    if plan.protocol == "grpc" and not endpoint.grpc_address:
        raise UsageError(f"{plan.name}: load over gRPC needs a gRPC address; give --grpc HOST:PORT")
    async with contextlib.AsyncExitStack() as stack:
        rest = await stack.enter_async_context(
            RestClient(endpoint.url, endpoint.model, host=endpoint.host, timeout_s=max(plan.timeout_s, 30))
        )
        grpc = None
        if endpoint.grpc_address:
            client = GrpcClient(endpoint.grpc_address, endpoint.model, authority=endpoint.host, timeout_s=30)
            grpc = await stack.enter_async_context(client)
        encoded = []
        for number, case in enumerate(await cases_for(endpoint, rest, grpc)):
            item = _encode_case(endpoint, plan, number, case)
            try:
                alone = await _ask(plan, item, rest, grpc)
                repeats = case.outputs is not None or _agree(alone, await _ask(plan, item, rest, grpc))
            except UnreachableError:
                raise
            except ServecertError as error:
                encoded.append(replace(item, problem=str(error)[:400]))
                continue
            expected = (case.outputs or alone.outputs) if repeats else ()
            encoded.append(replace(item, expected=expected))
    return encoded


def _agree(one: InferResult, other: InferResult) -> bool:
    return not any(_difference(tensor, other) for tensor in one.outputs)


def _difference(expected: Tensor, came: InferResult) -> str:
    """Where an output is not as expected; empty where it is."""
    try:
        near = distance(expected, came.output(expected.name), TOLERANCES.get(expected.datatype, EXACT))
    except (ProtocolError, ValueError) as error:
        return f"output {expected.name!r}: {error}"
    if near.within:
        return ""
    return f"{expected.name}{list(near.worst_index)}: expected {near.worst_expected}, got {near.worst_observed}"


def _encode_case(endpoint: Endpoint, plan: Plan, number: int, case: Case) -> Encoded:
    identifier = f"servecert-{number}"
    name = f"body-{number}.bin"
    if plan.protocol == "grpc":
        raw = any(tensor.datatype in ("FP16", "BF16") for tensor in case.inputs)
        message = infer_request(endpoint.model, case.inputs, request_id=identifier, raw=raw)
        return Encoded(Request(f"/{SERVICE}/ModelInfer", {}, name), message.SerializeToString(), identifier)
    path = f"{urlsplit(endpoint.url).path.rstrip('/')}/v2/models/{quote(endpoint.model, safe='')}/infer"
    if plan.protocol == "binary":
        body, length = binary_request(case.inputs, request_id=identifier)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}
    else:
        body = json_body(json_request(case.inputs, request_id=identifier))
        headers = {"Content-Type": "application/json"}
    return Encoded(Request(path, headers, name), body, identifier)


async def _ask(plan: Plan, item: Encoded, rest: RestClient, grpc: GrpcClient | None) -> InferResult:
    if plan.protocol == "grpc":
        assert grpc is not None
        return parse_grpc(await grpc.call("ModelInfer", MESSAGES["ModelInferRequest"].FromString(item.body)))
    return parse_rest(await rest.infer_raw(item.body, item.request.headers))


def _job(endpoint: Endpoint, plan: Plan, encoded: Sequence[Encoded]) -> Job:
    parts = urlsplit(endpoint.url)
    tls = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if tls else 80)
    authority = endpoint.host or parts.netloc
    if plan.protocol == "grpc":
        host, _, number = endpoint.grpc_address.rpartition(":")
        port, authority, tls = int(number), endpoint.host, False
    try:
        return Job(
            protocol=plan.protocol,
            host=host,
            port=port,
            authority=authority,
            tls=tls,
            requests=tuple(item.request for item in encoded),
            duration_s=plan.duration_s,
            rate_per_s=plan.rate_per_s,
            concurrency=plan.concurrency,
            arrivals=plan.arrivals,
            warmup_s=plan.warmup_s,
            timeout_s=plan.timeout_s,
            connections=plan.connections,
            seed=plan.seed,
            check_every=plan.check_every,
        )
    except ValueError as error:
        raise UsageError(f"{plan.name}: {error}") from error


# After the stage


def _wrong_answers(protocol: Protocol, stage: StageResult, encoded: Sequence[Encoded]) -> dict[int, str]:
    """Rows whose kept answer is not the one to their request, with what is wrong."""
    wrong = {}
    for row, content in stage.answers.items():
        item = encoded[row % len(encoded)]
        if item.problem:
            continue  # there is nothing to compare with, and the check of the answers says so
        try:
            if protocol == "grpc":
                came = parse_grpc(MESSAGES["ModelInferResponse"].FromString(content))
            else:
                came = parse_rest(RestAnswer(200, _binary_header(protocol, content), content, 0.0))
        except Exception as error:  # whatever a server may send; protobuf raises its own kinds
            wrong[row] = f"not an inference answer: {error}"
            continue
        if came.id not in (None, "", item.id):
            wrong[row] = f"expected id {item.id!r}, got {came.id!r}"
            continue
        if differences := [text for tensor in item.expected if (text := _difference(tensor, came))]:
            wrong[row] = differences[0]
    return wrong


def _binary_header(protocol: Protocol, content: bytes) -> httpx.Headers:
    """The worker keeps bodies only; in a binary answer the JSON part ends where its braces close."""
    if protocol != "binary":
        return httpx.Headers()
    depth, quoted, escaped = 0, False, False
    for position, byte in enumerate(content):
        if quoted:
            quoted = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            quoted = True
        elif byte in b"{}":
            depth += 1 if byte == 0x7B else -1
            if depth == 0:
                return httpx.Headers({HEADER_LENGTH: str(position + 1)} if position + 1 < len(content) else {})
    return httpx.Headers()


def summarize_stage(
    endpoint: Endpoint,
    plan: Plan,
    columns: dict[str, npt.NDArray[Any]],
    batch: SampleBatch,
    stage: StageResult,
    samples_name: str,
    checked: int,
) -> LoadResult:
    """``columns`` hold the warm-up too: throughput counts what was completed within the measured window, and a request
    of the warm-up that ended in it makes up for one that ended after it."""
    start, end = int(plan.warmup_s * 1e9), int((plan.warmup_s + plan.duration_s) * 1e9)
    done, error = columns["done_ns"], columns["error"]
    completed = int(((done >= start) & (done < end) & (error == 0)).sum())
    errors = int((batch.error != 0).sum())
    counts = np.bincount(batch.error, minlength=len(ERRORS))
    latency = batch.latency_s
    taken = batch.dispatched_ns >= 0
    from_dispatch = (batch.done_ns[taken] - batch.dispatched_ns[taken]) / 1e9
    reason = invalid_reason(plan, latency, from_dispatch, stage)
    return LoadResult(
        service=endpoint.service,
        step=plan.name,
        runtime=endpoint.runtime,
        protocol=plan.protocol,
        offered_rate_per_s=plan.rate_per_s,
        concurrency=plan.concurrency,
        arrivals=plan.arrivals if plan.rate_per_s is not None else "closed loop",
        duration_s=plan.duration_s,
        warmup_s=plan.warmup_s,
        requests=len(batch),
        errors=errors,
        errors_by_class={ERRORS[index]: int(count) for index, count in enumerate(counts) if index and count},
        achieved_rate_per_s=completed / plan.duration_s,
        latency_s=summarize(latency),
        latency_ci_s=percentile_intervals(latency),
        service_time_s=_summary(batch.service_time_s),
        send_lag_s=_summary(batch.send_lag_s),
        error_rate_ci=wilson(errors, len(batch)),
        generator_cpu=round(stage.cpu, 4),
        valid=not reason,
        invalid_reason=reason,
        checked_answers=checked,
        samples=samples_name,
        seed=plan.seed,
    )


def _summary(values: npt.NDArray[np.float64]) -> dict[str, float]:
    return summarize(values) if values.size else {}


def invalid_reason(
    plan: Plan, latency_s: npt.NDArray[np.float64], from_dispatch_s: npt.NDArray[np.float64], stage: StageResult
) -> str:
    """Why the result must not be believed; empty when it may be.

    The generator's lateness is in every latency. It matters where it moves a percentile out of that percentile's own
    confidence interval, and noticeably; the percentile then says as much about this machine as about the server.
    """
    if stage.stopped:
        return "the stage was stopped before its end"
    if plan.concurrency is not None and stage.cpu > CPU_LIMIT:
        return f"generator-bound: it used {stage.cpu:.0%} of a core, so the server may be faster than what was measured"
    if from_dispatch_s.size == 0:
        return "generator-bound: no request was sent"
    with_lag, without = summarize(latency_s), summarize(from_dispatch_s)
    for name, (low, _) in percentile_intervals(latency_s).items():
        moved = with_lag[name] - without[name]
        if without[name] < low and moved > max(LAG_SHARE * with_lag[name], LAG_FLOOR_S):
            return (
                f"generator-bound: send lag moved {name} from {format_duration(without[name])}"
                f" to {format_duration(with_lag[name])}; lower the rate or give the generator a core of its own"
            )
    return ""


def _judge(
    endpoint: Endpoint,
    plan: Plan,
    result: LoadResult,
    wrong: dict[int, str],
    encoded: Sequence[Encoded],
    elapsed_s: float,
) -> list[CheckResult]:
    def check(name: str, requirement: str, outcome: Outcome, **fields: str | tuple[Exchange, ...]) -> CheckResult:
        return CheckResult(
            id=f"{SUITE}.{name}",
            suite=SUITE,
            level=Level.MUST,
            outcome=outcome,
            service=endpoint.service,
            runtime=endpoint.runtime,
            requirement=requirement,
            source="scenario",
            duration_s=elapsed_s if name == "valid" else 0.0,
            deviation=endpoint.deviations.get(f"{SUITE}.{name}"),
            step=plan.name,
            **fields,  # type: ignore[arg-type]
        )

    checks = [
        check(
            "valid",
            "The generator kept to its schedule, so that the percentiles are the server's.",
            Outcome.PASSED if result.valid else Outcome.ERROR,
            observed=f"send lag p99 {format_duration(result.send_lag_s['p99'])}"
            if result.send_lag_s
            else "nothing sent",
            reason=result.invalid_reason,
        )
    ]
    requirement = f"Inspected answers (one in {plan.check_every}) carry their request's id and the right numbers."
    if result.checked_answers == 0:
        none = f"no answer of {result.requests} requests could be inspected; errors: {result.errors_by_class or 'none'}"
        checks.append(check("answers", requirement, Outcome.FAILED, expected="right answers", observed=none))
    elif problem := next((item.problem for item in encoded if item.problem), ""):
        checks.append(
            check(
                "answers",
                requirement,
                Outcome.FAILED,
                expected="a v2 inference answer",
                observed=f"before the load: {problem}",
            )
        )
    else:
        row, what = next(iter(sorted(wrong.items())), (0, ""))
        evidence: tuple[Exchange, ...] = ()
        if wrong:
            sent = encoded[row % len(encoded)]
            text = sent.body[:2000].decode(errors="backslashreplace")
            evidence = (Exchange(f"request {row} of {plan.name}", text, "", what),)
        observed = f"{result.checked_answers} inspected, all right"
        if not any(item.expected for item in encoded):
            observed += " as far as ids tell: the model does not repeat itself"
        if wrong:
            observed = f"{len(wrong)} of {result.checked_answers} wrong; first: {what}"
        outcome = Outcome.FAILED if wrong else Outcome.PASSED
        expected = "all of them right" if wrong else ""
        checks.append(check("answers", requirement, outcome, expected=expected, observed=observed, evidence=evidence))
    for objective in plan.objectives:
        outcome, reason = Outcome.PASSED if objective.met(result) else Outcome.FAILED, ""
        # Lateness only ever adds: a bound from above that was kept with it would have been kept without it.
        if not result.valid and not (outcome is Outcome.PASSED and objective.bounds_latency_above):
            outcome, reason = Outcome.ERROR, f"not judged: {result.invalid_reason}"
        observed = objective.describe(objective.observed(result))
        interval = result.latency_ci_s.get(objective.metric)
        if interval:
            observed += f" (95 % CI {format_duration(interval[0])} to {format_duration(interval[1])})"
        name = f"slo.{objective.metric}"
        checks.append(
            check(name, f"SLO: {objective.text}", outcome, expected=objective.text, observed=observed, reason=reason)
        )
    return checks
