"""grpc.health, grpc.metadata, grpc.infer."""

from __future__ import annotations

import math
import time
from typing import Any

import grpc as grpc_lib

from harness.target.protocol.grpc_client import GrpcStatusError, infer_request, parse_infer, specs
from harness.target.protocol.messages import MESSAGES, SERVICE
from harness.target.protocol.rest import parse_infer as parse_rest
from harness.target.protocol.tensors import InferResult, same
from scenarios.suites.conformance.checks import MAY, MUST, SHOULD, CheckFailed, Skip, expect
from scenarios.suites.conformance.sources import GRPC, OIP_GRPC, check
from scenarios.suites.conformance.target import (
    Target,
    body_of,
    free_batch,
    gather,
    grpc,
    grpc_payload,
    second_output,
    typed_contents,
    versions,
)

NO_MODEL = "no-such-model-7d1f"
LIST_SERVICES = b"\x3a\x00"
"""A ServerReflectionRequest: list_services (7), empty."""


def raw_first(target: Target) -> bool:
    """Typed contents where every datatype has them, else raw."""
    return not target.typed


async def model_infer(target: Target, **options: Any) -> Any:
    request = infer_request(target.model, target.example(), raw=raw_first(target), **options)
    return await target.grpc_client().call("ModelInfer", request)


def require_same(left: InferResult, right: InferResult, what: str) -> None:
    for tensor in left.outputs:
        other = right.output(tensor.name)
        if not same(tensor, other):
            raise CheckFailed(
                f"{what}: the same bits in {tensor.name}", f"{tensor.flat.tolist()[:8]} and {other.flat.tolist()[:8]}"
            )


def refusal(method: str, error: GrpcStatusError | None) -> GrpcStatusError:
    """The error, where it refuses something: no error does not, and neither does a method that is not there."""
    if error is None:
        raise CheckFailed("a status other than OK", "OK")
    if error.code is grpc_lib.StatusCode.UNIMPLEMENTED:
        raise Skip(f"{method} is not implemented")
    return error


async def refused(target: Target, method: str, request: Any) -> GrpcStatusError:
    try:
        await target.grpc_client().call(method, request)
    except GrpcStatusError as error:
        return refusal(method, error)
    return refusal(method, None)


# grpc.health


@check("grpc.health.server_live", level=MUST, source=OIP_GRPC.health, needs=[grpc])
async def server_live(target: Target) -> None:
    """ServerLive answers true while the server runs."""
    answer = await target.grpc_client().call("ServerLive", MESSAGES["ServerLiveRequest"]())
    expect(answer.live, "live").equals(True)


@check("grpc.health.server_ready", level=MUST, source=OIP_GRPC.health, needs=[grpc])
async def server_ready(target: Target) -> None:
    """ServerReady answers true when all models are ready."""
    answer = await target.grpc_client().call("ServerReady", MESSAGES["ServerReadyRequest"]())
    expect(answer.ready, "ready").equals(True)


@check("grpc.health.model_ready", level=MUST, source=OIP_GRPC.health, needs=[grpc])
async def model_ready(target: Target) -> None:
    """ModelReady answers true for a model that is ready."""
    answer = await target.grpc_client().call("ModelReady", MESSAGES["ModelReadyRequest"](name=target.model))
    expect(answer.ready, "ready").equals(True)


@check("grpc.health.unknown_model", level=MUST, source=OIP_GRPC.health, needs=[grpc])
async def unknown_model_ready(target: Target) -> None:
    """ModelReady of an unknown model answers false or NOT_FOUND."""
    try:
        answer = await target.grpc_client().call("ModelReady", MESSAGES["ModelReadyRequest"](name=NO_MODEL))
    except GrpcStatusError as error:
        expect(error.code.name, "status").equals("NOT_FOUND")
    else:
        expect(answer.ready, "ready").equals(False)


