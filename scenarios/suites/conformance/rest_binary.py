"""rest.binary: the binary tensor data extension."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.target.protocol.rest import HEADER_LENGTH, OCTETS, RestAnswer, json_input, json_request, parse_infer
from harness.target.protocol.tensors import DTYPES, InferResult, Tensor, from_raw, same, to_raw
from scenarios.suites.conformance.checks import MUST, SHOULD, Check, CheckFailed, Need, expect
from scenarios.suites.conformance.datatypes import has, repeats, requests, require_identity, typical
from scenarios.suites.conformance.sources import BINARY, REGISTRY, check
from scenarios.suites.conformance.target import (
    Target,
    advertised,
    free_batch,
    payload,
    second_input,
    second_output,
)

binary = advertised("binary", "binary_tensor_data")


def needs(*more: Need) -> tuple[Need, ...]:
    return (binary, payload, *more)


async def send(target: Target, head: dict[str, Any], chunks: list[bytes], length: str | None = None) -> RestAnswer:
    """A request of a JSON part and binary parts; ``length`` replaces the announced length of the JSON part."""
    text = json.dumps(head).encode()
    headers = {HEADER_LENGTH: str(len(text)) if length is None else length, "Content-Type": OCTETS}
    return await target.rest.infer_raw(b"".join([text, *chunks]), headers)


def as_binary(tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    raw = to_raw(tensor)
    described = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
    return {**described, "parameters": {"binary_data_size": len(raw)}}, raw


def request_of(tensors: list[Tensor], **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
    parts = [as_binary(tensor) for tensor in tensors]
    return {"inputs": [described for described, _ in parts], **fields}, [raw for _, raw in parts]


def equal(one: InferResult, other: InferResult, what: str) -> None:
    for tensor in one.outputs:
        if not same(tensor, other.output(tensor.name)):
            raise CheckFailed(f"{what}: the same bits in {tensor.name}", "others")


async def as_json(target: Target) -> InferResult:
    return parse_infer(await target.rest.infer_raw(target.body()))


async def all_binary(target: Target) -> RestAnswer:
    """Binary inputs and binary outputs, shared by the checks that only look at the answer."""

    answer: RestAnswer = await target.once("binary.all", lambda: target.rest.infer_binary_raw(target.example()))
    return answer


def split(answer: RestAnswer) -> tuple[dict[str, Any], bytes]:
    """The JSON part and the rest. Fails the check where the answer is not binary."""
    expect(answer.status, "status").equals(200)
    length = answer.headers.get(HEADER_LENGTH)
    if length is None:
        raise CheckFailed(f"a header {HEADER_LENGTH} on an answer with binary outputs", "no such header")
    if not length.isdigit() or int(length) > len(answer.content):
        raise CheckFailed(f"a length within the body of {len(answer.content)} bytes", f"{HEADER_LENGTH}: {length}")
    head = RestAnswer(answer.status, answer.headers, answer.content[: int(length)], answer.elapsed_s)
    return head.object(), answer.content[int(length) :]


def sizes(head: dict[str, Any]) -> list[int | None]:
    return [(item.get("parameters") or {}).get("binary_data_size") for item in head.get("outputs", [])]


@check("rest.binary.input", level=MUST, source=BINARY.request, needs=needs())
async def binary_input(target: Target) -> None:
    """Input tensors as binary data are accepted."""
    answer = await send(target, *request_of(target.example()))
    expect(answer.status, "status").equals(200)
    equal(parse_infer(answer), await as_json(target), "binary inputs and JSON inputs")


@check("rest.binary.mixed_inputs", level=MUST, source=BINARY.request, needs=needs(second_input))
async def mixed_inputs(target: Target) -> None:
    """Input tensors in JSON and as binary data may be mixed; binary data follow in the order of the inputs."""
    described, chunks = [], []
    for index, tensor in enumerate(target.example()):
        if index % 2 or tensor.datatype in ("FP16", "BF16"):
            item, raw = as_binary(tensor)
            described.append(item)
            chunks.append(raw)
        else:
            described.append(json_input(tensor))
    answer = await send(target, {"inputs": described}, chunks)
    expect(answer.status, "status").equals(200)
    equal(parse_infer(answer), await as_json(target), "mixed inputs and JSON inputs")


@check("rest.binary.output", level=MUST, source=BINARY.request, needs=needs())
async def binary_output(target: Target) -> None:
    """An output with "binary_data": true comes back as binary data, to a JSON request too."""
    name = (await as_json(target)).outputs[0].name
    wish = [{"name": name, "parameters": {"binary_data": True}}]
    head, _ = split(await target.rest.infer_raw(target.body(outputs=wish)))
    expect(sizes(head)[0], f"binary_data_size of {name}").is_a(int, "a number of bytes")


@check("rest.binary.all_outputs", level=MUST, source=BINARY.request, needs=needs())
async def all_outputs(target: Target) -> None:
    """With "binary_data_output": true all outputs come back as binary data."""
    head, _ = split(await target.rest.infer_raw(target.body(parameters={"binary_data_output": True})))
    for item, size in zip(head["outputs"], sizes(head), strict=True):
        expect(size, f"binary_data_size of {item['name']}").is_a(int, "a number of bytes")


@check("rest.binary.output_override", level=MUST, source=BINARY.request, needs=needs(second_output))
async def output_override(target: Target) -> None:
    """ "binary_data": false of one output overrides "binary_data_output": true."""
    first, second = target.outputs[0].name, target.outputs[1].name
    wish = [{"name": first, "parameters": {"binary_data": False}}, {"name": second}]
    head, _ = split(await target.rest.infer_raw(target.body(outputs=wish, parameters={"binary_data_output": True})))
    by_name = {item["name"]: item for item in head["outputs"]}
    expect("data" in by_name[first], f"JSON data of {first}").is_true("data in the JSON part")
    expect(sizes({"outputs": [by_name[second]]})[0], f"binary_data_size of {second}").is_a(int, "a number of bytes")


@check("rest.binary.header_length", level=MUST, source=BINARY.response, needs=needs())
async def header_length(target: Target) -> None:
    """Inference-Header-Content-Length is exactly the length of the answer's JSON part."""
    head, tail = split(await all_binary(target))
    expect(head.get("outputs"), "outputs").satisfies(lambda value: isinstance(value, list), "a list")
    announced = sum(size or 0 for size in sizes(head))
    expect(len(tail), "bytes after the JSON part").equals(announced)


