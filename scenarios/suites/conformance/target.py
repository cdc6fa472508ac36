"""What the conformance checks ask: a server, one of its models, and payloads that the model takes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.base.errors import ServecertError
from harness.results.records import Exchange
from harness.target.endpoint import Endpoint
from harness.target.golden import GoldenCase, read_golden
from harness.target.inputs import read_metadata
from harness.target.protocol.grpc_client import GrpcClient
from harness.target.protocol.rest import RestAnswer, RestClient, json_request
from harness.target.protocol.tensors import Tensor, TensorSpec, example_tensor
from harness.target.protocol.transcript import note, recording
from scenarios.suites.conformance.checks import CheckFailed, Skip


@dataclass
class Target:
    """``metadata`` is what REST says of the model, or gRPC where there is no REST; None where neither gives tensors."""

    rest: RestClient
    grpc: GrpcClient | None
    model: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    versions: tuple[str, ...] = ()
    golden: list[GoldenCase] = field(default_factory=list)
    payload: tuple[Tensor, ...] = ()
    extensions: tuple[str, ...] = ()
    """What the server says that it offers."""
    asked: frozenset[str] = frozenset()
    """Profiles that the user named; others are checked only where the server offers them."""
    metrics_path: str = "/metrics"
    lost: str = ""
    """Why the model is not served any more; empty while it is."""
    _once: dict[str, tuple[Any, list[Exchange]]] = field(default_factory=dict)

    # Payloads

    @property
    def has_payload(self) -> bool:
        return bool(self.payload or self.golden or self.inputs)

    def example(self, seed: int = 0) -> list[Tensor]:
        """Inputs that the model takes: the payload given, a golden case, or made from the metadata."""
        if self.payload:
            return list(self.payload)
        if self.golden:
            singles = [case for case in self.golden if case.batch == self.golden[0].batch]
            return list(singles[seed % len(singles)].inputs)
        if not self.inputs:
            raise Skip(NO_PAYLOAD)
        return [example_tensor(spec, seed=seed * 31 + index) for index, spec in enumerate(self.inputs)]

    @property
    def free_batch(self) -> bool:
        """Whether the first dimension is variable: by the metadata, else by golden cases of different batch size."""
        if self.inputs:
            return all(spec.shape and spec.shape[0] < 0 for spec in self.inputs)
        return len({case.batch for case in self.golden}) > 1

    def batch(self, count: int) -> list[Tensor]:
        """The example repeated along the first dimension, rolled so that rows differ where the elements do."""
        tensors = []
        for tensor in self.example():
            row = tensor.array.reshape(tensor.shape)[:1]
            array = np.concatenate([row] * count)
            tensors.append(Tensor(tensor.name, tensor.datatype, (count, *tensor.shape[1:]), array))
        return tensors

    def body(self, **fields: Any) -> dict[str, Any]:
        """A valid request object, to be sent or spoilt."""
        return json_request(self.example(), **fields)

    def distinct(self, count: int) -> list[list[Tensor]]:
        """``count`` requests with as many different inputs as there are to be had."""
        return [self.example(seed) for seed in range(count)]

    @property
    def typed(self) -> bool:
        """Whether every input can travel as gRPC contents."""
        return all(tensor.datatype not in ("FP16", "BF16") for tensor in self.example())

    def grpc_client(self) -> GrpcClient:
        if self.grpc is None:
            raise Skip(NO_GRPC)
        return self.grpc

    async def once(self, key: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer to a question that several checks share; each keeps its exchange as evidence."""
        if key not in self._once:
            with recording() as exchanges:
                try:
                    result: Any = await ask()
                except ServecertError as error:
                    result = error
            self._once[key] = (result, exchanges)
        result, exchanges = self._once[key]
        for exchange in exchanges:
            note(exchange)
        if isinstance(result, ServecertError):
            raise result
        return result


NO_PAYLOAD = "the model's metadata name no inputs, and no payload or golden file was given"
NO_GRPC = "no gRPC address was given"


# What checks need of a target


def advertised(profile: str, extension: str) -> Callable[[Target], str | None]:
    """The server lists the extension, or the user asked for its profile. Servers add a word of their own to the name
    (``model_repository_extension``)."""

    def need(target: Target) -> str | None:
        if profile in target.asked or any(item.startswith(extension) for item in target.extensions):
            return None
        return f"the server's metadata do not list {extension}; ask for it with --profile {profile}"

    return need


