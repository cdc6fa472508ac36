"""The reference server, wrong in exactly one way: ``python -m tests.faults.mutants NAME [reference's arguments…]``.

A REST mutant takes ``(path, request body, status, headers, body)`` of an answer and gives the altered
``(status, headers, body)``; a gRPC mutant takes the method, the request and the answer and gives another answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from runtimes.reference import __main__ as reference
from runtimes.reference import rest
from runtimes.reference.grpc_service import GrpcService
from runtimes.reference.messages import MESSAGES
from runtimes.reference.model import Model, Tensor

Headers = dict[str, str]
Answer = tuple[int, Headers, bytes]
RestMutant = Callable[[str, bytes, int, Headers, bytes], Answer]
REST: dict[str, RestMutant] = {}
GRPC: dict[str, Callable[[str, Any, Any], Any]] = {}
MODEL: dict[str, Callable[[Any, list[Tensor]], list[Tensor]]] = {}
KILLERS: dict[str, str] = {}
"""By mutant: the check that must catch it."""


def mutant(table: dict[str, Any], killer: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        name = function.__name__
        table[name] = function
        KILLERS[name] = killer
        return function

    return register


def on_json(path_end: str, change: Callable[[dict[str, Any]], object], only: int = 200) -> RestMutant:
    """Changes the JSON of answers with one status to requests whose path ends so."""

    def alter(path: str, sent: bytes, status: int, headers: Headers, body: bytes) -> Answer:
        if path.endswith(path_end) and status == only and body.startswith(b"{"):
            document = json.loads(body)
            change(document)
            body = json.dumps(document).encode()
        return status, headers, body

    return alter


def rest_mutant(name: str, killer: str, function: RestMutant) -> None:
    REST[name] = function
    KILLERS[name] = killer


def status_of(path_end: str, status: int) -> RestMutant:
    return lambda path, sent, was, headers, body: (status if path.endswith(path_end) else was, headers, body)


def refused_as(status: int) -> RestMutant:
    """Client's mistakes in inference get this status."""
    return lambda path, sent, was, headers, body: (
        status if path.endswith("/infer") and was == 400 else was,
        headers,
        body,
    )


INFER = "/models/identity/infer"
rest_mutant("live_is_204", "rest.health.live", status_of("/health/live", 204))
rest_mutant("ready_is_503", "rest.health.ready", status_of("/health/ready", 503))
rest_mutant("live_body_is_a_string", "rest.health.live_body", on_json("/health/live", lambda d: d.update(live="yes")))
rest_mutant("server_name_missing", "rest.server_metadata.name", on_json("/v2", lambda d: d.pop("name")))
rest_mutant("server_version_is_a_number", "rest.server_metadata.version", on_json("/v2", lambda d: d.update(version=1)))
rest_mutant(
    "extensions_is_a_string", "rest.server_metadata.extensions", on_json("/v2", lambda d: d.update(extensions="x"))
)
rest_mutant(
    "model_name_differs", "rest.model_metadata.name", on_json("/models/identity", lambda d: d.update(name="other"))
)
rest_mutant(
    "versions_is_null", "rest.model_metadata.versions", on_json("/models/identity", lambda d: d.update(versions=None))
)
rest_mutant(
    "shape_is_text",
    "rest.model_metadata.shapes",
    on_json("/models/identity", lambda d: d["inputs"][0].update(shape=["n", 4])),
)
rest_mutant("model_is_never_ready", "rest.model_ready.status", status_of("/models/identity/ready", 503))
rest_mutant("id_is_not_echoed", "rest.infer.id_echo", on_json(INFER, lambda d: d.update(id="x") if "id" in d else None))
rest_mutant("id_is_invented", "rest.infer.id_absent", on_json(INFER, lambda d: d.setdefault("id", "7")))
rest_mutant("model_version_is_null", "rest.infer.model_version", on_json(INFER, lambda d: d.update(model_version=None)))
rest_mutant("parameters_is_null", "rest.infer.parameters_not_null", on_json(INFER, lambda d: d.update(parameters=None)))
rest_mutant("output_lacks_a_shape", "rest.infer.outputs", on_json(INFER, lambda d: d["outputs"][0].pop("shape")))
rest_mutant("one_element_is_lost", "rest.infer.element_count", on_json(INFER, lambda d: d["outputs"][0]["data"].pop()))
rest_mutant(
    "output_is_renamed", "rest.infer.output_names", on_json(INFER, lambda d: d["outputs"][0].update(name="out"))
)
rest_mutant(
    "json_as_text",
    "rest.infer.content_type",
    lambda p, s, status, headers, body: (
        status,
        {**headers, "content-type": "text/plain"} if p.endswith("/infer") else headers,
        body,
    ),
)
rest_mutant("mistakes_are_500", "rest.errors.inputs_missing.status", refused_as(500))
rest_mutant("mistakes_are_200", "rest.errors.malformed_json.status", refused_as(200))
rest_mutant(
    "errors_are_called_detail",
    "rest.errors.unknown_datatype.body",
    on_json("/infer", lambda d: d.update(detail=d.pop("error", "")), only=400),
)
rest_mutant("unknown_model_is_200", "rest.model_metadata.unknown_model", status_of("/no-such-model-7d1f", 200))
rest_mutant(
    "binary_header_on_json",
    "rest.infer.keep_alive",
    lambda p, s, status, headers, body: (status, headers, body[:-1] if b"turn-31" in body else body),
)


