"""rest.errors: a client's mistakes. Each is sent once and judged four times: status, body, content type, recovery."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from harness.target.protocol.rest import RestAnswer
from scenarios.suites.conformance.checks import MUST, SHOULD, Check, Need, Skip, Source, expect
from scenarios.suites.conformance.rest_metadata import UNKNOWN_MODEL, UNKNOWN_VERSION
from scenarios.suites.conformance.sources import HTTP, OIP_REST, REGISTRY
from scenarios.suites.conformance.target import (
    Target,
    integer_input,
    metadata,
    numeric_input,
    payload,
    second_input,
)

Body = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    name: str
    what: str
    send: Callable[[Target], Awaitable[RestAnswer]]
    source: Source = OIP_REST.request
    needs: tuple[Need, ...] = (payload,)


MISTAKES: list[Mistake] = []


def raw(name: str, what: str, content: bytes | str, source: Source = OIP_REST.request, **headers: str) -> None:
    """A body that does not depend on the model."""

    async def send(target: Target) -> RestAnswer:
        return await target.rest.infer_raw(content, headers or None)

    MISTAKES.append(Mistake(name, what, send, source, ()))


def spoilt(
    name: str, what: str, spoil: Callable[[Body], object], *needs: Need, source: Source = OIP_REST.request
) -> None:
    """A valid request with one thing wrong; ``spoil`` changes it in place."""

    async def send(target: Target) -> RestAnswer:
        body = json.loads(json.dumps(target.body()))
        spoil(body)
        return await target.rest.infer_raw(body)

    MISTAKES.append(Mistake(name, what, send, source, (payload, *needs)))


def elsewhere(
    name: str, what: str, path: Callable[[Target], str], method: str = "POST", source: Source = OIP_REST.error
) -> None:
    """A valid request to the wrong place."""

    async def send(target: Target) -> RestAnswer:
        content = target.body() if method == "POST" else None
        return await target.rest.request(method, path(target), content)

    MISTAKES.append(Mistake(name, what, send, source))


def first(body: Body) -> Body:
    item: Body = body["inputs"][0]
    return item


def numeric(body: Body) -> Body:
    return next(item for item in body["inputs"] if item["datatype"] not in ("BYTES", "BOOL"))


def narrow(body: Body) -> Body:
    return next(
        item for item in body["inputs"] if item["datatype"] in ("INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32")
    )


def ragged(body: Body) -> None:
    item = first(body)
    data = item["data"]
    item["data"] = [data[:1], data[1:] + data[:1] * 2]


def wrong_datatype(body: Body) -> None:
    item = first(body)
    item["datatype"], item["data"] = (
        "BYTES" if item["datatype"] != "BYTES" else "FP32",
        (["a"] * len(item["data"]) if item["datatype"] != "BYTES" else [1.0] * len(item["data"])),
    )


raw("malformed_json", "JSON that is cut off", '{"inputs": [')
raw("empty_body", "an empty body", b"")
raw("not_an_object", "JSON that is not an object", "[1, 2, 3]")
raw("inputs_missing", 'a request without "inputs"', "{}")
raw("inputs_empty", 'an empty list of "inputs"', '{"inputs": []}')
raw("inputs_not_a_list", '"inputs" that is not a list', '{"inputs": {"a": 1}}')
spoilt("input_without_name", "an input without a name", lambda body: first(body).pop("name"))
spoilt("input_without_shape", "an input without a shape", lambda body: first(body).pop("shape"))
spoilt("input_without_datatype", "an input without a datatype", lambda body: first(body).pop("datatype"))
spoilt("input_without_data", "an input without data", lambda body: first(body).pop("data"))
spoilt(
    "unknown_input",
    "an input that the model does not have",
    lambda body: first(body).update(name="no-such-input-7d1f"),
    metadata,
)
spoilt("duplicate_input", "the same input twice", lambda body: body["inputs"].append(dict(first(body))))
spoilt("missing_input", "a request that lacks a required input", lambda body: body["inputs"].pop(), second_input)
spoilt(
    "unknown_datatype",
    "a datatype that does not exist",
    lambda body: first(body).update(datatype="FP31"),
    source=OIP_REST.datatypes,
)
spoilt(
    "lower_case_datatype",
    "a datatype in lower case",
    lambda body: first(body).update(datatype=first(body)["datatype"].lower()),
    source=OIP_REST.datatypes,
)
spoilt("wrong_datatype", "a datatype other than the model's", wrong_datatype, metadata)
spoilt(
    "negative_dimension",
    "a negative dimension",
    lambda body: first(body)["shape"].__setitem__(0, -first(body)["shape"][0]),
)
spoilt("fractional_dimension", "a fractional dimension", lambda body: first(body)["shape"].__setitem__(0, 1.5))
spoilt(
    "too_few_elements",
    "fewer elements than the shape says",
    lambda body: first(body).update(data=first(body)["data"][:-1]),
)
spoilt(
    "too_many_elements",
    "more elements than the shape says",
    lambda body: first(body)["data"].append(first(body)["data"][0]),
)
spoilt("ragged_data", "ragged nested data", ragged)
spoilt(
    "string_in_numbers",
    "a string in a tensor of numbers",
    lambda body: numeric(body)["data"].__setitem__(0, "seven"),
    numeric_input,
)
spoilt(
    "out_of_range",
    "a number out of the datatype's range",
    lambda body: narrow(body)["data"].__setitem__(0, 1 << 40),
    integer_input,
)
spoilt("wrong_rank", "one dimension more than the model has", lambda body: first(body)["shape"].append(1), metadata)
elsewhere("unknown_model", "an unknown model", lambda target: f"{UNKNOWN_MODEL}/infer")
elsewhere(
    "unknown_version", "an unknown version", lambda target: f"{target.rest.model_path}/versions/{UNKNOWN_VERSION}/infer"
)
elsewhere("wrong_method", "GET instead of POST", lambda target: f"{target.rest.model_path}/infer", "GET", HTTP.methods)


def need_refusal(answer: RestAnswer) -> None:
    """What was not refused has no refusal to judge; the check of the status says so already."""
    if answer.status < 400:
        raise Skip(f"not refused: status {answer.status}")


async def _wrong_content_type(target: Target) -> RestAnswer:
    return await target.rest.infer_raw(json.dumps(target.body()), {"Content-Type": "application/xml"})


async def _answer(mistake: Mistake, target: Target) -> RestAnswer:
    answer: RestAnswer = await target.once(f"errors.{mistake.name}", lambda: mistake.send(target))
    return answer


def _register(mistake: Mistake) -> None:
    async def status(target: Target) -> None:
        answer = await _answer(mistake, target)
        expect(answer.status, "status").satisfies(lambda value: 400 <= value < 500, "4xx")

    async def body(target: Target) -> None:
        answer = await _answer(mistake, target)
        need_refusal(answer)
        expect(answer.object().get("error"), "error").is_text()

    async def content_type(target: Target) -> None:
        answer = await _answer(mistake, target)
        need_refusal(answer)
        expect(answer.content_type, "content type").equals("application/json")

    async def recovers(target: Target) -> None:
        await _answer(mistake, target)
        answer = (
            await target.rest.infer_raw(target.body())
            if target.has_payload
            else await target.rest.get("/v2/health/live")
        )
        expect(answer.status, "status of a valid request afterwards").equals(200)

    what, needs = mistake.what, mistake.needs
    for name, level, source, requirement, run in (
        ("status", MUST, mistake.source, f"{what[0].upper()}{what[1:]} is refused with 4xx.", status),
        ("body", MUST, OIP_REST.error, f'The refusal of {what} has a body with a non-empty string "error".', body),
        ("content_type", SHOULD, HTTP.json, f"The refusal of {what} comes as application/json.", content_type),
        ("recovers", MUST, HTTP.semantics, f"After {what}, the server still answers.", recovers),
    ):
        REGISTRY.add(Check(f"rest.errors.{mistake.name}.{name}", level, source, requirement, run, needs))


for _mistake in MISTAKES:
    _register(_mistake)


@REGISTRY.check("rest.errors.wrong_content_type", level=SHOULD, source=HTTP.semantics, needs=[payload])
async def wrong_content_type(target: Target) -> None:
    """A JSON body announced as application/xml is refused with 4xx or read as JSON, never answered with 5xx."""
    answer = await _wrong_content_type(target)
    expect(answer.status, "status").satisfies(lambda value: value < 500, "below 500")
