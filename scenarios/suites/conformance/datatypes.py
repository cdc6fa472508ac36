"""rest.datatypes and grpc.datatypes: what comes back from a model that repeats its inputs, value by value."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from harness.base.errors import ProtocolError
from harness.results.records import Level
from harness.target.protocol.grpc_client import GrpcStatusError
from harness.target.protocol.rest import RestAnswer, json_request, parse_infer
from harness.target.protocol.tensors import CONTENTS_FIELDS, DTYPES, InferResult, Tensor, same
from scenarios.suites.conformance.checks import MAY, MUST, SHOULD, Check, CheckFailed, Need, Skip, expect
from scenarios.suites.conformance.sources import JSON, OIP_GRPC, OIP_REST, REGISTRY, check
from scenarios.suites.conformance.target import Target, body_of, grpc_payload, payload

HALVES = ("FP16", "BF16")


def typical(datatype: str) -> list[Any]:
    """0, 1, -1, the least, the greatest, and something in between."""
    if datatype == "BOOL":
        return [True, False, False, True]
    if datatype == "BYTES":
        return [b"plain", b"", "snow \u2603 and \U0001f600".encode(), b'quote " backslash \\ newline \n']
    if datatype == "BF16":
        return [0.0, 1.0, -1.0, 3.140625, -0.001953125, 3.3895313892515355e38]
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        limits: Any = np.finfo(dtype)
        return [0.0, 1.0, -1.0, 0.5, float(limits.max), float(limits.min), float(limits.tiny)]
    whole: Any = np.iinfo(dtype)
    return [0, 1, whole.min, whole.max, *([-1] if dtype.kind == "i" else []), whole.max // 3]


def array_of(datatype: str, values: list[Any], count: int) -> np.ndarray:
    """The values, repeated until there are ``count``."""
    filled = [values[index % len(values)] for index in range(count)]
    if datatype != "BYTES":
        return np.array(filled, dtype=DTYPES[datatype])
    items = np.empty(count, dtype=object)
    items[:] = filled
    return items


def has(datatype: str) -> Need:
    def need(target: Target) -> str | None:
        if reason := payload(target):
            return reason
        found = any(tensor.datatype == datatype for tensor in target.example())
        return None if found else f"the model has no input of {datatype}"

    return need


def requests(target: Target, datatype: str, values: list[Any]) -> list[tuple[int, list[Tensor]]]:
    """Requests that carry all values in an input of ``datatype``, with the place of that input."""
    example = target.example()
    place = next(index for index, tensor in enumerate(example) if tensor.datatype == datatype)
    chosen = example[place]
    count = math.prod(chosen.shape)
    if not count:
        raise Skip("the example holds no element")
    found = []
    for begin in range(0, len(values), count):
        array = array_of(datatype, values[begin : begin + count], count)
        inputs = list(example)
        inputs[place] = Tensor(chosen.name, datatype, chosen.shape, array.reshape(chosen.shape))
        found.append((place, inputs))
    return found


def repeats(inputs: list[Tensor], result: InferResult) -> bool:
    return len(inputs) == len(result.outputs) and all(
        same(tensor, output.with_name(tensor.name)) for tensor, output in zip(inputs, result.outputs, strict=True)
    )


async def require_identity(target: Target) -> None:
    """Values can be followed only through a model whose outputs repeat its inputs; a damaged value must not make it
    look like another model, so names and shapes decide, and most of the values."""

    async def ask() -> str:
        inputs = target.example()
        answer = await target.rest.infer_raw(json_request(inputs))
        if answer.status != 200:
            return "the example is not answered, so nobody knows what the model does"
        listed = answer.object().get("outputs") or []
        alike = len(listed) == len(inputs) and all(
            isinstance(item, dict)
            and item.get("datatype") == tensor.datatype
            and item.get("shape") == list(tensor.shape)
            for tensor, item in zip(inputs, listed, strict=False)
        )
        matching = 0
        if alike:
            for tensor, item in zip(inputs, listed, strict=True):
                wanted = json_request([tensor])["inputs"][0]["data"]
                came = np.array(item.get("data"), dtype=object).reshape(-1).tolist()
                matching += came == wanted
        return "" if alike and 2 * matching >= len(inputs) else "the model's outputs do not repeat its inputs"

    try:
        reason = await target.once("identity", ask)
    except ProtocolError as error:
        reason = f"the example's answer cannot be read: {error}"
    if reason:
        raise Skip(reason)


def _followed(place: int, inputs: list[Tensor], result: InferResult) -> None:
    sent, came = inputs[place], result.outputs[place]
    if not same(sent, came.with_name(sent.name)):
        differ = [
            index
            for index, (left, right) in enumerate(zip(sent.flat.tolist(), came.flat.tolist(), strict=False))
            if left != right and not (left != left and right != right)
        ]
        where = differ[0] if differ else 0
        raise CheckFailed(
            f"{sent.flat.tolist()[where]!r} as element {where} of {came.name}, {sent.datatype} {list(sent.shape)}",
            f"{came.flat.tolist()[where : where + 1]} in {came.datatype} {list(came.shape)}",
        )


async def rest_round_trip(target: Target, datatype: str, values: list[Any]) -> None:
    await require_identity(target)
    for place, inputs in requests(target, datatype, values):
        _followed(place, inputs, parse_infer(await target.rest.infer_raw(json_request(inputs))))


def _round_trips() -> None:
    def register(
        name: str, level: Level, requirement: str, run: Callable[[Target], Awaitable[None]], need: Need, source: Any
    ) -> None:
        REGISTRY.add(Check(name, level, source, requirement, run, (need,)))

    for datatype in DTYPES:

        async def over_rest(target: Target, datatype: str = datatype) -> None:
            await rest_round_trip(target, datatype, typical(datatype))

        register(
            f"rest.datatypes.{datatype.lower()}",
            MAY if datatype in HALVES else MUST,
            f"{datatype} elements come back from an identity model as they were sent: 0, 1, -1, the least and the"
            f" greatest among them."
            if datatype not in ("BOOL", "BYTES")
            else f"{datatype} elements come back from an identity model as they were sent.",
            over_rest,
            has(datatype),
            OIP_REST.datatypes,
        )
    for datatype in DTYPES:
        for raw in (False, True):
            if not raw and datatype not in CONTENTS_FIELDS:
                continue

            async def over_grpc(target: Target, datatype: str = datatype, raw: bool = raw) -> None:
                await require_identity(target)
                for place, inputs in requests(target, datatype, typical(datatype)):
                    if not raw and not target.typed:
                        raise Skip("another input is FP16 or BF16, which has no contents field")
                    _followed(place, inputs, await target.grpc_client().infer(inputs, raw=raw))

            form = "raw_input_contents" if raw else CONTENTS_FIELDS[datatype]

            def need(target: Target, datatype: str = datatype) -> str | None:
                return grpc_payload(target) or has(datatype)(target)

            register(
                f"grpc.datatypes.{datatype.lower()}_{'raw' if raw else 'typed'}",
                MUST,
                f"{datatype} elements in {form} come back from an identity model as they were sent.",
                over_grpc,
                need,
                OIP_GRPC.raw if raw else OIP_GRPC.contents,
            )


_round_trips()

BEYOND_DOUBLE = (1 << 53) + 1
"""The first integer that a double cannot hold: a server that reads numbers as doubles gives its neighbour."""


@check("rest.datatypes.int64_exact", level=MUST, source=OIP_REST.datatypes, needs=[has("INT64")])
async def int64_exact(target: Target) -> None:
    """INT64 elements beyond 2^53 come back exactly."""
    await rest_round_trip(target, "INT64", [BEYOND_DOUBLE, -BEYOND_DOUBLE, (1 << 63) - 1, (1 << 62) + 1])


@check("rest.datatypes.uint64_exact", level=MUST, source=OIP_REST.datatypes, needs=[has("UINT64")])
async def uint64_exact(target: Target) -> None:
    """UINT64 elements beyond 2^53 come back exactly."""
    await rest_round_trip(target, "UINT64", [BEYOND_DOUBLE, (1 << 64) - 1, (1 << 63) + 1, (1 << 63) - 1])


@check("rest.datatypes.fp32_exact", level=MUST, source=OIP_REST.datatypes, needs=[has("FP32")])
async def fp32_exact(target: Target) -> None:
    """FP32 elements come back bit for bit: tenths, thirds, and neighbours of 1 and of 2^24."""
    tiny = 2.0**-23
    await rest_round_trip(target, "FP32", [0.1, 1 / 3, 1 + tiny, 1 - tiny / 2, 16777215.0, 3.1415927, 1e-20, 1e20])


@check("rest.datatypes.fp64_exact", level=MUST, source=OIP_REST.datatypes, needs=[has("FP64")])
async def fp64_exact(target: Target) -> None:
    """FP64 elements come back bit for bit: tenths, thirds, and neighbours of 1 and of 2^53."""
    tiny = 2.0**-52
    await rest_round_trip(target, "FP64", [0.1, 1 / 3, 1 + tiny, 1 - tiny / 2, 2.0**53 - 1, math.pi, 1e-300, 1e300])


@check("rest.datatypes.fp32_subnormal", level=SHOULD, source=OIP_REST.datatypes, needs=[has("FP32")])
async def fp32_subnormal(target: Target) -> None:
    """FP32 subnormals come back as they were sent, not as zero."""
    await rest_round_trip(target, "FP32", [2.0**-149, -(2.0**-149), 2.0**-130, 2.0**-126])


@check("rest.datatypes.fp64_subnormal", level=SHOULD, source=OIP_REST.datatypes, needs=[has("FP64")])
async def fp64_subnormal(target: Target) -> None:
    """FP64 subnormals come back as they were sent, not as zero."""
    await rest_round_trip(target, "FP64", [5e-324, -5e-324, 2.0**-1040, 2.0**-1022])


@check("rest.datatypes.bool_as_literals", level=MUST, source=OIP_REST.data, needs=[has("BOOL")])
async def bool_as_literals(target: Target) -> None:
    """BOOL elements of an answer are true and false, not numbers or strings."""
    await require_identity(target)
    ((place, inputs), *_) = requests(target, "BOOL", [True, False])
    data = body_of(await target.rest.infer_raw(json_request(inputs)))["outputs"][place]["data"]
    for element in np.array(data, dtype=object).reshape(-1).tolist():
        expect(element, "element").is_a(bool, "true or false")


async def _nonfinite(target: Target, datatype: str, word: str, wanted: Callable[[float], bool]) -> None:
    """Bare words are what JSON libraries of several languages write; the answer must be honest about them."""
    await require_identity(target)
    ((place, inputs), *_) = requests(target, datatype, [0.0])
    request = json_request(inputs)
    data = request["inputs"][place]["data"]
    data[0] = 12345678987654.5
    answer = await target.rest.infer_raw(json.dumps(request).replace("12345678987654.5", word, 1))
    if 400 <= answer.status < 500:
        return
    _honest(answer, place, wanted, word)


def _honest(answer: RestAnswer, place: int, wanted: Callable[[float], bool], word: str) -> None:
    expect(answer.status, "status").satisfies(lambda status: status == 200, "200 or 4xx")
    try:
        outputs = answer.object()["outputs"]
    except ProtocolError as error:
        raise CheckFailed("valid JSON, or a refusal with 4xx", str(error)) from error
    came = np.array(outputs[place]["data"], dtype=object).reshape(-1).tolist()[0]
    try:
        right = isinstance(came, str) and wanted(float(came))
    except ValueError:
        right = False
    if not right:
        raise CheckFailed(f"{word} as a string, or a refusal with 4xx", f"200 with {came!r}")


def _register_nonfinite() -> None:
    for datatype in ("FP32", "FP64"):
        for name, word, wanted in (
            ("nan", "NaN", math.isnan),
            ("infinity", "Infinity", lambda value: value == math.inf),
            ("minus_infinity", "-Infinity", lambda value: value == -math.inf),
        ):

            async def run(
                target: Target, datatype: str = datatype, word: str = word, wanted: Callable[[float], bool] = wanted
            ) -> None:
                await _nonfinite(target, datatype, word, wanted)

            REGISTRY.add(
                Check(
                    f"rest.datatypes.{datatype.lower()}_{name}",
                    MUST,
                    JSON.numbers,
                    f"{word} in {datatype} data is refused with 4xx or given back as what it is; never 200 with another"
                    " number, never an answer that is not JSON.",
                    run,
                    (has(datatype),),
                )
            )


_register_nonfinite()


@check("grpc.datatypes.bytes_not_utf8", level=MUST, source=OIP_GRPC.contents, needs=[grpc_payload, has("BYTES")])
async def bytes_not_utf8(target: Target) -> None:
    """BYTES elements over gRPC are bytes: zeros and what is not UTF-8 come back as they were sent."""
    await require_identity(target)
    for place, inputs in requests(target, "BYTES", [b"\x00\xff\xfe", b"\x80", bytes(range(256)), b"a\x00b"]):
        _followed(place, inputs, await target.grpc_client().infer(inputs, raw=not target.typed))


def _nan_bits(datatype: str) -> list[float]:
    return [math.nan, math.inf, -math.inf, -0.0]


def _register_grpc_nonfinite() -> None:
    for datatype in ("FP32", "FP64"):

        def need(target: Target, datatype: str = datatype) -> str | None:
            return grpc_payload(target) or has(datatype)(target)

        async def run(target: Target, datatype: str = datatype) -> None:
            await require_identity(target)
            for place, inputs in requests(target, datatype, _nan_bits(datatype)):
                try:
                    result = await target.grpc_client().infer(inputs, raw=not target.typed)
                except GrpcStatusError as error:
                    expect(error.code.name, "status").equals("INVALID_ARGUMENT")
                    return
                _followed(place, inputs, result)

        REGISTRY.add(
            Check(
                f"grpc.datatypes.{datatype.lower()}_nonfinite",
                MUST,
                OIP_GRPC.contents,
                f"NaN, both infinities and -0.0 in {datatype} come back as they were sent, or are refused with"
                " INVALID_ARGUMENT.",
                run,
                (need,),
            )
        )


_register_grpc_nonfinite()
