"""grpc.errors: a client's mistakes. Each is sent once and judged four times: refusal, kind, status, recovery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.target.protocol.grpc_client import GrpcStatusError, infer_request
from harness.target.protocol.tensors import CONTENTS_FIELDS
from scenarios.suites.conformance.checks import MUST, SHOULD, Check, Need, Source, expect
from scenarios.suites.conformance.grpc_checks import NO_MODEL, model_infer, refusal
from scenarios.suites.conformance.rest_metadata import UNKNOWN_VERSION
from scenarios.suites.conformance.sources import OIP_GRPC, REGISTRY
from scenarios.suites.conformance.target import Target, grpc_payload, metadata, second_input, typed_contents

FAULTS = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS")
"""What a server says when the fault is its own."""


@dataclass(frozen=True)
class Mistake:
    name: str
    what: str
    spoil: Callable[[Any], object]
    raw: bool = True
    """Whether the request to spoil carries its tensors raw."""
    status: str = "INVALID_ARGUMENT"
    source: Source = OIP_GRPC.inference
    needs: tuple[Need, ...] = ()


def _raw_changed(by: Callable[[bytes], bytes]) -> Callable[[Any], None]:
    def spoil(request: Any) -> None:
        request.raw_input_contents[0] = by(request.raw_input_contents[0])

    return spoil


def _repeat_element(request: Any) -> None:
    item = request.inputs[0]
    values = getattr(item.contents, CONTENTS_FIELDS[item.datatype])
    values.append(values[0])


def _contents_beside_raw(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.append(1.0)


def _duplicate(request: Any) -> None:
    request.inputs.add().CopyFrom(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _wrong_rank(request: Any) -> None:
    request.inputs[0].shape.append(1)


def _other_field(request: Any) -> None:
    item = request.inputs[0]
    field = CONTENTS_FIELDS[item.datatype]
    count = len(getattr(item.contents, field))
    item.ClearField("contents")
    if field == "bytes_contents":
        item.contents.fp32_contents.extend([1.0] * count)
    else:
        item.contents.bytes_contents.extend([b"x"] * count)


def _one_input_less(request: Any) -> None:
    del request.inputs[-1]
    del request.raw_input_contents[-1]


MISTAKES = [
    Mistake(
        "unknown_input",
        "an input that the model does not have",
        lambda request: setattr(request.inputs[0], "name", "no-such-input-7d1f"),
        needs=(metadata,),
    ),
    Mistake("missing_input", "a request that lacks a required input", _one_input_less, needs=(second_input,)),
    Mistake("duplicate_input", "the same input twice", _duplicate),
    Mistake(
        "no_inputs",
        "a request without inputs",
        lambda request: [request.ClearField("inputs"), request.ClearField("raw_input_contents")],
    ),
    Mistake(
        "contents_too_long",
        "more elements in contents than the shape says",
        _repeat_element,
        raw=False,
        needs=(typed_contents,),
    ),
    Mistake(
        "contents_missing",
        "an input without contents and without raw data",
        lambda request: request.inputs[0].ClearField("contents"),
        raw=False,
        needs=(typed_contents,),
    ),
    Mistake(
        "contents_of_another_type",
        "elements in the contents field of another datatype",
        _other_field,
        raw=False,
        needs=(typed_contents,),
    ),
    Mistake(
        "raw_too_long",
        "raw data longer than shape and datatype say",
        _raw_changed(lambda raw: raw + bytes(1)),
        source=OIP_GRPC.raw,
    ),
    Mistake(
        "raw_too_short",
        "raw data shorter than shape and datatype say",
        _raw_changed(lambda raw: raw[:-1]),
        source=OIP_GRPC.raw,
    ),
    Mistake(
        "raw_too_few",
        "fewer raw_input_contents than inputs",
        lambda request: request.raw_input_contents.pop(),
        source=OIP_GRPC.raw,
        needs=(second_input,),
    ),
    Mistake(
        "raw_too_many",
        "more raw_input_contents than inputs",
        lambda request: request.raw_input_contents.append(bytes(4)),
        source=OIP_GRPC.raw,
    ),
    Mistake("raw_and_contents", "raw_input_contents and contents together", _contents_beside_raw, source=OIP_GRPC.raw),
    Mistake(
        "unknown_datatype",
        "a datatype that does not exist",
        lambda request: setattr(request.inputs[0], "datatype", "FP31"),
    ),
    Mistake(
        "negative_dimension",
        "a negative dimension",
        lambda request: request.inputs[0].shape.__setitem__(0, -request.inputs[0].shape[0]),
    ),
    Mistake("wrong_rank", "one dimension more than the model has", _wrong_rank, needs=(metadata,)),
    Mistake(
        "unknown_output",
        "a requested output that the model does not have",
        lambda request: request.outputs.add(name="no-such-output-7d1f"),
        needs=(metadata,),
    ),
    Mistake(
        "unknown_version",
        "an unknown version",
        lambda request: setattr(request, "model_version", UNKNOWN_VERSION),
        status="NOT_FOUND",
    ),
    Mistake(
        "unknown_model",
        "an unknown model",
        lambda request: setattr(request, "model_name", NO_MODEL),
        status="NOT_FOUND",
    ),
]


async def _outcome(mistake: Mistake, target: Target) -> GrpcStatusError | None:
    """The refusal; None where the request was answered."""

    async def ask() -> tuple[GrpcStatusError | None]:
        request = infer_request(target.model, target.example(), raw=mistake.raw)
        mistake.spoil(request)
        try:
            await target.grpc_client().call("ModelInfer", request)
        except GrpcStatusError as error:
            return (error,)
        return (None,)

    found: tuple[GrpcStatusError | None] = await target.once(f"grpc.errors.{mistake.name}", ask)
    return found[0]


async def _refusal(mistake: Mistake, target: Target) -> GrpcStatusError:
    return refusal("ModelInfer", await _outcome(mistake, target))


def _register(mistake: Mistake) -> None:
    async def refused(target: Target) -> None:
        await _refusal(mistake, target)

    async def not_a_fault(target: Target) -> None:
        error = await _refusal(mistake, target)
        expect(error.code.name, "status").satisfies(lambda name: name not in FAULTS, f"none of {', '.join(FAULTS)}")

    async def status(target: Target) -> None:
        expect((await _refusal(mistake, target)).code.name, "status").equals(mistake.status)

    async def recovers(target: Target) -> None:
        await _outcome(mistake, target)
        expect(len((await model_infer(target)).outputs), "outputs of a valid request afterwards").satisfies(
            lambda count: count > 0, "one or more"
        )

    what, needs = mistake.what, (grpc_payload, *mistake.needs)
    for name, level, source, requirement, run in (
        ("refused", MUST, mistake.source, f"{what[0].upper()}{what[1:]} is refused.", refused),
        (
            "not_a_fault",
            SHOULD,
            OIP_GRPC.status,
            f"The refusal of {what} does not say that the fault is the server's.",
            not_a_fault,
        ),
        ("code", SHOULD, OIP_GRPC.status, f"The refusal of {what} is {mistake.status}.", status),
        ("recovers", MUST, OIP_GRPC.inference, f"After {what}, the server still answers.", recovers),
    ):
        REGISTRY.add(Check(f"grpc.errors.{mistake.name}.{name}", level, source, requirement, run, needs))


for _mistake in MISTAKES:
    _register(_mistake)
