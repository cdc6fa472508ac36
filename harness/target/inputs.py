"""Inputs that a served model takes: from a payload file, from golden cases, or made from its metadata."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from harness.base.errors import MeasurementError, ProtocolError, UnreachableError
from harness.target.endpoint import Endpoint
from harness.target.golden import read_golden
from harness.target.look import silent, what_is_wrong
from harness.target.protocol.grpc_client import GrpcClient, GrpcStatusError, specs
from harness.target.protocol.rest import RestClient
from harness.target.protocol.tensors import Tensor, TensorSpec, example_tensor

VARIANTS = 16
"""Different requests made from metadata: enough to tell one client's answer from another's."""


@dataclass(frozen=True)
class Case:
    """``outputs`` is None where nobody knows yet what the right answer is."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] | None
    weight: float = 1.0


@dataclass(frozen=True)
class Metadata:
    """What a server says of a model; empty tuples where it says nothing usable."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    versions: tuple[str, ...] = ()


async def read_metadata(rest: RestClient, grpc: GrpcClient | None) -> Metadata:
    """Over REST, else over gRPC. Raises UnreachableError when the server does not answer at all."""
    try:
        answer = await rest.get(rest.model_path)
    except UnreachableError as error:
        raise UnreachableError(
            f"{error}; is the server up, and is the address right? Try: curl {rest.base_url}/v2/health/live"
        ) from error
    found = Metadata()
    # A document that cannot be read is the metadata checks' to report.
    with contextlib.suppress(ProtocolError):
        body = answer.object() if answer.status == 200 else {}
        listed = body.get("versions")
        versions = tuple(str(item) for item in listed) if isinstance(listed, list) else ()
        found = Metadata(_tensor_specs(body.get("inputs")), _tensor_specs(body.get("outputs")), versions)
    if not found.inputs and grpc is not None:
        with contextlib.suppress(GrpcStatusError):
            described = await grpc.metadata()
            found = Metadata(specs(described.inputs), specs(described.outputs), tuple(described.versions))
    return found


def _tensor_specs(entries: Any) -> tuple[TensorSpec, ...]:
    if not isinstance(entries, list):
        return ()
    found = []
    for item in entries:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found.append(TensorSpec(item["name"], item["datatype"], tuple(int(size) for size in item["shape"])))
    return tuple(found)


async def cases_for(endpoint: Endpoint, rest: RestClient, grpc: GrpcClient | None) -> list[Case]:
    """Requests of one row each, where there is a choice. Raises what is wrong first: UnreachableError, NotServedError,
    and MeasurementError when there is nothing to send."""
    if endpoint.mix:
        return [Case(inputs, None, weight) for inputs, weight in endpoint.mix]
    if endpoint.payload:
        return [Case(endpoint.payload, None)]
    if endpoint.golden:
        golden = read_golden(endpoint.golden)
        smallest = min(case.batch for case in golden)
        return [Case(case.inputs, case.outputs) for case in golden if case.batch == smallest]
    try:
        found = await read_metadata(rest, grpc)
    except UnreachableError as error:
        raise silent(error, rest) from error
    if not found.inputs:
        if (wrong := await what_is_wrong(None, rest)) is not None:
            raise wrong
        raise MeasurementError(
            f"{endpoint.service}: the model's metadata name no inputs, so there is nothing to send;"
            " give a v2 request with --payload FILE or golden cases with --golden FILE"
        )
    return [
        Case(tuple(example_tensor(spec, seed=seed * 31 + index) for index, spec in enumerate(found.inputs)), None)
        for seed in range(VARIANTS)
    ]