@check("rest.binary.output_sizes", level=MUST, source=BINARY.response, needs=needs())
async def output_sizes(target: Target) -> None:
    """ "binary_data_size" of each output is what its shape and datatype need."""
    head, tail = split(await all_binary(target))
    for item, size in zip(head["outputs"], sizes(head), strict=True):
        expect(size, f"binary_data_size of {item['name']}").is_a(int, "a number of bytes")
        assert size is not None
        from_raw(item["name"], item["datatype"], tuple(item["shape"]), tail[:size])
        tail = tail[size:]


@check("rest.binary.content_type", level=SHOULD, source=BINARY.response, needs=needs())
async def content_type(target: Target) -> None:
    """An answer with binary data comes as application/octet-stream."""
    expect((await all_binary(target)).content_type, "content type").equals(OCTETS)


@check("rest.binary.equals_json", level=MUST, source=BINARY.response, needs=needs())
async def equals_json(target: Target) -> None:
    """Binary in and out gives the same outputs, bit for bit, as JSON in and out."""
    came = parse_infer(await all_binary(target))
    wanted = await as_json(target)
    expect(sorted(t.name for t in came.outputs), "outputs").equals(sorted(t.name for t in wanted.outputs))
    equal(came, wanted, "binary and JSON")


@check("rest.binary.id_echo", level=MUST, source=BINARY.response, needs=needs())
async def id_echo(target: Target) -> None:
    """A binary request's id comes back unchanged."""
    expect((await target.rest.infer_binary(target.example(), request_id="request-42")).id, "id").equals("request-42")


def _round_trip(datatype: str) -> None:
    async def run(target: Target) -> None:
        await require_identity(target)
        await round_trip(target, datatype, typical(datatype))

    REGISTRY.add(
        Check(
            f"rest.binary.{datatype.lower()}",
            MUST,
            BINARY.datatypes,
            f"{datatype} as binary data comes back from an identity model bit for bit.",
            run,
            needs(has(datatype)),
        )
    )


async def round_trip(target: Target, datatype: str, values: list[Any]) -> None:
    for place, inputs in requests(target, datatype, values):
        came = (await target.rest.infer_binary(inputs)).outputs[place]
        sent = inputs[place]
        if not same(sent, came.with_name(sent.name)):
            raise CheckFailed(f"{to_raw(sent)[:64].hex(' ')}", f"{to_raw(came)[:64].hex(' ')} in {came.name}")


for _datatype in DTYPES:
    _round_trip(_datatype)


@check("rest.binary.nonfinite", level=MUST, source=BINARY.datatypes, needs=needs(has("FP32")))
async def nonfinite(target: Target) -> None:
    """NaN, both infinities and -0.0 in FP32 come back bit for bit: binary data have no need to refuse them."""
    await require_identity(target)
    await round_trip(target, "FP32", [math.nan, math.inf, -math.inf, -0.0])


@check("rest.binary.bytes_not_utf8", level=MUST, source=BINARY.datatypes, needs=needs(has("BYTES")))
async def bytes_not_utf8(target: Target) -> None:
    """BYTES elements that are not UTF-8 come back bit for bit."""
    await require_identity(target)
    await round_trip(target, "BYTES", [b"\x00\xff\xfe", b"\x80", bytes(range(256)), b""])


