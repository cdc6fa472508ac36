"""Parity: served outputs against what the model's own framework gave offline, and the server against itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.base.errors import MeasurementError, ServecertError, UsageError
from harness.results.records import CheckResult, Level, Outcome, ParityResult
from harness.target.endpoint import Endpoint
from harness.target.golden import GoldenCase, read_golden
from harness.target.numeric import EXACT, TOLERANCES, Distance, Tolerance, distance, other_outputs
from harness.target.protocol.grpc_client import GrpcClient
from harness.target.protocol.rest import RestClient
from harness.target.protocol.tensors import InferResult, Tensor
from harness.target.protocol.transcript import recording

CLIENTS = 16
SUITE = "parity"


@dataclass(frozen=True)
class Comparison:
    """``pairs`` asks the server and gives what is expected beside what came."""

    name: str
    requirement: str
    source: str
    pairs: Callable[[], Awaitable[Sequence[tuple[Sequence[Tensor], InferResult]]]]
    exact: bool = False


@dataclass
class Parity:
    endpoint: Endpoint
    cases: list[GoldenCase]
    rest: RestClient
    grpc: GrpcClient | None
    tolerances: dict[str, Tolerance] = field(default_factory=lambda: dict(TOLERANCES))

    def comparisons(self) -> list[Comparison]:
        offline = "the model's framework, evaluated offline"
        found = [
            Comparison("golden.rest", "Outputs over REST are those of the framework.", offline, self.golden_rest),
            Comparison("batch", "A batch of n gives what n single requests give.", "this server", self.batch),
            Comparison(
                "concurrent", f"{CLIENTS} clients at once get what one client gets.", "this server", self.concurrent
            ),
        ]
        if self.grpc is not None:
            found[1:1] = [
                Comparison("golden.grpc", "Outputs over gRPC are those of the framework.", offline, self.golden_grpc),
                Comparison("rest_grpc", "REST and gRPC give the same bits.", "this server", self.rest_grpc, exact=True),
            ]
        return found

    async def over_rest(self, inputs: Sequence[Tensor]) -> InferResult:
        return await self.rest.infer(inputs)

    async def over_grpc(self, inputs: Sequence[Tensor]) -> InferResult:
        assert self.grpc is not None
        raw = any(tensor.datatype in ("FP16", "BF16") for tensor in inputs)
        return await self.grpc.infer(inputs, raw=raw)

    async def golden_rest(self) -> list[tuple[Sequence[Tensor], InferResult]]:
        return [(case.outputs, await self.over_rest(case.inputs)) for case in self.cases]

    async def golden_grpc(self) -> list[tuple[Sequence[Tensor], InferResult]]:
        return [(case.outputs, await self.over_grpc(case.inputs)) for case in self.cases]

    async def rest_grpc(self) -> list[tuple[Sequence[Tensor], InferResult]]:
        return [((await self.over_rest(case.inputs)).outputs, await self.over_grpc(case.inputs)) for case in self.cases]

    async def batch(self) -> list[tuple[Sequence[Tensor], InferResult]]:
        largest = max(self.cases, key=lambda case: case.batch)
        if largest.batch < 2:
            raise _NothingToCompareError("no golden case has more than one row")
        singles = [
            await self.over_rest([_row(tensor, index) for tensor in largest.inputs]) for index in range(largest.batch)
        ]
        joined = [_joined([one.output(first.name) for one in singles]) for first in singles[0].outputs]
        if problem := next((text for one in singles if (text := other_outputs(joined, one))), ""):
            raise ValueError(f"single requests of one batch: {problem}")
        return [(joined, await self.over_rest(largest.inputs))]

    async def concurrent(self) -> list[tuple[Sequence[Tensor], InferResult]]:
        alone = [await self.over_rest(case.inputs) for case in self.cases]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.over_rest(self.cases[index % len(self.cases)].inputs))
                for index in range(CLIENTS)
            ]
        return [(alone[index % len(alone)].outputs, task.result()) for index, task in enumerate(tasks)]


class _NothingToCompareError(Exception):
    pass


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """Answers to single requests as one batch. Raises ValueError where they are not of one kind."""
    first = rows[0]
    for number, other in enumerate(rows):
        if (other.datatype, other.shape) != (first.datatype, first.shape) or first.shape[:1] != (1,):
            raise ValueError(
                f"output {first.name!r} of a single request: expected one row of {first.datatype} {list(first.shape)},"
                f" got {other.datatype} {list(other.shape)} for row {number}"
            )
    parts = [other.array.reshape(other.shape) for other in rows]
    return Tensor(first.name, first.datatype, (len(rows), *first.shape[1:]), np.concatenate(parts))


def _row(tensor: Tensor, index: int) -> Tensor:
    array = tensor.array.reshape(tensor.shape)[index : index + 1]
    return Tensor(tensor.name, tensor.datatype, (1, *tensor.shape[1:]), array)


async def parity(
    endpoint: Endpoint, tolerances: dict[str, Tolerance] | None = None, step: str = ""
) -> AsyncIterator[ParityResult | CheckResult]:
    """One CheckResult a comparison, and one ParityResult for each of its outputs."""
    if endpoint.golden is None:
        raise UsageError(f"{endpoint.service}: parity needs golden cases; name a catalog model or give --golden FILE")
    cases = read_golden(endpoint.golden)
    async with contextlib.AsyncExitStack() as stack:
        rest = await stack.enter_async_context(endpoint.rest(30))
        grpc = None
        if endpoint.grpc_address:
            client = endpoint.grpc(30)
            grpc = await stack.enter_async_context(client)
        suite = Parity(endpoint, cases, rest, grpc, {**TOLERANCES, **(tolerances or {})})
        for comparison in suite.comparisons():
            for record in await _compare(suite, comparison, step):
                yield record


async def _compare(suite: Parity, comparison: Comparison, step: str) -> list[ParityResult | CheckResult]:
    endpoint = suite.endpoint
    started = time.monotonic()
    results: list[ParityResult] = []
    expected = observed = reason = ""
    outcome = Outcome.PASSED
    with recording() as exchanges:
        try:
            pairs = await comparison.pairs()
            tolerances = {} if comparison.exact else suite.tolerances
            results = outputs_beside(endpoint, comparison.name, pairs, tolerances, step)
        except _NothingToCompareError as error:
            outcome, reason = Outcome.SKIPPED, str(error)
        except MeasurementError as error:
            outcome, reason = Outcome.ERROR, str(error)
        except (ServecertError, ExceptionGroup, ValueError) as error:
            first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            if not isinstance(first, ServecertError | ValueError):
                raise
            outcome, expected, observed = Outcome.FAILED, comparison.requirement, str(first)[:600]
    wrong = [result for result in results if not result.within]
    if wrong:
        worst = max(wrong, key=lambda result: result.rank)
        outcome = Outcome.FAILED
        expected = f"{worst.output}{list(worst.worst_index)} = {worst.worst_expected} ({worst.tolerance})"
        observed = f"{worst.worst_observed}; {len(wrong)} of {len(results)} outputs differ"
    elif results:
        elements = sum(result.elements for result in results)
        observed = f"{elements} elements within tolerance"
    check_id = f"{SUITE}.{comparison.name}"
    check = CheckResult(
        id=check_id,
        suite=SUITE,
        level=Level.MUST,
        outcome=outcome,
        service=endpoint.service,
        runtime=endpoint.runtime,
        requirement=comparison.requirement,
        source=comparison.source,
        expected=expected,
        observed=observed,
        reason=reason,
        duration_s=round(time.monotonic() - started, 6),
        evidence=tuple(exchanges[-2:]) if wrong or expected else (),
        deviation=endpoint.deviations.get(check_id),
        step=step,
    )
    return [*results, check]


def outputs_beside(
    endpoint: Endpoint,
    comparison: str,
    pairs: Sequence[tuple[Sequence[Tensor], InferResult]],
    tolerances: Mapping[str, Tolerance],
    step: str,
) -> list[ParityResult]:
    """The worst over all cases, an output each; datatypes without a tolerance must be equal. Raises ProtocolError or
    ValueError for what is not comparable (an output that nobody expected is), MeasurementError where nothing was."""
    if not pairs:
        raise MeasurementError("there was no case to compare")
    worst: dict[str, tuple[str, Tolerance, list[tuple[int, Distance]]]] = {}
    for number, (wanted, came) in enumerate(pairs):
        if not wanted:
            raise MeasurementError(f"case {number} names no outputs, so nothing was compared")
        if problem := other_outputs(wanted, came):
            raise ValueError(f"case {number}: {problem}")
        for tensor in wanted:
            tolerance = tolerances.get(tensor.datatype, EXACT)
            try:
                found = distance(tensor, came.output(tensor.name), tolerance)
            except ValueError as error:
                raise ValueError(f"output {tensor.name!r} of case {number}: {error}") from error
            worst.setdefault(tensor.name, (tensor.datatype, tolerance, []))[2].append((number, found))
    results = []
    for name, (datatype, tolerance, found_all) in worst.items():
        number, at_worst = max(found_all, key=lambda item: item[1].rank)
        elements = sum(item.elements for _, item in found_all)
        if not elements:
            raise MeasurementError(f"output {name!r} has no element in any case, so nothing was compared")
        rows = [item.argmax_agreement for _, item in found_all if item.argmax_agreement is not None]
        ulps = [item.max_ulp for _, item in found_all if item.max_ulp is not None]
        results.append(
            ParityResult(
                service=endpoint.service,
                runtime=endpoint.runtime,
                comparison=comparison,
                output=name,
                datatype=datatype,
                elements=elements,
                max_abs_error=max(item.max_abs_error for _, item in found_all),
                max_rel_error=max(item.max_rel_error for _, item in found_all),
                max_ulp=max(ulps) if ulps else None,
                argmax_agreement=min(rows) if rows else None,
                worst_index=(number, *at_worst.worst_index),
                worst_expected=at_worst.worst_expected,
                worst_observed=at_worst.worst_observed,
                tolerance=str(tolerance),
                within=all(item.within for _, item in found_all),
                step=step,
                excess=at_worst.excess,
            )
        )
    return results
