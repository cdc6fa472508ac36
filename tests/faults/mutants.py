"""The reference server, wrong in exactly one way: ``python -m tests.faults.mutants NAME [reference's arguments…]``.

A REST mutant takes what was asked and the sound answer, and gives another answer; a gRPC mutant takes the method, the
request and the answer (or the refusal); a model mutant takes the model and its outputs. A mutant names the checks that
must catch it. Adding a check and its mutant is a line or two.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np

from runtimes.reference import __main__ as reference
from runtimes.reference import rest
from runtimes.reference.grpc_service import GrpcService
from runtimes.reference.messages import MESSAGES
from runtimes.reference.model import InvalidRequest, Model, Tensor, Unavailable
from scenarios.suites.conformance.grpc_errors import MISTAKES as GRPC_MISTAKES
from scenarios.suites.conformance.rest_errors import MISTAKES as REST_MISTAKES

LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Ask:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    memory: dict[str, Any]
    """Of this mutant, from one request to the next."""

    @property
    def infer(self) -> bool:
        return self.path.endswith("/infer")

    @property
    def binary(self) -> bool:
        return LENGTH in self.headers


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self, status: int, content: object) -> Reply:
        return Reply(status, {"content-type": "application/json"}, json.dumps(content).encode())

    @property
    def refusal(self) -> bool:
        return 400 <= self.status < 500


class Internal(Exception):
    """The server's own fault: INTERNAL."""


class Precondition(Exception):
    """FAILED_PRECONDITION."""