def payload(target: Target) -> str | None:
    return None if target.has_payload else NO_PAYLOAD


def metadata(target: Target) -> str | None:
    return None if target.inputs or target.outputs else "the model's metadata name no tensors"


def free_batch(target: Target) -> str | None:
    if reason := payload(target):
        return reason
    return None if target.free_batch else "the first dimension of the inputs is not known to be variable"


def versions(target: Target) -> str | None:
    return None if target.versions else "the model's metadata list no versions"


def second_input(target: Target) -> str | None:
    if reason := payload(target):
        return reason
    return None if len(target.example()) > 1 else "the model has one input"


def second_output(target: Target) -> str | None:
    return None if len(target.outputs) > 1 else "the model's metadata name fewer than two outputs"


def numeric_input(target: Target) -> str | None:
    if reason := payload(target):
        return reason
    numeric = any(tensor.datatype not in ("BYTES", "BOOL") for tensor in target.example())
    return None if numeric else "the model has no numeric input"


def integer_input(target: Target) -> str | None:
    if reason := payload(target):
        return reason
    narrow = any(
        tensor.datatype in ("INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32") for tensor in target.example()
    )
    return None if narrow else "the model has no integer input of 32 bits or less"


def grpc(target: Target) -> str | None:
    return None if target.grpc else NO_GRPC


def grpc_payload(target: Target) -> str | None:
    return grpc(target) or payload(target)


def typed_contents(target: Target) -> str | None:
    if reason := grpc_payload(target):
        return reason
    return None if target.typed else "an input is FP16 or BF16, which has no contents field"


# Reading the server


def body_of(answer: RestAnswer) -> dict[str, Any]:
    """The JSON object of an answer that must be a success."""
    if answer.status != 200:
        raise CheckFailed("status 200", f"status {answer.status}: {answer.content[:300]!r}")
    return answer.object()


def data_of(outputs: Any) -> dict[str, Any]:
    """Outputs by name, for comparing two answers whatever their shape of nesting."""
    return {item.get("name"): (item.get("datatype"), _flat(item.get("data"))) for item in outputs}


def _flat(data: Any) -> list[Any]:
    if isinstance(data, list):
        return [element for item in data for element in _flat(item)]
    return [data]


@contextlib.asynccontextmanager
async def open_target(endpoint: Endpoint, *, use_grpc: bool = True, asked: Sequence[str] = ()) -> AsyncIterator[Target]:
    """Raises UnreachableError when the server does not answer at all."""
    async with contextlib.AsyncExitStack() as stack:
        rest = await stack.enter_async_context(endpoint.rest())
        grpc_client = None
        if use_grpc and endpoint.grpc_address:
            grpc_client = await stack.enter_async_context(endpoint.grpc())
        target = Target(
            rest,
            grpc_client,
            endpoint.model,
            payload=endpoint.payload,
            asked=frozenset(asked),
            metrics_path=endpoint.metrics_path,
        )
        if endpoint.golden:
            target.golden = read_golden(endpoint.golden)
        found = await read_metadata(rest, grpc_client)
        target.inputs, target.outputs, target.versions = found.inputs, found.outputs, found.versions
        target.extensions = await _extensions(rest)
        yield target


async def _extensions(rest: RestClient) -> tuple[str, ...]:
    """What cannot be read is the metadata checks' to report."""
    try:
        answer = await rest.get("/v2")
        listed = answer.object().get("extensions") if answer.status == 200 else None
    except ServecertError:
        return ()
    return tuple(str(item) for item in listed) if isinstance(listed, list) else ()


async def health_status(target: Target) -> int | None:
    """What /v2/health/live says within 2 s; None where nothing is answered."""
    try:
        return (await target.rest.request("GET", "/v2/health/live", timeout_s=2)).status
    except ServecertError:
        return None


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    """Whether it holds within the time; asked again every 50 ms."""
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def gather(count: int, ask: Callable[[int], Awaitable[Any]]) -> Sequence[Any]:
    """``count`` questions at once; the first error ends them all and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_await(ask(index))) for index in range(count)]
    except* Exception as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
