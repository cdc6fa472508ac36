"""rest.infer."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any

from harness.target.protocol.rest import RestAnswer, json_request, parse_infer
from harness.target.protocol.tensors import Tensor, same
from scenarios.suites.conformance.checks import MAY, MUST, SHOULD, CheckFailed, Skip, expect
from scenarios.suites.conformance.sources import HTTP, OIP_REST, check
from scenarios.suites.conformance.target import (
    Target,
    body_of,
    data_of,
    free_batch,
    gather,
    metadata,
    payload,
    second_output,
    versions,
)

UNICODE_ID = "7f3a-ü-☃"


async def infer(target: Target, **fields: Any) -> dict[str, Any]:
    return body_of(await target.rest.infer_raw(target.body(**fields)))


async def plain(target: Target) -> RestAnswer:
    """One valid request without anything optional, shared by the checks that only look at its answer."""
    answer: RestAnswer = await target.once("infer.plain", lambda: target.rest.infer_raw(target.body()))
    return answer


@check("rest.infer.status", level=MUST, source=OIP_REST.inference, needs=[payload])
async def status(target: Target) -> None:
    """A valid inference request is answered 200."""
    expect((await plain(target)).status, "status").equals(200)


@check("rest.infer.content_type", level=SHOULD, source=HTTP.json, needs=[payload])
async def content_type(target: Target) -> None:
    """A JSON answer comes as application/json."""
    expect((await plain(target)).content_type, "content type").equals("application/json")


@check("rest.infer.model_name", level=MUST, source=OIP_REST.response, needs=[payload])
async def model_name(target: Target) -> None:
    """ "model_name" is the model's name."""
    expect(body_of(await plain(target)).get("model_name"), "model_name").equals(target.model)


@check("rest.infer.model_version", level=MUST, source=OIP_REST.response, needs=[payload])
async def model_version(target: Target) -> None:
    """ "model_version" is absent or a string, never null."""
    body = body_of(await plain(target))
    if "model_version" in body:
        expect(body["model_version"], "model_version").is_a(str, "a string, or no such field")


@check("rest.infer.id_echo", level=MUST, source=OIP_REST.request, needs=[payload])
async def id_echo(target: Target) -> None:
    """A request's id comes back unchanged in the response."""
    expect((await infer(target, request_id="request-42")).get("id"), "id").equals("request-42")


@check("rest.infer.id_unicode", level=SHOULD, source=OIP_REST.request, needs=[payload])
async def id_unicode(target: Target) -> None:
    """An id beyond ASCII comes back unchanged."""
    expect((await infer(target, request_id=UNICODE_ID)).get("id"), "id").equals(UNICODE_ID)


@check("rest.infer.id_long", level=SHOULD, source=OIP_REST.request, needs=[payload])
async def id_long(target: Target) -> None:
    """An id of 1 KiB comes back unchanged."""
    expect((await infer(target, request_id="a1b2" * 256)).get("id"), "id").equals("a1b2" * 256)


@check("rest.infer.id_absent", level=SHOULD, source=OIP_REST.response, needs=[payload])
async def id_absent(target: Target) -> None:
    """Without an id in the request, the response has none or an empty one."""
    body = body_of(await plain(target))
    expect(body.get("id", ""), "id").equals("")


@check("rest.infer.parameters_not_null", level=MUST, source=OIP_REST.response, needs=[payload])
async def parameters_not_null(target: Target) -> None:
    """ "parameters" is absent or an object, never null, in the response and in each output."""
    body = body_of(await plain(target))
    for where, holder in [
        ("response", body),
        *((f"output {item.get('name')}", item) for item in body.get("outputs", [])),
    ]:
        if "parameters" in holder:
            expect(holder["parameters"], f"parameters of the {where}").is_a(dict, "an object, or no such field")


@check("rest.infer.outputs", level=MUST, source=OIP_REST.response, needs=[payload])
async def outputs(target: Target) -> None:
    """ "outputs" is a list that is not empty, each with name, datatype, shape and data."""
    body = body_of(await plain(target))
    expect(body.get("outputs"), "outputs").satisfies(
        lambda value: isinstance(value, list) and bool(value), "a list that is not empty"
    )
    for item in body["outputs"]:
        expect(item.get("name"), "name").is_text()
        expect(item.get("datatype"), f"datatype of {item['name']}").is_text()
        expect(item.get("shape"), f"shape of {item['name']}").is_a(list, "a list")
        expect(item.get("data"), f"data of {item['name']}").is_a(list, "a list")


@check("rest.infer.element_count", level=MUST, source=OIP_REST.data, needs=[payload])
async def element_count(target: Target) -> None:
    """Each output has as many elements as the product of its shape."""
    for item in body_of(await plain(target))["outputs"]:
        flat = data_of([item])[item["name"]][1]
        expect(len(flat), f"elements of {item['name']}").equals(math.prod(item["shape"]))