RestMutant = Callable[[Ask, Reply], Reply]
GrpcMutant = Callable[[str, Any, Any, dict[str, Any]], Any]
ModelMutant = Callable[[Any, list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Mutant:
    name: str
    killers: tuple[str, ...]
    rest: RestMutant | None = None
    grpc: GrpcMutant | None = None
    model: ModelMutant | None = None
    service: tuple[str, bytes] | None = None
    """A method of another gRPC service, which the reference does not offer, and what it answers."""


MUTANTS: dict[str, Mutant] = {}


def _add(mutant: Mutant) -> None:
    if mutant.name in MUTANTS:
        raise ValueError(f"two mutants are named {mutant.name}")
    MUTANTS[mutant.name] = mutant


def rest_mutant(name: str, function: RestMutant, *killers: str) -> None:
    _add(Mutant(name, killers, rest=function))


def grpc_mutant(name: str, function: GrpcMutant, *killers: str) -> None:
    _add(Mutant(name, killers, grpc=function))


def model_mutant(name: str, function: ModelMutant, *killers: str) -> None:
    _add(Mutant(name, killers, model=function))


# How REST answers are changed


def on(condition: Callable[[Ask, Reply], bool], change: Callable[[Ask, Reply], Reply]) -> RestMutant:
    return lambda ask, reply: change(ask, reply) if condition(ask, reply) else reply


def status(path_end: str, code: int, method: str = "") -> RestMutant:
    return on(
        lambda ask, reply: ask.path.endswith(path_end) and method in ("", ask.method),
        lambda ask, reply: replace(reply, status=code),
    )


def document(path_end: str, change: Callable[[Any], object], code: int = 200) -> RestMutant:
    """Changes the JSON of answers with one status to requests whose path ends so."""

    def alter(ask: Ask, reply: Reply) -> Reply:
        if not ask.path.endswith(path_end) or reply.status != code or reply.body[:1] not in b"{[":
            return reply
        content = json.loads(reply.body)
        changed = change(content)
        return replace(reply, body=json.dumps(changed if isinstance(changed, list) else content).encode())

    return alter


def header(path_end: str, name: str, value: str) -> RestMutant:
    return on(
        lambda ask, reply: ask.path.endswith(path_end),
        lambda ask, reply: replace(reply, headers={**reply.headers, name: value}),
    )


def refuses(word: bytes | str, code: int = 400) -> RestMutant:
    """Requests that hold ``word`` (in the body, or as a header's name) get ``code``."""

    def alter(ask: Ask, reply: Reply) -> Reply:
        there = word in ask.body if isinstance(word, bytes) else word in ask.headers
        return reply.json(code, {"error": "no"}) if ask.infer and there else reply

    return alter


def body(change: Callable[[bytes], bytes], condition: Callable[[Ask], bool] = lambda ask: True) -> RestMutant:
    return on(
        lambda ask, reply: ask.infer and reply.status == 200 and condition(ask),
        lambda ask, reply: replace(reply, body=change(reply.body)),
    )


def outputs(change: Callable[[dict[str, Any]], object]) -> RestMutant:
    return document("/models/identity/infer", lambda content: change(content["outputs"][0]) and None)


INFER, METADATA = "/models/identity/infer", "/models/identity"
NO_MODEL = "/no-such-model-7d1f"

# rest.health, rest.server_metadata, rest.model_metadata, rest.model_ready

rest_mutant("live_is_204", status("/health/live", 204), "rest.health.live")
rest_mutant("ready_is_503", status("/health/ready", 503), "rest.health.ready")
rest_mutant("live_is_text", document("/health/live", lambda d: d.update(live="yes")), "rest.health.live_body")
rest_mutant(
    "ready_is_text", document("/health/ready", lambda d: d.update(ready="yes", live="yes")), "rest.health.ready_body"
)
rest_mutant("live_takes_post", status("/health/live", 200, "POST"), "rest.health.get_only")


def _slow(ask: Ask, reply: Reply) -> Reply:
    if ask.path.endswith("/health/live"):
        ask.memory["wait_s"] = 0.12
    return reply


rest_mutant("live_is_slow", _slow, "rest.health.prompt")


def _probe_starves(ask: Ask, reply: Reply) -> Reply:
    ask.memory["busy"] = ask.memory.get("busy") or ask.infer
    return replace(reply, status=503) if ask.path.endswith("/health/live") and ask.memory["busy"] else reply


rest_mutant("probe_fails_under_load", _probe_starves, "rest.health.under_load")
rest_mutant("server_metadata_are_500", status("/v2", 500), "rest.server_metadata.status")
rest_mutant("server_has_no_name", document("/v2", lambda d: d.pop("name")), "rest.server_metadata.name")
rest_mutant("server_version_is_1", document("/v2", lambda d: d.update(version=1)), "rest.server_metadata.version")
rest_mutant(
    "extensions_is_text", document("/v2", lambda d: d.update(extensions="x")), "rest.server_metadata.extensions"
)
rest_mutant("server_metadata_are_html", header("/v2", "content-type", "text/html"), "rest.server_metadata.content_type")
rest_mutant("model_metadata_are_500", status(METADATA, 500), "rest.model_metadata.status")
rest_mutant("model_has_another_name", document(METADATA, lambda d: d.update(name="x")), "rest.model_metadata.name")
rest_mutant("model_has_no_platform", document(METADATA, lambda d: d.pop("platform")), "rest.model_metadata.platform")
rest_mutant("versions_is_null", document(METADATA, lambda d: d.update(versions=None)), "rest.model_metadata.versions")
rest_mutant("model_has_no_inputs", document(METADATA, lambda d: d.update(inputs=[])), "rest.model_metadata.tensors")
rest_mutant(
    "input_has_no_datatype",
    document(METADATA, lambda d: d["inputs"][0].pop("datatype")),
    "rest.model_metadata.tensor_fields",
)
rest_mutant(
    "datatype_is_unheard_of",
    document(METADATA, lambda d: d["inputs"][0].update(datatype="FLOAT")),
    "rest.model_metadata.datatypes",
)
rest_mutant(
    "shape_is_minus_two", document(METADATA, lambda d: d["inputs"][0].update(shape=[-2])), "rest.model_metadata.shapes"
)
rest_mutant(
    "version_has_other_tensors",
    document("/versions/1", lambda d: d["inputs"].pop()),
    "rest.model_metadata.with_version",
)
rest_mutant("unknown_model_has_metadata", status(NO_MODEL, 200), "rest.model_metadata.unknown_model")
rest_mutant("unknown_model_is_400", status(NO_MODEL, 400), "rest.model_metadata.unknown_model_404")
rest_mutant(
    "metadata_refusal_says_detail",
    document(NO_MODEL, lambda d: d.update(detail=d.pop("error")), 404),
    "rest.model_metadata.unknown_model_error",
)
rest_mutant("unknown_version_has_metadata", status("/no-such-version-7d1f", 200), "rest.model_metadata.unknown_version")
rest_mutant("model_is_never_ready", status("/models/identity/ready", 503), "rest.model_ready.status")
rest_mutant(
    "ready_model_says_no", document("/models/identity/ready", lambda d: d.update(ready=False)), "rest.model_ready.body"
)
rest_mutant("version_is_never_ready", status("/versions/1/ready", 503), "rest.model_ready.with_version")
rest_mutant("unknown_model_is_ready", status(f"{NO_MODEL}/ready", 200), "rest.model_ready.unknown_model")
rest_mutant("unready_unknown_is_400", status(f"{NO_MODEL}/ready", 400), "rest.model_ready.unknown_model_404")

# rest.infer

rest_mutant("infer_is_201", status(INFER, 201), "rest.infer.status")
rest_mutant("infer_is_text", header(INFER, "content-type", "text/plain"), "rest.infer.content_type")
rest_mutant("infer_names_another", document(INFER, lambda d: d.update(model_name="x")), "rest.infer.model_name")
rest_mutant(
    "model_version_is_null", document(INFER, lambda d: d.update(model_version=None)), "rest.infer.model_version"
)
rest_mutant("id_is_x", document(INFER, lambda d: d.update(id="x") if "id" in d else None), "rest.infer.id_echo")
rest_mutant(
    "id_is_made_ascii",
    document(INFER, lambda d: d.update(id=d.get("id", "").encode("ascii", "replace").decode())),
    "rest.infer.id_unicode",
)
rest_mutant("id_is_cut", document(INFER, lambda d: d.update(id=d.get("id", "")[:64])), "rest.infer.id_long")
rest_mutant("id_is_invented", document(INFER, lambda d: d.setdefault("id", "7")), "rest.infer.id_absent")
rest_mutant(
    "parameters_is_null", document(INFER, lambda d: d.update(parameters=None)), "rest.infer.parameters_not_null"
)
rest_mutant("output_lacks_a_shape", outputs(lambda o: o.pop("shape")), "rest.infer.outputs")
rest_mutant("one_element_is_lost", outputs(lambda o: o["data"].pop()), "rest.infer.element_count")
rest_mutant("output_is_renamed", outputs(lambda o: o.update(name="out")), "rest.infer.output_names")
rest_mutant("output_lost_a_dimension", outputs(lambda o: o.update(shape=[4])), "rest.infer.output_shapes")
rest_mutant("nested_is_refused", refuses(b'"data": [['), "rest.infer.nested_data")
rest_mutant(
    "flat_is_refused",
    on(lambda ask, _: ask.infer and b'"data": [[' not in ask.body, lambda _, reply: reply.json(400, {"error": "no"})),
    "rest.infer.flat_data",
)
rest_mutant(
    "nested_is_turned_round",
    on(
        lambda ask, reply: ask.infer and b'"data": [[' in ask.body and reply.status == 200,
        lambda ask, reply: document(INFER, lambda d: d["outputs"][1]["data"].reverse())(ask, reply),
    ),
    "rest.infer.nested_equals_flat",
)


def _unasked(ask: Ask, reply: Reply) -> Reply:
    if b'"outputs": [{"name"' not in ask.body:
        return reply
    return document(INFER, lambda d: d["outputs"].append({**d["outputs"][0], "name": "UNASKED"}))(ask, reply)


rest_mutant("unasked_outputs_come_too", _unasked, "rest.infer.requested_output")
rest_mutant(
    "outputs_are_sorted",
    document(INFER, lambda d: d["outputs"].sort(key=lambda o: -ORDER.index(o["name"]), reverse=True)),
    "rest.infer.requested_order",
)
KINDS = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES")
ORDER = [f"OUTPUT_{kind}" for kind in (*KINDS, "FP16", "BF16")]
rest_mutant(
    "unknown_output_is_200",
    on(lambda ask, reply: ask.infer and reply.refusal, lambda _, reply: replace(reply, status=200)),
    "rest.infer.unknown_output",
)
rest_mutant("parameters_are_refused", refuses(b"servecert_number"), "rest.infer.parameters")
rest_mutant("tensor_parameters_are_refused", refuses(b"servecert_text"), "rest.infer.tensor_parameters")
rest_mutant("unknown_key_is_500", refuses(b"servecert_unknown", 500), "rest.infer.unknown_key")
rest_mutant("two_turns_share_an_answer", body(lambda b: b.replace(b'"turn-31"', b'"turn-30"')), "rest.infer.keep_alive")
rest_mutant("ids_are_mixed_up", body(lambda b: b.replace(b'"client-17"', b'"client-18"')), "rest.infer.concurrent")
rest_mutant(
    "large_is_500",
    on(lambda ask, _: ask.infer and len(ask.body) > 500_000, lambda _, reply: replace(reply, status=500)),
    "rest.infer.body_1mib",
)
rest_mutant(
    "very_large_is_500",
    on(lambda ask, _: ask.infer and len(ask.body) > 16_000_000, lambda _, reply: replace(reply, status=500)),
    "rest.infer.body_32mib",
)
rest_mutant("chunked_is_411", refuses("transfer-encoding", 411), "rest.infer.chunked")
rest_mutant(
    "gzip_loses_the_id",
    on(
        lambda ask, reply: b'"zip"' in reply.body,
        lambda ask, reply: Reply(
            reply.status,
            {**reply.headers, "content-encoding": "gzip"},
            gzip.compress(reply.body.replace(b'"zip"', b'""')),
        ),
    ),
    "rest.infer.accept_gzip",
)
rest_mutant("gzip_is_415", refuses("content-encoding", 415), "rest.infer.gzip_request")
rest_mutant(
    "version_gives_other_numbers",
    document("/versions/1/infer", lambda d: d["outputs"][1]["data"].reverse()),
    "rest.infer.with_version",
)

# rest.errors, grpc.errors: what each mistake's checks exist for


def _dies_after(ask: Ask, reply: Reply) -> Reply:
    if ask.memory.get("dead"):
        return reply.json(503, {"error": "dead"})
    ask.memory["dead"] = reply.refusal
    return reply


for _mistake in REST_MISTAKES:
    _name = _mistake.name
    rest_mutant(
        f"{_name}_is_500",
        on(lambda _, reply: reply.refusal, lambda _, reply: replace(reply, status=500)),
        f"rest.errors.{_name}.status",
    )
    rest_mutant(
        f"{_name}_is_accepted",
        on(lambda _, reply: reply.refusal, lambda _, reply: replace(reply, status=200)),
        f"rest.errors.{_name}.status",
    )
    rest_mutant(
        f"{_name}_says_detail",
        on(lambda _, reply: reply.refusal, lambda _, reply: reply.json(reply.status, {"detail": "no"})),
        f"rest.errors.{_name}.body",
    )
    rest_mutant(
        f"{_name}_is_html",
        on(
            lambda _, reply: reply.refusal,
            lambda _, reply: replace(reply, headers={**reply.headers, "content-type": "text/html"}),
        ),
        f"rest.errors.{_name}.content_type",
    )
    rest_mutant(f"{_name}_kills", _dies_after, f"rest.errors.{_name}.recovers")
rest_mutant(
    "wrong_content_type_is_500",
    on(
        lambda ask, _: ask.headers.get("content-type") == "application/xml",
        lambda _, reply: replace(reply, status=500),
    ),
    "rest.errors.wrong_content_type",
)


def raised_as(kind: type[Exception], method: str = "ModelInfer") -> GrpcMutant:
    def alter(called: str, request: Any, answer: Any, memory: dict[str, Any]) -> Any:
        return kind(str(answer)) if called == method and isinstance(answer, Exception) else answer

    return alter


def _accepts(called: str, request: Any, answer: Any, memory: dict[str, Any]) -> Any:
    return MESSAGES["ModelInferResponse"](model_name="identity") if isinstance(answer, Exception) else answer


def _dies(called: str, request: Any, answer: Any, memory: dict[str, Any]) -> Any:
    if memory.get("dead"):
        return Unavailable("dead")
    memory["dead"] = isinstance(answer, Exception)
    return answer


for _grpc_mistake in GRPC_MISTAKES:
    _name = _grpc_mistake.name
    grpc_mutant(f"grpc_{_name}_is_accepted", _accepts, f"grpc.errors.{_name}.refused")
    grpc_mutant(f"grpc_{_name}_is_internal", raised_as(Internal), f"grpc.errors.{_name}.not_a_fault")
    grpc_mutant(f"grpc_{_name}_is_a_precondition", raised_as(Precondition), f"grpc.errors.{_name}.code")
    grpc_mutant(f"grpc_{_name}_kills", _dies, f"grpc.errors.{_name}.recovers")

# What models do to values


def changed(datatype: str, change: Callable[[Any], Any]) -> ModelMutant:
    def alter(model: Any, tensors: list[Tensor]) -> list[Tensor]:
        return [Tensor(t.name, t.datatype, t.shape, change(t.data)) if t.datatype == datatype else t for t in tensors]

    return alter


def _least_is_lost(data: Any) -> Any:
    """The least value of a tensor becomes another."""
    if isinstance(data, list):
        return [item or b" " for item in data]
    if data.dtype.kind == "b":
        return np.ones_like(data)
    if not data.size:
        return data
    copy = data.copy()
    copy[copy == copy.min()] = 1
    return copy


for _datatype in [name.removeprefix("OUTPUT_") for name in ORDER]:
    _low = _datatype.lower()
    typed = () if _low in ("fp16", "bf16") else (f"grpc.datatypes.{_low}_typed",)
    model_mutant(
        f"{_low}_loses_its_least",
        changed(_datatype, _least_is_lost),
        f"rest.datatypes.{_low}",
        f"rest.binary.{_low}",
        f"grpc.datatypes.{_low}_raw",
        *typed,
    )


def _through_double(data: Any) -> Any:
    wide = data.astype(np.float64)
    limits = np.iinfo(data.dtype)
    return np.array([max(limits.min, min(limits.max, int(value))) for value in wide], data.dtype)


model_mutant("int64_is_read_as_a_double", changed("INT64", _through_double), "rest.datatypes.int64_exact")
model_mutant("uint64_is_read_as_a_double", changed("UINT64", _through_double), "rest.datatypes.uint64_exact")
for _datatype, _digits in (("FP32", 6), ("FP64", 15)):
    model_mutant(
        f"{_datatype.lower()}_has_{_digits}_digits",
        changed(
            _datatype,
            lambda data, digits=_digits: np.nan_to_num(
                np.array([float(f"{value:.{digits}g}") for value in data], data.dtype)
            ),
        ),
        f"rest.datatypes.{_datatype.lower()}_exact",
    )
    model_mutant(
        f"{_datatype.lower()}_flushes_subnormals",
        changed(_datatype, lambda data: np.where(np.abs(data) < np.finfo(data.dtype).tiny, 0, data)),
        f"rest.datatypes.{_datatype.lower()}_subnormal",
    )
    model_mutant(
        f"{_datatype.lower()}_nan_is_zero",
        changed(_datatype, lambda data: np.nan_to_num(data)),
        f"grpc.datatypes.{_datatype.lower()}_nonfinite",
        *(["rest.binary.nonfinite"] if _datatype == "FP32" else []),
    )
rest_mutant(
    "bool_is_0_and_1", outputs(lambda o: o.update(data=[int(x) for x in o["data"]])), "rest.datatypes.bool_as_literals"
)
model_mutant(
    "bytes_are_text",
    changed("BYTES", lambda data: [item.decode(errors="replace").encode() for item in data]),
    "grpc.datatypes.bytes_not_utf8",
    "rest.binary.bytes_not_utf8",
)
WORDS = re.compile(rb"\b-?(NaN|Infinity)\b")
NONFINITE = [f"rest.datatypes.fp{bits}_{name}" for bits in (32, 64) for name in ("nan", "infinity", "minus_infinity")]


def _answers_nonfinite(word: str) -> RestMutant:
    """200 with ``word`` in the place of every element, where a number that JSON lacks was sent."""

    def alter(ask: Ask, reply: Reply) -> Reply:
        if not ask.infer or not reply.refusal or not (WORDS.search(ask.body) or ask.binary):
            return reply
        answer = {
            "model_name": "identity",
            "outputs": [{"name": n, "datatype": "FP32", "shape": [1], "data": ["@"]} for n in ORDER],
        }
        return Reply(200, {"content-type": "application/json"}, json.dumps(answer).replace('"@"', word).encode())

    return alter


rest_mutant("nonfinite_becomes_zero", _answers_nonfinite("0.0"), *NONFINITE, "rest.binary.nonfinite_as_json")
rest_mutant("nonfinite_is_not_json", _answers_nonfinite("NaN"), *NONFINITE, "rest.binary.nonfinite_as_json")


def _drifts(model: Any, tensors: list[Tensor]) -> list[Tensor]:
    model.drift = getattr(model, "drift", 0) + 1
    return changed("FP64", lambda data: np.concatenate([data[:-1], data[-1:] + model.drift * 1e-3]))(model, tensors)


model_mutant("each_answer_is_further_off", _drifts, "rest.infer.deterministic")


def _rows(least: int) -> ModelMutant:
    """Batches of ``least`` and more lose a row."""

    def alter(model: Any, tensors: list[Tensor]) -> list[Tensor]:
        rows = tensors[0].shape[0]
        if rows < least:
            return tensors
        return [Tensor(t.name, t.datatype, (rows - 1, *t.shape[1:]), t.data[: (rows - 1) * 4]) for t in tensors]

    return alter


model_mutant("a_batch_of_two_loses_one", _rows(2), "rest.infer.batch_2")
model_mutant("a_batch_of_eight_loses_one", _rows(8), "rest.infer.batch_8")
model_mutant(
    "one_element_is_slightly_off",
    changed("FP32", lambda data: np.concatenate([data[:-1], data[-1:] * np.float32(1.001)])),
    "parity.golden.rest",
)


def _first_row_for_all(model: Any, tensors: list[Tensor]) -> list[Tensor]:
    def spread(data: Any) -> Any:
        return np.broadcast_to(data.reshape(-1, 4)[:1], (data.size // 4, 4)).reshape(-1)

    return changed("INT32", spread)(model, tensors)


model_mutant("batches_share_their_first_row", _first_row_for_all, "parity.batch")


def _crosstalk(model: Any, tensors: list[Tensor]) -> list[Tensor]:
    """Every seventh answer has the numbers of the one before."""
    model.count = getattr(model, "count", 0) + 1
    before, model.last = getattr(model, "last", tensors), tensors
    return before if model.count % 7 == 0 and before[0].shape == tensors[0].shape else tensors


model_mutant("every_seventh_answer_is_somebody_elses", _crosstalk, "load.answers")

# rest.binary

rest_mutant("binary_is_refused", refuses(LENGTH), "rest.binary.input", "rest.binary.mixed_inputs")
rest_mutant("binary_outputs_are_refused", refuses(b'"binary_data": true'), "rest.binary.output")
rest_mutant("all_binary_is_refused", refuses(b'"binary_data_output": true'), "rest.binary.all_outputs")
rest_mutant("override_is_refused", refuses(b'"binary_data": false'), "rest.binary.output_override")


def when_binary(change: Callable[[bytes], bytes]) -> RestMutant:
    return on(lambda ask, reply: LENGTH in reply.headers, lambda ask, reply: replace(reply, body=change(reply.body)))


rest_mutant("a_byte_too_many", when_binary(lambda b: b + b"\0"), "rest.binary.header_length")
rest_mutant(
    "sizes_are_off",
    when_binary(lambda b: b.replace(b'"binary_data_size": 4}', b'"binary_data_size": 5}', 1)),
    "rest.binary.output_sizes",
)
rest_mutant("binary_comes_as_json", header(INFER, "content-type", "application/json"), "rest.binary.content_type")
rest_mutant("binary_has_other_bits", when_binary(lambda b: b[:-1] + bytes([b[-1] ^ 1])), "rest.binary.equals_json")
rest_mutant("binary_mixes_ids", when_binary(lambda b: b.replace(b"request-42", b"request-43")), "rest.binary.id_echo")
rest_mutant("json_lacks_data", outputs(lambda o: o.pop("data")), "rest.binary.json_by_default")
rest_mutant("nothing_is_500", refuses(b'"shape": [0', 500), "rest.binary.zero_elements")
for _name in (
    "size_below_shape",
    "size_above_shape",
    "body_short",
    "body_long",
    "size_not_a_number",
    "header_beyond_body",
    "header_not_a_number",
    "header_too_short",
):
    rest_mutant(
        f"binary_{_name}_is_accepted",
        on(lambda ask, reply: ask.binary and reply.refusal, lambda _, reply: replace(reply, status=200)),
        f"rest.binary.{_name}",
    )
    rest_mutant(f"binary_{_name}_kills", _dies_after, f"rest.binary.{_name}")

# grpc


def reply_to(method: str, change: Callable[[Any, Any], Any]) -> GrpcMutant:
    """``change`` takes the request and the answer, which it changes in place or replaces."""

    def alter(called: str, request: Any, answer: Any, memory: dict[str, Any]) -> Any:
        if called != method or isinstance(answer, Exception):
            return answer
        replaced = change(request, answer)
        return answer if replaced is None else replaced

    return alter


def grpc_answer(name: str, method: str, change: Callable[[Any, Any], Any], *killers: str) -> None:
    grpc_mutant(name, reply_to(method, change), *killers)


def instead(method: str, **fields: Any) -> GrpcMutant:
    """An answer where there was a refusal."""

    def alter(called: str, request: Any, answer: Any, memory: dict[str, Any]) -> Any:
        refused = called == method and isinstance(answer, Exception)
        return MESSAGES[f"{method}Response"](**fields) if refused else answer

    return alter


def _set(**fields: Any) -> Callable[[Any, Any], None]:
    def change(request: Any, answer: Any) -> None:
        for name, value in fields.items():
            setattr(answer, name, value)

    return change


def _refuse_if(condition: Callable[[Any], bool]) -> Callable[[Any, Any], Any]:
    return lambda request, answer: InvalidRequest("no") if condition(request) else None


def _perturb(answer: Any) -> None:
    if answer.raw_output_contents:
        first = answer.raw_output_contents[0]
        answer.raw_output_contents[0] = first[:-1] + bytes([first[-1] ^ 1])
    else:
        values = answer.outputs[0].contents.bool_contents
        values[0] = not values[0]


grpc_answer("says_it_is_dead", "ServerLive", _set(live=False), "grpc.health.server_live")
grpc_answer("says_it_is_not_ready", "ServerReady", _set(ready=False), "grpc.health.server_ready")
grpc_answer("model_says_it_is_not_ready", "ModelReady", _set(ready=False), "grpc.health.model_ready")
grpc_mutant("every_model_is_ready", instead("ModelReady", ready=True), "grpc.health.unknown_model")
grpc_answer("server_names_differ", "ServerMetadata", _set(name="x"), "grpc.metadata.server")
grpc_answer("extensions_differ", "ServerMetadata", lambda _, a: a.extensions.pop() and None, "grpc.metadata.extensions")
grpc_answer("model_names_differ", "ModelMetadata", _set(name="x"), "grpc.metadata.model_name")
grpc_answer(
    "tensors_differ",
    "ModelMetadata",
    lambda _, a: setattr(a.inputs[0], "datatype", "INT8"),
    "grpc.metadata.model_tensors",
)
grpc_answer("versions_differ", "ModelMetadata", lambda _, a: a.versions.append("2"), "grpc.metadata.versions")
grpc_mutant("unknown_model_is_described", instead("ModelMetadata", name="x"), "grpc.metadata.unknown_model")
grpc_mutant(
    "unknown_model_is_invalid",
    raised_as(InvalidRequest, "ModelMetadata"),
    "grpc.metadata.unknown_model_not_found",
)
grpc_answer("typed_is_refused", "ModelInfer", _refuse_if(lambda r: not r.raw_input_contents), "grpc.infer.typed")
grpc_answer("raw_is_refused", "ModelInfer", _refuse_if(lambda r: bool(r.raw_input_contents)), "grpc.infer.raw")
grpc_answer(
    "answers_in_both_forms",
    "ModelInfer",
    lambda r, a: None if a.raw_output_contents else a.raw_output_contents.append(b"\0"),
    "grpc.infer.one_form",
)


def _swap_raw(request: Any, answer: Any) -> None:
    raws = list(answer.raw_output_contents)
    if len(raws) > 4:
        raws[0], raws[4] = raws[4], raws[0]
        del answer.raw_output_contents[:]
        answer.raw_output_contents.extend(raws)


grpc_answer("two_raw_outputs_are_swapped", "ModelInfer", _swap_raw, "grpc.infer.raw_outputs_match")
grpc_answer(
    "raw_gives_other_numbers",
    "ModelInfer",
    lambda r, a: _perturb(a) if a.raw_output_contents else None,
    "grpc.infer.typed_equals_raw",
)
grpc_answer("grpc_gives_other_numbers", "ModelInfer", lambda r, a: _perturb(a), "grpc.infer.equals_rest")
grpc_answer("the_id_is_lost", "ModelInfer", _set(id=""), "grpc.infer.id_echo")
grpc_answer(
    "the_id_is_made_ascii",
    "ModelInfer",
    lambda r, a: setattr(a, "id", r.id.encode("ascii", "replace").decode()),
    "grpc.infer.id_unicode",
)
grpc_answer("answers_for_another_model", "ModelInfer", _set(model_name="x"), "grpc.infer.model_name")
grpc_answer("answers_for_another_version", "ModelInfer", _set(model_version="9"), "grpc.infer.model_version")
grpc_answer(
    "grpc_parameters_are_refused", "ModelInfer", _refuse_if(lambda r: bool(r.parameters)), "grpc.infer.parameters"
)


def _one_more(request: Any, answer: Any) -> None:
    if request.outputs:
        answer.outputs.add().CopyFrom(answer.outputs[0])
        answer.outputs[-1].name = "UNASKED"


def _sorted(request: Any, answer: Any) -> None:
    ordered = sorted(answer.outputs, key=lambda output: ORDER.index(output.name))
    copies = [MESSAGES["ModelInferResponse"].InferOutputTensor.FromString(o.SerializeToString()) for o in ordered]
    del answer.outputs[:]
    answer.outputs.extend(copies)


grpc_answer("grpc_gives_unasked_outputs", "ModelInfer", _one_more, "grpc.infer.requested_output")
grpc_answer("grpc_sorts_outputs", "ModelInfer", _sorted, "grpc.infer.requested_order")
grpc_answer(
    "grpc_mixes_ids",
    "ModelInfer",
    lambda r, a: setattr(a, "id", "client-18") if r.id == "client-17" else None,
    "grpc.infer.concurrent",
)
grpc_answer(
    "large_messages_are_faults",
    "ModelInfer",
    lambda r, a: Internal("too much") if r.ByteSize() > 16_000_000 else None,
    "grpc.infer.message_32mib",
)


def _tires(called: str, request: Any, answer: Any, memory: dict[str, Any]) -> Any:
    """The second large request finds nobody any more, whatever its deadline."""
    if called == "ModelInfer" and request.ByteSize() > 100_000:
        memory["large"] = memory.get("large", 0) + 1
        return Unavailable("gone") if memory["large"] > 1 else answer
    return Unavailable("gone") if memory.get("large", 0) > 1 and called == "ModelInfer" else answer


grpc_mutant("deadlines_wear_it_out", _tires, "grpc.infer.deadline")

_add(Mutant("standard_health_says_no", ("grpc.health.standard",), service=("grpc.health.v1.Health/Check", b"\x08\x02")))
_add(
    Mutant(
        "reflection_lists_another",
        ("grpc.health.reflection",),
        service=("ServerReflection/ServerReflectionInfo", b"\x32\x05\x0a\x03\x0a\x01x"),
    )
)

# repository, statistics, metrics

INDEX = "/v2/repository/index"
rest_mutant("index_is_empty", document(INDEX, lambda d: [{"name": "x"}]), "repository.index.lists_model")
rest_mutant("index_has_numbers", document(INDEX, lambda d: d[0].update(version=1)), "repository.index.fields")
rest_mutant(
    "index_knows_no_state", document(INDEX, lambda d: [i.update(state="") for i in d] and d), "repository.index.state"
)
rest_mutant(
    "index_ignores_its_filter",
    document(INDEX, lambda d: [*d, {"name": "identity", "version": "1", "state": "UNAVAILABLE"}]),
    "repository.index.ready_filter",
)
rest_mutant("unload_is_500", status("/models/identity/unload", 500), "repository.unload.status")
rest_mutant(
    "unloaded_is_ready",
    status("/models/identity/ready", 200),
    "repository.unload.not_ready",
    "repository.grpc.unload_and_load",
)
rest_mutant(
    "unloaded_still_infers",
    on(lambda ask, reply: ask.infer and reply.status == 503, lambda _, reply: reply.json(200, {"outputs": []})),
    "repository.unload.not_inferring",
)
rest_mutant("unknown_is_unloaded", status(f"{NO_MODEL}/unload", 200), "repository.unload.unknown")
rest_mutant("unknown_is_loaded", status(f"{NO_MODEL}/load", 200), "repository.load.unknown")
rest_mutant(
    "unknown_load_says_detail",
    document(f"{NO_MODEL}/load", lambda d: d.update(detail=d.pop("error")), 404),
    "repository.load.unknown_error",
)
rest_mutant("load_is_500", status("/models/identity/load", 500), "repository.load.loaded")


def _changed_by_loading(ask: Ask, reply: Reply) -> Reply:
    ask.memory["loaded"] = ask.memory.get("loaded") or ask.path.endswith("/load")
    if not ask.memory["loaded"]:
        return reply
    return document(INFER, lambda d: d["outputs"][1]["data"].reverse())(ask, reply)


rest_mutant("load_changes_the_numbers", _changed_by_loading, "repository.load.brings_back")
grpc_answer("grpc_index_is_empty", "RepositoryIndex", lambda r, a: a.models.pop() and None, "repository.grpc.index")
grpc_mutant("grpc_loads_anything", instead("RepositoryModelLoad"), "repository.grpc.load_unknown")
grpc_mutant("grpc_unloads_anything", instead("RepositoryModelUnload"), "repository.grpc.unload_unknown")

STATS = "/models/identity/stats"


def stats(change: Callable[[dict[str, Any]], object]) -> RestMutant:
    return document(STATS, lambda content: change(content["model_stats"][0]) and None)


rest_mutant(
    "statistics_are_404", status(STATS, 404), "statistics.model.status", "rest.server_metadata.extensions_answer"
)
rest_mutant("statistics_lack_a_field", stats(lambda s: s.pop("execution_count")), "statistics.model.fields")
rest_mutant(
    "statistics_leave_it_out",
    document("/v2/models/stats", lambda d: d["model_stats"].clear()),
    "statistics.model.all",
)
rest_mutant(
    "successes_stand_still",
    stats(lambda s: s["inference_stats"]["success"].update(count=3)),
    "statistics.counts.success",
)


def _counts_refusals(ask: Ask, reply: Reply) -> Reply:
    if ask.infer and reply.refusal:
        ask.memory["refused"] = ask.memory.get("refused", 0) + 1
    more = ask.memory.get("refused", 0)

    def add(entry: dict[str, Any]) -> None:
        entry["inference_stats"]["success"]["count"] += more

    return stats(add)(ask, reply)


rest_mutant("refusals_count_as_successes", _counts_refusals, "statistics.counts.fail")
rest_mutant(
    "batches_count_twice",
    stats(lambda s: s.update(inference_count=2 * s["inference_count"])),
    "statistics.counts.batch",
)
rest_mutant(
    "durations_stand_still", stats(lambda s: s["inference_stats"]["success"].update(ns=5)), "statistics.counts.duration"
)
rest_mutant("unknown_has_statistics", status(f"{NO_MODEL}/stats", 200), "statistics.model.unknown")


def page(change: Callable[[bytes], bytes]) -> RestMutant:
    return on(lambda ask, _: ask.path == "/metrics", lambda _, reply: replace(reply, body=change(reply.body)))


rest_mutant("metrics_hold_nothing", page(lambda b: b"# nothing\n"), "metrics.text.status")
rest_mutant("metrics_are_html", header("/metrics", "content-type", "text/html"), "metrics.text.content_type")
rest_mutant("metrics_end_early", page(lambda b: b.rstrip()), "metrics.text.newline")
rest_mutant("metrics_have_no_types", page(lambda b: re.sub(rb"# TYPE.*\n", b"", b)), "metrics.text.types")
rest_mutant("metrics_repeat_a_line", page(lambda b: b + b.splitlines(True)[-1]), "metrics.text.unique")


def _resets(ask: Ask, reply: Reply) -> Reply:
    if ask.path != "/metrics":
        return reply
    ask.memory["looks"] = ask.memory.get("looks", 0) + 1
    if ask.memory["looks"] < 2:
        return reply
    return replace(reply, body=re.sub(rb"(_total\{[^}]*\}) \d+", rb"\1 0", reply.body))


def _frozen(ask: Ask, reply: Reply) -> Reply:
    if ask.path != "/metrics":
        return reply
    return replace(reply, body=ask.memory.setdefault("page", reply.body))


rest_mutant("counters_fall", _resets, "metrics.counters.never_fall")
rest_mutant("counters_stand_still", _frozen, "metrics.counters.count_requests")
rest_mutant(
    "buckets_fall",
    page(lambda b: re.sub(rb'(le="10.0"\}) \d+', rb"\1 0", b)),
    "metrics.histograms.cumulative",
)
rest_mutant(
    "count_is_less_than_its_buckets",
    page(lambda b: re.sub(rb"(_count\{[^}]*\}) \d+", rb"\1 0", b)),
    "metrics.histograms.count",
)


# openai, generate

CHAT, COMPLETIONS, MODELS = "/openai/v1/chat/completions", "/openai/v1/completions", "/openai/v1/models"


def choice(path: str, change: Callable[[dict[str, Any]], object]) -> RestMutant:
    return document(path, lambda content: change(content["choices"][0]) and None)


def asked_for(word: bytes, alter: RestMutant) -> RestMutant:
    """Changes only answers to requests that hold ``word``."""
    return lambda ask, reply: alter(ask, reply) if word in ask.body else reply


def events(change: Callable[[list[bytes]], list[bytes]], path: str = CHAT) -> RestMutant:
    """Changes the events of streams, each without its empty line."""

    def alter(ask: Ask, reply: Reply) -> Reply:
        if not ask.path.endswith(path) or not reply.body.startswith(b"data:"):
            return reply
        parts = [part for part in reply.body.split(b"\n\n") if part]
        return replace(reply, body=b"".join(part + b"\n\n" for part in change(parts)))

    return alter


def is_text(part: bytes) -> bool:
    return b'"content": "' in part and b'"role"' not in part


rest_mutant("models_lack_ours", document(MODELS, lambda d: d["data"][0].update(id="x")), "openai.models.lists_model")
rest_mutant("models_are_no_list", document(MODELS, lambda d: d.update(object="models")), "openai.models.schema")
rest_mutant("chat_has_no_time", document(CHAT, lambda d: d.pop("created")), "openai.chat.schema")
rest_mutant("chat_names_another", document(CHAT, lambda d: d.update(model="x")), "openai.chat.model")
rest_mutant("chat_usage_is_off", document(CHAT, lambda d: d["usage"].update(total_tokens=1)), "openai.chat.usage")
rest_mutant(
    "chat_is_too_long",
    asked_for(b'"max_tokens": 6', document(CHAT, lambda d: d["usage"].update(completion_tokens=7, total_tokens=9))),
    "openai.chat.max_tokens",
)
rest_mutant(
    "cut_chat_says_stop",
    asked_for(
        b'"max_tokens": 6',
        document(CHAT, lambda d: d["choices"][0].update(finish_reason="content_filter")),
    ),
    "openai.chat.max_tokens",
)


def _keeps_the_stop(ask: Ask, reply: Reply) -> Reply:
    """The text goes on to the stop sequence and holds it."""
    if not ask.path.endswith(CHAT) or b'"stop": [' not in ask.body:
        return reply
    word = json.loads(ask.body)["stop"][0]
    return choice(CHAT, lambda c: c["message"].update(content=c["message"]["content"] + word))(ask, reply)


rest_mutant("chat_keeps_its_stop", _keeps_the_stop, "openai.chat.stop")
rest_mutant(
    "stopped_chat_says_length",
    asked_for(b'"stop": [', choice(CHAT, lambda c: c.update(finish_reason="length"))),
    "openai.chat.stop",
)
rest_mutant(
    "chat_gives_one_of_two", document(CHAT, lambda d: d["choices"].__delitem__(slice(1, None))), "openai.chat.n"
)


def _never_the_same(ask: Ask, reply: Reply) -> Reply:
    ask.memory["turn"] = turn = ask.memory.get("turn", 0) + 1
    return choice(CHAT, lambda c: c["message"].update(content=f"{turn}"))(ask, reply)


rest_mutant("chat_never_repeats", _never_the_same, "openai.chat.repeats")
rest_mutant(
    "unknown_field_is_500",
    asked_for(b"servecert_unknown", lambda ask, reply: replace(reply, status=500)),
    "openai.chat.unknown_field",
)
rest_mutant("completion_has_no_id", document(COMPLETIONS, lambda d: d.pop("id")), "openai.completions.schema")
rest_mutant(
    "completion_usage_is_off",
    document(COMPLETIONS, lambda d: d["usage"].update(total_tokens=1)),
    "openai.completions.usage",
)
rest_mutant(
    "completion_is_too_long",
    asked_for(
        b'"max_tokens": 6', document(COMPLETIONS, lambda d: d["usage"].update(completion_tokens=7, total_tokens=9))
    ),
    "openai.completions.max_tokens",
)
rest_mutant(
    "second_prompt_is_lost",
    document(COMPLETIONS, lambda d: d["choices"].__delitem__(slice(1, None))),
    "openai.completions.prompts",
)
for _name in ("unknown_model", "messages_missing", "temperature", "max_tokens", "malformed"):
    rest_mutant(
        f"openai_{_name}_is_500",
        on(lambda _, reply: reply.refusal, lambda _, reply: replace(reply, status=500)),
        f"openai.errors.{_name}",
    )
    rest_mutant(
        f"openai_{_name}_has_no_message",
        on(lambda _, reply: reply.refusal, lambda _, reply: reply.json(reply.status, {"error": {"code": 1}})),
        f"openai.errors.{_name}",
    )
rest_mutant("stream_comes_as_json", header(CHAT, "content-type", "application/json"), "openai.stream.content_type")
rest_mutant("an_event_is_cut", events(lambda parts: [*parts[:2], parts[2][:-1], *parts[3:]]), "openai.stream.events")
rest_mutant(
    "ids_change_within_a_stream",
    events(lambda parts: [*parts[:2], parts[2].replace(b'"chatcmpl-', b'"chatcmpl-x'), *parts[3:]]),
    "openai.stream.events",
)
rest_mutant("a_delta_is_lost", events(lambda parts: [*parts[:2], *parts[3:]]), "openai.stream.text")
rest_mutant(
    "every_delta_has_a_reason",
    events(lambda parts: [part.replace(b'"finish_reason": null', b'"finish_reason": "stop"') for part in parts]),
    "openai.stream.one_finish_reason",
)
rest_mutant(
    "no_delta_has_a_reason",
    events(lambda parts: [part.replace(b'"finish_reason": "stop"', b'"finish_reason": null') for part in parts]),
    "openai.stream.one_finish_reason",
)
rest_mutant("done_is_missing", events(lambda parts: parts[:-1]), "openai.stream.done")
rest_mutant("done_comes_early", events(lambda parts: [parts[-1], *parts[:-1]]), "openai.stream.done")
rest_mutant(
    "no_delta_has_a_role",
    events(lambda parts: [part.replace(b'"role": "assistant", ', b"") for part in parts]),
    "openai.stream.role",
)


def _at_once(parts: list[bytes]) -> list[bytes]:
    text = "".join(
        json.loads(part[5:])["choices"][0]["delta"].get("content", "") for part in parts if part[6:7] == b"{"
    )
    first = json.loads(parts[0][5:])
    first["choices"][0]["delta"]["content"] = text
    rest_of = [part for part in parts[1:] if not is_text(part)]
    return [b"data: " + json.dumps(first).encode(), *rest_of]


rest_mutant("the_text_comes_at_once", events(_at_once), "openai.stream.pieces")
rest_mutant(
    "stream_usage_is_missing",
    events(lambda parts: [part for part in parts if b'"usage"' not in part]),
    "openai.stream.usage",
)
rest_mutant(
    "a_completion_delta_is_lost",
    events(lambda parts: [parts[0], *parts[2:]], COMPLETIONS),
    "openai.stream.completions",
)
rest_mutant(
    "refused_stream_is_an_event",
    on(
        lambda ask, reply: reply.refusal and b'"stream": true' in ask.body,
        lambda _, reply: Reply(200, {"content-type": "text/event-stream"}, b"data: " + reply.body + b"\n\n"),
    ),
    "openai.stream.refused_before",
)


def _keeps_slots(ask: Ask, reply: Reply) -> Reply:
    ask.memory["streams"] = ask.memory.get("streams", 0) + (b'"stream": true' in ask.body)
    ask.memory["wait_s"] = 0.7 if ask.memory["streams"] >= 8 else 0
    return reply


rest_mutant("those_who_left_keep_their_slots", _keeps_slots, "openai.stream.disconnect")
GENERATE, GENERATE_STREAM = "/text/generate", "/text/generate_stream"
rest_mutant("generate_is_500", status(GENERATE, 500), "generate.answer.status")
rest_mutant("generate_has_no_text", document(GENERATE, lambda d: d.pop("text_output")), "generate.answer.fields")
rest_mutant(
    "generate_refuses_parameters",
    asked_for(b"servecert_flag", status(GENERATE, 400)),
    "generate.answer.parameters",
)
rest_mutant("unknown_model_generates", status(f"{NO_MODEL}/generate", 200), "generate.answer.unknown_model")
rest_mutant(
    "generate_needs_no_input",
    on(lambda ask, reply: ask.path.endswith(GENERATE) and reply.refusal, lambda _, r: replace(r, status=200)),
    "generate.answer.input_missing",
)
rest_mutant(
    "generated_stream_is_json",
    header(GENERATE_STREAM, "content-type", "application/json"),
    "generate.stream.content_type",
)
rest_mutant(
    "generated_event_lacks_text",
    events(lambda parts: [parts[0].replace(b"text_output", b"text"), *parts[1:]], GENERATE_STREAM),
    "generate.stream.events",
)
rest_mutant(
    "generated_word_is_lost", events(lambda parts: [parts[0], *parts[2:]], GENERATE_STREAM), "generate.stream.text"
)


# Installing one


@dataclass
class Current:
    mutant: Mutant | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def set(self, mutant: Mutant | None) -> None:
        self.mutant, self.memory = mutant, {}


CURRENT = Current()


class Altered:
    """An ASGI application whose answers the current mutant changes."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        alter = CURRENT.mutant.rest if CURRENT.mutant else None
        if scope["type"] != "http" or alter is None:
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
        asked = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        ask = Ask(scope["method"], scope["path"], asked, b"".join(sent), CURRENT.memory)
        headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        reply = alter(ask, Reply(start["status"], headers, b"".join(chunks)))
        await asyncio.sleep(ask.memory.get("wait_s", 0))
        lines = {**reply.headers, "content-length": str(len(reply.body))}
        await send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
            }
        )
        await send({"type": "http.response.body", "body": reply.body})


class OtherServices(grpc.GenericRpcHandler):
    """What only a mutant offers."""

    def service(self, details: Any) -> Any:
        offered = CURRENT.mutant.service if CURRENT.mutant else None
        if offered is None or not details.method.endswith(offered[0]):
            return None

        async def answer(request: Any, context: Any) -> bytes:
            return offered[1]

        async def stream(requests: Any, context: Any) -> Any:
            async for _ in requests:
                yield offered[1]

        if offered[0].endswith("Info"):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)


class Both(grpc.GenericRpcHandler):
    def __init__(self, *handlers: Any) -> None:
        self.handlers = handlers

    def service(self, details: Any) -> Any:
        return next((found for handler in self.handlers if (found := handler.service(details)) is not None), None)


class AlteredGrpc(GrpcService):
    """The service with each method's answer, or refusal, going through the current mutant."""

    def handlers(self) -> Any:
        return Both(super().handlers(), OtherServices())

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in METHODS:
            return value

        async def altered(request: Any) -> Any:
            try:
                answer = await value(request)
            except Exception as error:
                answer = error
            if CURRENT.mutant and CURRENT.mutant.grpc:
                answer = CURRENT.mutant.grpc(METHODS[name], request, answer, CURRENT.memory)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return altered


METHODS = {
    "server_live": "ServerLive",
    "server_ready": "ServerReady",
    "model_ready": "ModelReady",
    "server_metadata": "ServerMetadata",
    "model_metadata": "ModelMetadata",
    "model_infer": "ModelInfer",
    "repository_index": "RepositoryIndex",
    "repository_load": "RepositoryModelLoad",
    "repository_unload": "RepositoryModelUnload",
}


def altered_infer(original: Any) -> Any:
    def infer(self: Model, request: Any) -> list[Tensor]:
        produced: list[Tensor] = original(self, request)
        if CURRENT.mutant and CURRENT.mutant.model:
            return CURRENT.mutant.model(self, produced)
        return produced

    return infer


def install() -> None:
    """Makes the reference's classes listen to ``CURRENT``, in this process and for good."""
    from runtimes.reference import grpc_service

    build = rest.RestService.app
    rest.RestService.app = lambda self: Altered(build(self))  # type: ignore[method-assign,assignment,return-value]
    reference.GrpcService = AlteredGrpc  # type: ignore[misc]
    Model.infer = altered_infer(Model.infer)  # type: ignore[method-assign]
    grpc_service._CODES |= {Internal: grpc.StatusCode.INTERNAL, Precondition: grpc.StatusCode.FAILED_PRECONDITION}


async def follow_orders() -> int:
    """The server, with another mutant for each line on standard input (an empty line is none); each is acknowledged."""

    def order() -> None:
        name = sys.stdin.readline().strip()
        CURRENT.set(MUTANTS[name] if name else None)
        print("set", flush=True)

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), order)
    return await reference.serve(reference.parser().parse_args())


if __name__ == "__main__":
    install()
    if sys.argv[1] == "--orders":
        sys.argv.pop(1)
        sys.exit(asyncio.run(follow_orders()))
    CURRENT.set(MUTANTS[sys.argv.pop(1)])
    sys.exit(asyncio.run(reference.serve(reference.parser().parse_args())))