@mutant(MODEL, "rest.infer.deterministic")
def drifts(model: Any, outputs: list[Tensor]) -> list[Tensor]:
    """Each answer is a little further off."""
    model.drift = getattr(model, "drift", 0) + 1
    return [_moved(tensor, "FP64", model.drift * 1e-3) for tensor in outputs]


def _moved(tensor: Tensor, datatype: str, by: float, row: int | None = None) -> Tensor:
    if tensor.datatype != datatype or tensor.data.size == 0:
        return tensor
    data = tensor.data.astype(tensor.data.dtype, copy=True)
    data[0 if row is None else row] += by
    return Tensor(tensor.name, tensor.datatype, tensor.shape, data)


@mutant(MODEL, "parity.golden.rest")
def one_element_is_slightly_off(model: Any, outputs: list[Tensor]) -> list[Tensor]:
    """One FP32 element in a thousandth."""
    return [
        Tensor(t.name, t.datatype, t.shape, np.concatenate([t.data[:-1], t.data[-1:] * np.float32(1.001)]))
        if t.datatype == "FP32"
        else t
        for t in outputs
    ]


@mutant(MODEL, "parity.batch")
def batches_share_their_first_row(model: Any, outputs: list[Tensor]) -> list[Tensor]:
    changed = []
    for tensor in outputs:
        if tensor.datatype == "INT32" and tensor.shape[0] > 1:
            rows = tensor.data.reshape(tensor.shape)
            tensor = Tensor(
                tensor.name, tensor.datatype, tensor.shape, np.broadcast_to(rows[:1], rows.shape).reshape(-1)
            )
        changed.append(tensor)
    return changed


_last: dict[str, list[Tensor]] = {}


@mutant(MODEL, "load.answers")
def every_seventh_answer_is_somebody_elses(model: Any, outputs: list[Tensor]) -> list[Tensor]:
    """The numbers of the request before: cross-talk."""
    model.count = getattr(model, "count", 0) + 1
    before = _last.get("outputs", outputs)
    _last["outputs"] = outputs
    return before if model.count % 7 == 0 and before[0].shape == outputs[0].shape else outputs


@mutant(GRPC, "grpc.health.server_live")
def says_it_is_dead(method: str, request: Any, answer: Any) -> Any:
    return MESSAGES["ServerLiveResponse"](live=False) if method == "ServerLive" else answer


@mutant(GRPC, "grpc.health.unknown_model")
def every_model_is_ready(method: str, request: Any, answer: Any) -> Any:
    if method == "ModelReady":
        return MESSAGES["ModelReadyResponse"](ready=True)
    if isinstance(answer, Exception):
        raise answer
    return answer