@check("grpc.health.standard", level=MAY, source=GRPC.health, needs=[grpc])
async def standard_health(target: Target) -> None:
    """The standard health service (grpc.health.v1), where there is one, answers SERVING for the whole server."""
    answer = await target.grpc_client().raw_call("/grpc.health.v1.Health/Check", b"")
    if answer is None:
        raise Skip("grpc.health.v1 is not served")
    expect(answer.hex(" "), "HealthCheckResponse").equals("08 01")  # status (1): SERVING (1)


@check("grpc.health.reflection", level=MAY, source=GRPC.reflection, needs=[grpc])
async def reflection(target: Target) -> None:
    """Server reflection, where there is any, lists the inference service."""
    for version in ("v1", "v1alpha"):
        method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        answer = await target.grpc_client().raw_call(method, LIST_SERVICES, stream=True)
        if answer is not None:
            expect(SERVICE.encode() in answer, f"{SERVICE} in {answer[:300]!r}").is_true("the service's name")
            return
    raise Skip("server reflection is not served")


# grpc.metadata


@check("grpc.metadata.server", level=MUST, source=OIP_GRPC.server_metadata, needs=[grpc])
async def server_metadata(target: Target) -> None:
    """ServerMetadata has the name and version that REST gives."""
    answer = await target.grpc_client().call("ServerMetadata", MESSAGES["ServerMetadataRequest"]())
    expect(answer.name, "name").is_text()
    expect(answer.version, "version").is_text()
    body = body_of(await target.rest.get("/v2"))
    expect((answer.name, answer.version), "name and version").equals((body.get("name"), body.get("version")))


@check("grpc.metadata.extensions", level=MUST, source=OIP_GRPC.server_metadata, needs=[grpc])
async def server_extensions(target: Target) -> None:
    """ServerMetadata lists the extensions that REST lists."""
    answer = await target.grpc_client().call("ServerMetadata", MESSAGES["ServerMetadataRequest"]())
    body = body_of(await target.rest.get("/v2"))
    expect(sorted(answer.extensions), "extensions").equals(sorted(body.get("extensions") or []))


@check("grpc.metadata.model_name", level=MUST, source=OIP_GRPC.model_metadata, needs=[grpc])
async def metadata_name(target: Target) -> None:
    """ModelMetadata's name is the one asked for."""
    expect((await target.grpc_client().metadata()).name, "name").equals(target.model)


@check("grpc.metadata.model_tensors", level=MUST, source=OIP_GRPC.model_metadata, needs=[grpc])
async def metadata_tensors(target: Target) -> None:
    """ModelMetadata has the inputs and outputs (names, datatypes, shapes) that REST gives."""
    answer = await target.grpc_client().metadata()
    body = body_of(await target.rest.get(target.rest.model_path))
    for key, listed in (("inputs", answer.inputs), ("outputs", answer.outputs)):
        over_grpc = [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs(listed)
        ]
        over_rest = [
            {field: item.get(field) for field in ("name", "datatype", "shape")} for item in body.get(key) or []
        ]
        expect(over_grpc, key).equals(over_rest)


@check("grpc.metadata.versions", level=MUST, source=OIP_GRPC.model_metadata, needs=[grpc, versions])
async def metadata_versions(target: Target) -> None:
    """ModelMetadata lists the versions that REST lists."""
    expect(list((await target.grpc_client().metadata()).versions), "versions").equals(list(target.versions))


@check("grpc.metadata.unknown_model", level=MUST, source=OIP_GRPC.model_metadata, needs=[grpc])
async def metadata_unknown(target: Target) -> None:
    """ModelMetadata of an unknown model is refused."""
    await refused(target, "ModelMetadata", MESSAGES["ModelMetadataRequest"](name=NO_MODEL))


@check("grpc.metadata.unknown_model_not_found", level=SHOULD, source=OIP_GRPC.status, needs=[grpc])
async def metadata_not_found(target: Target) -> None:
    """ModelMetadata of an unknown model is refused with NOT_FOUND."""
    error = await refused(target, "ModelMetadata", MESSAGES["ModelMetadataRequest"](name=NO_MODEL))
    expect(error.code.name, "status").equals("NOT_FOUND")


# grpc.infer