@check("rest.infer.output_names", level=MUST, source=OIP_REST.model_metadata, needs=[payload, metadata])
async def output_names(target: Target) -> None:
    """Output names and datatypes are those of the metadata."""
    if not target.outputs:
        raise Skip("the metadata name no outputs")
    came = {item["name"]: item["datatype"] for item in body_of(await plain(target))["outputs"]}
    expect(came, "outputs").equals({spec.name: spec.datatype for spec in target.outputs})


@check("rest.infer.output_shapes", level=MUST, source=OIP_REST.model_metadata, needs=[payload, metadata])
async def output_shapes(target: Target) -> None:
    """Output shapes agree with the metadata, where -1 is any size."""
    wanted = {spec.name: spec.shape for spec in target.outputs}
    for item in body_of(await plain(target))["outputs"]:
        if item["name"] not in wanted:
            continue
        shape = wanted[item["name"]]
        fits = len(shape) == len(item["shape"]) and all(w in (-1, s) for w, s in zip(shape, item["shape"], strict=True))
        expect(fits, f"shape {item['shape']} of {item['name']}").is_true(f"{list(shape)}")


@check("rest.infer.nested_data", level=MUST, source=OIP_REST.data, needs=[payload])
async def nested_data(target: Target) -> None:
    """Tensor data in their multi-dimensional form are accepted."""
    expect((await target.rest.infer_raw(target.body(nested=True))).status, "status").equals(200)


@check("rest.infer.flat_data", level=MUST, source=OIP_REST.data, needs=[payload])
async def flat_data(target: Target) -> None:
    """Tensor data flattened into one dimension are accepted."""
    expect((await target.rest.infer_raw(target.body())).status, "status").equals(200)


@check("rest.infer.nested_equals_flat", level=MUST, source=OIP_REST.data, needs=[payload])
async def nested_equals_flat(target: Target) -> None:
    """Nested and flat data of the same tensor give the same output."""
    flat, nested = await infer(target), await infer(target, nested=True)
    expect(data_of(nested["outputs"]), "outputs of the nested request").equals(data_of(flat["outputs"]))


@check("rest.infer.requested_output", level=MUST, source=OIP_REST.request, needs=[payload])
async def requested_output(target: Target) -> None:
    """With "outputs" in the request, only those come back."""
    names = [item["name"] for item in body_of(await plain(target))["outputs"]]
    body = await infer(target, outputs=[{"name": names[-1]}])
    expect([item["name"] for item in body["outputs"]], "outputs").equals([names[-1]])


@check("rest.infer.requested_order", level=SHOULD, source=OIP_REST.request, needs=[payload, second_output])
async def requested_order(target: Target) -> None:
    """Requested outputs come back in the order of the request."""
    names = [spec.name for spec in reversed(target.outputs)]
    body = await infer(target, outputs=[{"name": name} for name in names])
    expect([item["name"] for item in body["outputs"]], "outputs").equals(names)


@check("rest.infer.unknown_output", level=MUST, source=OIP_REST.error, needs=[payload])
async def unknown_output(target: Target) -> None:
    """A requested output that the model does not have is refused with 4xx."""
    answer = await target.rest.infer_raw(target.body(outputs=[{"name": "no-such-output-7d1f"}]))
    expect(answer.status, "status").satisfies(lambda value: 400 <= value < 500, "4xx")


@check("rest.infer.parameters", level=MUST, source=OIP_REST.parameters, needs=[payload])
async def parameters(target: Target) -> None:
    """Request parameters of string, number and boolean are accepted."""
    wish = {"servecert_text": "a", "servecert_number": 1.5, "servecert_whole": 7, "servecert_flag": True}
    expect((await target.rest.infer_raw(target.body(parameters=wish))).status, "status").equals(200)


@check("rest.infer.tensor_parameters", level=MUST, source=OIP_REST.parameters, needs=[payload])
async def tensor_parameters(target: Target) -> None:
    """Parameters of an input tensor are accepted."""
    body = target.body()
    body["inputs"][0]["parameters"] = {"servecert_text": "a", "servecert_flag": False}
    expect((await target.rest.infer_raw(body)).status, "status").equals(200)


@check("rest.infer.unknown_key", level=SHOULD, source=OIP_REST.request, needs=[payload])
async def unknown_key(target: Target) -> None:
    """An unknown top-level key is ignored or refused with 4xx, never answered with 5xx."""
    answer = await target.rest.infer_raw(target.body(servecert_unknown={"a": [1]}))
    expect(answer.status, "status").satisfies(lambda value: value == 200 or 400 <= value < 500, "200 or 4xx")


async def _batch(target: Target, count: int) -> None:
    inputs = target.batch(count)
    single = parse_infer(await target.rest.infer_raw(json_request([_row(tensor) for tensor in inputs])))
    batch = parse_infer(await target.rest.infer_raw(json_request(inputs)))
    for tensor in batch.outputs:
        expect(tensor.shape[0] if tensor.shape else 0, f"first dimension of {tensor.name}").equals(count)
        one = single.output(tensor.name)
        expect(len(tensor.flat), f"elements of {tensor.name}").equals(count * len(one.flat))