@mutant(GRPC, "grpc.metadata.model_tensors")
def metadata_differ_from_rest(method: str, request: Any, answer: Any) -> Any:
    if method == "ModelMetadata":
        answer.inputs[0].datatype = "INT8"
    return answer


@mutant(GRPC, "grpc.infer.id_echo")
def loses_the_id(method: str, request: Any, answer: Any) -> Any:
    if method == "ModelInfer":
        answer.id = ""
    return answer


@mutant(GRPC, "grpc.infer.one_form")
def answers_in_both_forms(method: str, request: Any, answer: Any) -> Any:
    if method == "ModelInfer" and not answer.raw_output_contents:
        answer.raw_output_contents.append(b"\0")
    return answer


@mutant(GRPC, "grpc.infer.raw_outputs_match")
def swaps_two_raw_outputs(method: str, request: Any, answer: Any) -> Any:
    if method == "ModelInfer" and len(answer.raw_output_contents) > 1:
        raws = list(answer.raw_output_contents)
        raws[0], raws[4] = raws[4], raws[0]
        del answer.raw_output_contents[:]
        answer.raw_output_contents.extend(raws)
    return answer


@mutant(GRPC, "grpc.infer.requested_output")
def ignores_requested_outputs(method: str, request: Any, answer: Any) -> Any:
    if method == "ModelInfer" and request.outputs:
        extra = answer.outputs.add()
        extra.CopyFrom(answer.outputs[0])
        extra.name = "UNASKED"
    return answer


@mutant(GRPC, "grpc.infer.unknown_model_not_found")
def unknown_model_is_invalid_argument(method: str, request: Any, answer: Any) -> Any:
    from runtimes.reference.model import InvalidRequest

    if isinstance(answer, Exception):
        raise InvalidRequest(str(answer)) if method == "ModelInfer" else answer
    return answer


@mutant(GRPC, "grpc.infer.concurrent")
def mixes_up_concurrent_ids(method: str, request: Any, answer: Any) -> Any:
    if method == "ModelInfer" and request.id == "client-17":
        answer.id = "client-18"
    return answer


class _Altered:
    """An ASGI application whose answers a mutant changes."""

    def __init__(self, app: Any, alter: RestMutant) -> None:
        self.app, self.alter = app, alter

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        chunks: list[bytes] = []
        sent: list[bytes] = []

        async def listen() -> Any:
            message = await receive()
            sent.append(message.get("body", b""))
            return message

        async def collect(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                chunks.append(message.get("body", b""))

        await self.app(scope, listen, collect)
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        status, headers, body = self.alter(scope["path"], b"".join(sent), start["status"], headers, b"".join(chunks))
        headers["content-length"] = str(len(body))
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(n.encode(), v.encode()) for n, v in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": body})


def install(name: str) -> None:
    if name in REST:
        build = rest.RestService.app
        rest.RestService.app = lambda self: _Altered(build(self), REST[name])  # type: ignore[method-assign,assignment,return-value]
    elif name in MODEL:
        infer = Model.infer
        Model.infer = lambda self, request: MODEL[name](self, infer(self, request))  # type: ignore[method-assign]
    elif name in GRPC:
        for attribute, method in (
            ("server_live", "ServerLive"),
            ("model_ready", "ModelReady"),
            ("model_metadata", "ModelMetadata"),
            ("model_infer", "ModelInfer"),
        ):
            setattr(GrpcService, attribute, _altered_method(getattr(GrpcService, attribute), method, GRPC[name]))
    else:
        raise SystemExit(f"no mutant {name!r}")


def _altered_method(original: Any, method: str, alter: Any) -> Any:
    async def altered(self: Any, request: Any) -> Any:
        try:
            answer = await original(self, request)
        except Exception as error:
            changed = alter(method, request, error)
            if isinstance(changed, Exception):
                raise changed from None
            return changed
        return alter(method, request, answer)

    return altered


if __name__ == "__main__":
    install(sys.argv.pop(1))
    sys.exit(asyncio.run(reference.serve(reference.parser().parse_args())))