@check("grpc.infer.typed", level=MUST, source=OIP_GRPC.inference, needs=[typed_contents])
async def typed(target: Target) -> None:
    """Inputs in the contents field of their datatype are accepted."""
    result = await target.grpc_client().infer(target.example())
    expect(len(result.outputs), "number of outputs").satisfies(lambda count: count > 0, "one or more")


@check("grpc.infer.raw", level=MUST, source=OIP_GRPC.raw, needs=[grpc_payload])
async def raw(target: Target) -> None:
    """Inputs in raw_input_contents are accepted."""
    result = await target.grpc_client().infer(target.example(), raw=True)
    expect(len(result.outputs), "number of outputs").satisfies(lambda count: count > 0, "one or more")


@check("grpc.infer.one_form", level=MUST, source=OIP_GRPC.raw_output, needs=[grpc_payload])
async def one_form(target: Target) -> None:
    """Outputs come in contents or in raw_output_contents, never in both."""
    answer = await model_infer(target)
    both = bool(answer.raw_output_contents) and any(
        output.HasField("contents") and output.contents.ByteSize() for output in answer.outputs
    )
    expect(both, "contents and raw_output_contents together").equals(False)


@check("grpc.infer.raw_outputs_match", level=MUST, source=OIP_GRPC.raw_output, needs=[grpc_payload])
async def raw_outputs_match(target: Target) -> None:
    """Raw outputs are as many as the outputs, in their order, each of the size of its shape and datatype."""
    answer = await target.grpc_client().call("ModelInfer", infer_request(target.model, target.example(), raw=True))
    if not answer.raw_output_contents:
        raise Skip("the server answers raw requests with typed contents")
    expect(len(answer.raw_output_contents), "raw outputs").equals(len(answer.outputs))
    parse_infer(answer)


@check("grpc.infer.typed_equals_raw", level=MUST, source=OIP_GRPC.raw, needs=[typed_contents])
async def typed_equals_raw(target: Target) -> None:
    """The same input, typed and raw, gives the same numbers."""
    client = target.grpc_client()
    require_same(await client.infer(target.example()), await client.infer(target.example(), raw=True), "typed and raw")


@check("grpc.infer.equals_rest", level=MUST, source=OIP_GRPC.inference, needs=[grpc_payload])
async def equals_rest(target: Target) -> None:
    """The same input gives the same bits over gRPC and over REST."""
    over_grpc = parse_infer(await model_infer(target))
    over_rest = parse_rest(await target.rest.infer_raw(target.body()))
    expect(sorted(t.name for t in over_grpc.outputs), "outputs").equals(sorted(t.name for t in over_rest.outputs))
    require_same(over_grpc, over_rest, "gRPC and REST")


@check("grpc.infer.id_echo", level=MUST, source=OIP_GRPC.inference, needs=[grpc_payload])
async def id_echo(target: Target) -> None:
    """A request's id comes back unchanged."""
    expect((await model_infer(target, request_id="request-42")).id, "id").equals("request-42")


@check("grpc.infer.id_unicode", level=SHOULD, source=OIP_GRPC.inference, needs=[grpc_payload])
async def id_unicode(target: Target) -> None:
    """An id beyond ASCII comes back unchanged."""
    expect((await model_infer(target, request_id="7f3a-ü")).id, "id").equals("7f3a-ü")


@check("grpc.infer.model_name", level=MUST, source=OIP_GRPC.inference, needs=[grpc_payload])
async def model_name(target: Target) -> None:
    """ "model_name" is the model's name."""
    expect((await model_infer(target)).model_name, "model_name").equals(target.model)


@check("grpc.infer.model_version", level=SHOULD, source=OIP_GRPC.inference, needs=[grpc_payload, versions])
async def model_version(target: Target) -> None:
    """ "model_version" is one of the versions that the metadata list."""
    expect((await model_infer(target)).model_version, "model_version").is_one_of(target.versions)