@check("rest.binary.nonfinite_as_json", level=MUST, source=BINARY.response, needs=needs(has("FP32")))
async def nonfinite_as_json(target: Target) -> None:
    """NaN that came as binary data and is asked back as JSON: a 4xx, or JSON that says so; never an answer that is not
    JSON."""
    await require_identity(target)
    ((place, inputs), *_) = requests(target, "FP32", [math.nan])
    answer = await target.rest.infer_binary_raw(inputs, binary_output=False)
    if 400 <= answer.status < 500:
        return
    expect(answer.status, "status").equals(200)
    head, tail = (answer.object(), b"") if HEADER_LENGTH not in answer.headers else split(answer)
    if tail:
        return  # as binary data, which is an honest answer too
    came = np.array(head["outputs"][place]["data"], dtype=object).reshape(-1).tolist()[0]
    expect(came, "NaN").satisfies(lambda value: value is None or str(value).lower() == "nan", "NaN in words, or null")


@check("rest.binary.zero_elements", level=SHOULD, source=BINARY.request, needs=needs(free_batch))
async def zero_elements(target: Target) -> None:
    """A tensor of no elements (binary_data_size 0) is answered, or refused with 4xx."""
    empty = [Tensor(t.name, t.datatype, (0, *t.shape[1:]), t.flat[:0]) for t in target.example()]
    answer = await send(target, *request_of(empty))
    if 400 <= answer.status < 500:
        return
    expect(answer.status, "status").equals(200)
    result = parse_infer(answer)
    if repeats(target.example(), await as_json(target)):
        expect([tensor.shape[0] for tensor in result.outputs], "rows").equals([0] * len(empty))


def _refused(name: str, requirement: str, spoil: Callable[[dict[str, Any], list[bytes]], str | None]) -> None:
    async def run(target: Target) -> None:
        head, chunks = request_of(target.example())
        length = spoil(head, chunks)
        answer = await send(target, head, chunks, length)
        expect(answer.status, "status").satisfies(lambda status: 400 <= status < 500, "4xx")
        afterwards = await target.rest.infer_raw(json_request(target.example()))
        expect(afterwards.status, "status of a valid request afterwards").equals(200)

    REGISTRY.add(Check(f"rest.binary.{name}", MUST, BINARY.request, requirement, run, needs()))


def _smaller(head: dict[str, Any], chunks: list[bytes]) -> None:
    head["inputs"][-1]["parameters"]["binary_data_size"] -= 1
    chunks[-1] = chunks[-1][:-1]


def _larger(head: dict[str, Any], chunks: list[bytes]) -> None:
    head["inputs"][-1]["parameters"]["binary_data_size"] += 8
    chunks[-1] += bytes(8)


def _short(head: dict[str, Any], chunks: list[bytes]) -> None:
    chunks[-1] = chunks[-1][:-1]


def _long(head: dict[str, Any], chunks: list[bytes]) -> None:
    chunks.append(b"\x00" * 8)


def _no_size(head: dict[str, Any], chunks: list[bytes]) -> None:
    head["inputs"][-1]["parameters"]["binary_data_size"] = "many"


_refused("size_below_shape", "binary_data_size below what the shape needs is refused with 4xx.", _smaller)
_refused("size_above_shape", "binary_data_size above what the shape needs is refused with 4xx.", _larger)
_refused("body_short", "A body that ends before its last binary tensor does is refused with 4xx.", _short)
_refused("body_long", "A body that goes on after its last binary tensor is refused with 4xx.", _long)
_refused("size_not_a_number", "binary_data_size that is no number is refused with 4xx.", _no_size)
_refused(
    "header_beyond_body",
    "Inference-Header-Content-Length beyond the body is refused with 4xx.",
    lambda head, chunks: "99999999",
)
_refused(
    "header_not_a_number",
    "Inference-Header-Content-Length that is no number is refused with 4xx.",
    lambda head, chunks: "many",
)
_refused(
    "header_too_short",
    "Inference-Header-Content-Length that cuts the JSON part off is refused with 4xx.",
    lambda head, chunks: "7",
)


@check("rest.binary.json_by_default", level=SHOULD, source=BINARY.response, needs=needs())
async def json_by_default(target: Target) -> None:
    """A JSON request that asks for nothing binary is answered in JSON alone."""
    answer = await target.rest.infer_raw(target.body())
    if HEADER_LENGTH in answer.headers and int(answer.headers[HEADER_LENGTH]) != len(answer.content):
        raise CheckFailed("an answer in JSON", f"{HEADER_LENGTH}: {answer.headers[HEADER_LENGTH]}")
    for item in answer.object()["outputs"]:
        if "data" not in item:
            raise CheckFailed(f"data of {item.get('name')} in JSON", json.dumps(item)[:200])