def _row(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.datatype, (1, *tensor.shape[1:]), tensor.array.reshape(tensor.shape)[:1])


@check("rest.infer.batch_2", level=MUST, source=OIP_REST.request, needs=[free_batch])
async def batch_2(target: Target) -> None:
    """Where the first dimension is variable, a batch of 2 gives outputs for both."""
    await _batch(target, 2)


@check("rest.infer.batch_8", level=MUST, source=OIP_REST.request, needs=[free_batch])
async def batch_8(target: Target) -> None:
    """Where the first dimension is variable, a batch of 8 gives outputs for all."""
    await _batch(target, 8)


@check("rest.infer.deterministic", level=SHOULD, source=OIP_REST.inference, needs=[payload])
async def deterministic(target: Target) -> None:
    """The same input gives the same output twice."""
    first, second = await infer(target), await infer(target)
    expect(data_of(second["outputs"]), "outputs of the second request").equals(data_of(first["outputs"]))


@check("rest.infer.keep_alive", level=MUST, source=HTTP.persistence, needs=[payload])
async def keep_alive(target: Target) -> None:
    """50 requests in a row on persistent connections are all answered, each with its own id."""
    for number in range(50):
        expect((await infer(target, request_id=f"turn-{number}")).get("id"), "id").equals(f"turn-{number}")


@check("rest.infer.concurrent", level=MUST, source=OIP_REST.inference, needs=[payload])
async def concurrent(target: Target) -> None:
    """32 concurrent requests each get their own id and their own answer."""
    requests = target.distinct(32)
    wanted = [parse_infer(await target.rest.infer_raw(json_request(inputs))) for inputs in requests[:8]]

    async def ask(index: int) -> Any:
        body = json_request(requests[index % 8], request_id=f"client-{index}")
        return parse_infer(await target.rest.infer_raw(body))

    for index, result in enumerate(await gather(32, ask)):
        expect(result.id, "id").equals(f"client-{index}")
        for tensor in result.outputs:
            if not same(tensor, wanted[index % 8].output(tensor.name)):
                raise CheckFailed(f"the answer to request {index} as it was alone", "another request's numbers")


async def _large(target: Target, size: int) -> None:
    one = len(json.dumps(target.body()))
    count = math.ceil(size / max(1, len(json.dumps(json_request(target.batch(64)))) / 64)) if one < size else 1
    answer = await target.rest.infer_raw(json_request(target.batch(count)), timeout_s=45)
    expect(answer.status, f"status for {count} rows").is_one_of([200, 413])


@check("rest.infer.body_1mib", level=SHOULD, source=OIP_REST.request, needs=[free_batch], timeout_s=50)
async def body_1mib(target: Target) -> None:
    """A JSON body of 1 MiB is accepted, or refused with 413."""
    await _large(target, 1 << 20)


@check("rest.infer.body_32mib", level=SHOULD, source=OIP_REST.request, needs=[free_batch], timeout_s=60)
async def body_32mib(target: Target) -> None:
    """A JSON body of 32 MiB is accepted, or refused with 413."""
    await _large(target, 32 << 20)


@check("rest.infer.chunked", level=SHOULD, source=HTTP.framing, needs=[payload])
async def chunked(target: Target) -> None:
    """A request with chunked transfer coding instead of Content-Length is accepted."""
    body = json.dumps(target.body(request_id="chunked")).encode()
    half = len(body) // 2
    answer = await target.rest.infer_raw(None, {"Content-Type": "application/json"}, chunks=[body[:half], body[half:]])
    expect(body_of(answer).get("id"), "id").equals("chunked")


@check("rest.infer.accept_gzip", level=MAY, source=HTTP.encoding, needs=[payload])
async def accept_gzip(target: Target) -> None:
    """With Accept-Encoding: gzip the answer is readable, and compressed where it is worth it."""
    answer = await target.rest.infer_raw(target.body(request_id="zip"), {"Accept-Encoding": "gzip"})
    expect(body_of(answer).get("id"), "id").equals("zip")
    if answer.headers.get("content-encoding") != "gzip":
        raise Skip("the server does not compress this answer")


@check("rest.infer.gzip_request", level=MAY, source=HTTP.encoding, needs=[payload])
async def gzip_request(target: Target) -> None:
    """A request body with Content-Encoding: gzip is accepted."""
    body = gzip.compress(json.dumps(target.body()).encode())
    answer = await target.rest.infer_raw(body, {"Content-Encoding": "gzip", "Content-Type": "application/json"})
    expect(answer.status, "status").equals(200)


@check("rest.infer.with_version", level=MUST, source=OIP_REST.inference, needs=[payload, versions])
async def with_version(target: Target) -> None:
    """With a listed version in the path: 200 and the same outputs."""
    path = f"{target.rest.model_path}/versions/{target.versions[-1]}/infer"
    versioned = body_of(await target.rest.request("POST", path, target.body()))
    expect(data_of(versioned["outputs"]), "outputs").equals(data_of(body_of(await plain(target))["outputs"]))