@check("grpc.infer.parameters", level=MUST, source=OIP_GRPC.parameter, needs=[grpc_payload])
async def parameters(target: Target) -> None:
    """Request parameters of all five kinds (bool, int64, string, double, uint64) are accepted."""
    request = infer_request(target.model, target.example(), raw=raw_first(target))
    request.parameters["servecert_bool"].bool_param = True
    request.parameters["servecert_int64"].int64_param = -7
    request.parameters["servecert_string"].string_param = "a"
    request.parameters["servecert_double"].double_param = 1.5
    request.parameters["servecert_uint64"].uint64_param = 1 << 63
    answer = await target.grpc_client().call("ModelInfer", request)
    expect(len(answer.outputs), "number of outputs").satisfies(lambda count: count > 0, "one or more")


@check("grpc.infer.requested_output", level=MUST, source=OIP_GRPC.inference, needs=[grpc_payload])
async def requested_output(target: Target) -> None:
    """With outputs in the request, only those come back."""
    names = [output.name for output in (await model_infer(target)).outputs]
    answer = await model_infer(target, outputs=[names[-1]])
    expect([output.name for output in answer.outputs], "outputs").equals([names[-1]])


@check("grpc.infer.requested_order", level=SHOULD, source=OIP_GRPC.inference, needs=[grpc_payload, second_output])
async def requested_order(target: Target) -> None:
    """Requested outputs come back in the order of the request."""
    names = [spec.name for spec in reversed(target.outputs)]
    answer = await model_infer(target, outputs=names)
    expect([output.name for output in answer.outputs], "outputs").equals(names)


@check("grpc.infer.concurrent", level=MUST, source=OIP_GRPC.inference, needs=[grpc_payload])
async def concurrent(target: Target) -> None:
    """32 concurrent requests each get their own id and their own answer."""
    requests = target.distinct(32)
    client = target.grpc_client()
    raw_form = raw_first(target)
    wanted = [await client.infer(inputs, raw=raw_form) for inputs in requests[:8]]

    async def ask(index: int) -> InferResult:
        return await client.infer(requests[index % 8], raw=raw_form, request_id=f"client-{index}")

    for index, result in enumerate(await gather(32, ask)):
        expect(result.id, "id").equals(f"client-{index}")
        require_same(result, wanted[index % 8], f"request {index} alone and among 32")


@check("grpc.infer.message_32mib", level=SHOULD, source=OIP_GRPC.status, needs=[grpc_payload, free_batch], timeout_s=60)
async def message_32mib(target: Target) -> None:
    """A message of 32 MiB is accepted, or refused with RESOURCE_EXHAUSTED."""
    one = infer_request(target.model, target.batch(64), raw=True).ByteSize() / 64
    request = infer_request(target.model, target.batch(max(1, math.ceil((32 << 20) / one))), raw=True)
    try:
        await target.grpc_client().call("ModelInfer", request, timeout_s=45)
    except GrpcStatusError as error:
        expect(error.code.name, "status").equals("RESOURCE_EXHAUSTED")


@check("grpc.infer.deadline", level=SHOULD, source=OIP_GRPC.status, needs=[grpc_payload])
async def deadline(target: Target) -> None:
    """Calls whose deadline passes end with DEADLINE_EXCEEDED, and the server answers the next one."""
    request = infer_request(target.model, target.example(), raw=raw_first(target))
    if target.free_batch:  # a mebibyte takes longer than the shortest deadline that gRPC keeps
        rows = max(1, (1 << 20) // max(1, request.ByteSize()))
        request = infer_request(target.model, target.batch(rows), raw=True)
    client = target.grpc_client()
    started = time.monotonic()
    await client.call("ModelInfer", request)
    usual_s = time.monotonic() - started
    exceeded = 0
    for share in (0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0001, 0.00001):
        try:
            await client.call("ModelInfer", request, timeout_s=max(usual_s * share, 1e-6))
        except GrpcStatusError as error:
            expect(error.code, "status").equals(grpc_lib.StatusCode.DEADLINE_EXCEEDED)
            exceeded += 1
    if not exceeded:
        raise Skip("every answer came before its deadline, however short")
    await model_infer(target)
