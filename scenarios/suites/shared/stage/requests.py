"""What a load stage sends, and whether what comes back is the answer to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np

from harness.base.errors import ProtocolError, UsageError
from harness.base.protocols import Protocol
from harness.load.job import ID_PLACEHOLDER, ID_WIDTH, Job, Request
from harness.load.runner import StageResult
from harness.target.endpoint import Endpoint
from harness.target.inputs import Case
from harness.target.look import stands_before
from harness.target.numeric import EXACT, TOLERANCES, distance, other_outputs
from harness.target.protocol.grpc_client import GrpcClient, infer_request
from harness.target.protocol.grpc_client import parse_infer as parse_grpc
from harness.target.protocol.messages import MESSAGES, SERVICE
from harness.target.protocol.openai import read_stream
from harness.target.protocol.rest import HEADER_LENGTH, RestAnswer, RestClient, binary_request, json_body, json_request
from harness.target.protocol.rest import parse_infer as parse_rest
from harness.target.protocol.tensors import InferResult, Tensor
from scenarios.suites.shared.stage.plan import Plan

CYCLE = 4096
"""Length of the random request order; after it, the order repeats."""
GRPC = ("grpc", "grpc-stream")


@dataclass(frozen=True)
class Encoded:
    """A case as it goes out, and what must come back; each request carries its own number as its id.

    ``expected`` is empty where the model does not repeat itself, and where there was no time to ask (``unasked``);
    ``problem`` says why not even a single request got an answer that can be read. ``inputs`` are what it asks, and
    ``alone`` what was answered when nothing else was asked.
    """

    request: Request
    body: bytes
    expected: tuple[Tensor, ...] = ()
    problem: str = ""
    inputs: tuple[Tensor, ...] = ()
    alone: InferResult | None = None
    unasked: bool = False


def request_id(row: int) -> str:
    return f"{row:0{ID_WIDTH}d}"


def agree(one: InferResult, other: InferResult) -> bool:
    return not differs(one.outputs, other)


def differs(expected: Sequence[Tensor], came: InferResult) -> str:
    """Where an answer is not as expected; empty where it is. Another output is as wrong as one that is missing."""
    if problem := other_outputs(expected, came):
        return problem
    return next((text for tensor in expected if (text := _difference(tensor, came))), "")


def _difference(expected: Tensor, came: InferResult) -> str:
    """Where an output is not as expected; empty where it is."""
    try:
        near = distance(expected, came.output(expected.name), TOLERANCES.get(expected.datatype, EXACT))
    except (ProtocolError, ValueError) as error:
        return f"output {expected.name!r}: {error}"
    if near.within:
        return ""
    return f"{expected.name}{list(near.worst_index)}: expected {near.worst_expected}, got {near.worst_observed}"


def encode_case(endpoint: Endpoint, plan: Plan, number: int, case: Case) -> Encoded:
    name = f"body-{number}.bin"
    if plan.protocol in GRPC:
        raw = any(tensor.datatype in ("FP16", "BF16") for tensor in case.inputs)
        message = infer_request(endpoint.model, case.inputs, request_id=ID_PLACEHOLDER, raw=raw)
        method = "ModelInfer" if plan.protocol == "grpc" else "ModelStreamInfer"
        request = Request(f"/{SERVICE}/{method}", {}, name, case.weight)
        return Encoded(request, message.SerializeToString())
    path = f"{urlsplit(endpoint.url).path.rstrip('/')}/v2/models/{quote(endpoint.model, safe='')}/infer"
    if plan.protocol == "binary":
        body, length = binary_request(case.inputs, request_id=ID_PLACEHOLDER)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}
    else:
        body = json_body(json_request(case.inputs, request_id=ID_PLACEHOLDER))
        headers = {"Content-Type": "application/json"}
    return Encoded(Request(path, headers, name, case.weight), body)


async def ask(plan: Plan, item: Encoded, rest: RestClient, grpc: GrpcClient | None) -> InferResult:
    """One request, alone. Raises NotServedError where the answer is none of the server's, and what a client raises."""
    if plan.protocol in GRPC:
        assert grpc is not None
        request = MESSAGES["ModelInferRequest"].FromString(item.body)
        if plan.protocol == "grpc":
            return parse_grpc(await grpc.call("ModelInfer", request))
        answers = await grpc.stream_infer(request)
        if not answers or answers[-1].error_message:
            raise ProtocolError(f"ModelStreamInfer: {answers[-1].error_message if answers else 'no answer'}")
        return parse_grpc(answers[-1].infer_response)
    path = item.request.target.removeprefix(urlsplit(rest.base_url).path.rstrip("/"))
    answer = await rest.request("POST", path, item.body, item.request.headers)
    if (before := stands_before(answer, rest.base_url)) is not None:
        raise before
    return parse_rest(answer)


def _grpc_message(protocol: Protocol, content: bytes) -> Any:
    if protocol == "grpc":
        return MESSAGES["ModelInferResponse"].FromString(content)
    return MESSAGES["ModelStreamInferResponse"].FromString(content).infer_response


def draw_cycle(encoded: Sequence[Encoded], seed: int) -> tuple[int, ...]:
    """Equal weights take turns; others are drawn."""
    weights = np.array([item.request.weight for item in encoded])
    if np.all(weights == weights[0]):
        return tuple(range(len(encoded)))
    drawn = np.random.default_rng(seed).choice(len(encoded), CYCLE, p=weights / weights.sum())
    return tuple(int(index) for index in drawn)


def build_job(endpoint: Endpoint, plan: Plan, encoded: Sequence[Encoded]) -> Job:
    parts = urlsplit(endpoint.url)
    tls = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if tls else 80)
    authority = endpoint.host or parts.netloc
    if plan.protocol in GRPC:
        host, _, number = endpoint.grpc_address.rpartition(":")
        port, authority, tls = int(number), endpoint.host, endpoint.grpc_tls
    if plan.workers.startswith("cluster:"):
        if not endpoint.inside:
            raise UsageError(f"{plan.name}: workers {plan.workers}: how pods reach the ingress is not known here")
        host, _, number = endpoint.inside.rpartition(":")
        port = int(number)
    try:
        return Job(
            protocol=plan.protocol,
            host=host,
            port=port,
            authority=authority,
            tls=tls,
            ca=endpoint.trusted(),
            requests=tuple(item.request for item in encoded),
            cycle=draw_cycle(encoded, plan.seed),
            duration_s=0.0 if plan.open_loop else plan.lead_in_s + plan.duration_s,
            concurrency=plan.concurrency,
            think_s=plan.think_s,
            timeout_s=plan.timeout_s,
            connections=plan.connections,
            check_every=plan.check_every,
        )
    except ValueError as error:
        raise UsageError(f"{plan.name}: {error}") from error


def read_answer(protocol: Protocol, content: bytes) -> InferResult:
    """A kept answer. Raises whatever its content is worth; protobuf raises its own kinds."""
    if protocol in GRPC:
        return parse_grpc(_grpc_message(protocol, content))
    return parse_rest(RestAnswer(200, _binary_header(protocol, content), content, 0.0))


def wrong_answers(
    protocol: Protocol, stage: StageResult, encoded: Sequence[Encoded], cycle: Sequence[int]
) -> dict[int, str]:
    """Rows whose kept answer is not the one to their request, with what is wrong."""
    wrong = {}
    right: dict[int, set[bytes]] = {}
    for row, content in stage.answers.items():
        place = cycle[row % len(cycle)]
        item = encoded[place]
        if item.problem:
            continue  # there is nothing to compare with, and the check of the answers says so
        shape, known = without_id(content, row), right.setdefault(place, set())
        if shape is not None and shape in known:
            continue  # byte for byte what was found right before, with this request's id in the same place
        try:
            if protocol == "openai":
                read_stream(content)
                continue
            came = read_answer(protocol, content)
        except Exception as error:  # whatever a server may send; protobuf raises its own kinds
            wrong[row] = f"not an inference answer: {error}"
            continue
        if came.id not in (None, "", request_id(row)):
            wrong[row] = f"expected id {request_id(row)!r}, got {came.id!r}"
            continue
        if item.expected and (difference := differs(item.expected, came)):
            wrong[row] = difference
        elif shape is not None and len(known) < KNOWN_ANSWERS:
            known.add(shape)
    return wrong


KNOWN_ANSWERS = 64
"""So many different right answers to one request are remembered."""


def without_id(content: bytes, row: int) -> bytes | None:
    """An answer without its request's id, which all answers to equal requests have in common; None where the id stands
    in it more than once, so that what is left would say nothing. Ids are of one length."""
    token = request_id(row).encode()
    return content.replace(token, b"") if content.count(token) <= 1 else None


def _binary_header(protocol: Protocol, content: bytes) -> httpx.Headers:
    """The worker keeps bodies only; in a binary answer the JSON part ends where its braces close."""
    if protocol != "binary":
        return httpx.Headers()
    depth, quoted, escaped = 0, False, False
    for position, byte in enumerate(content):
        if quoted:
            quoted = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            quoted = True
        elif byte in b"{}":
            depth += 1 if byte == 0x7B else -1
            if depth == 0:
                return httpx.Headers({HEADER_LENGTH: str(position + 1)} if position + 1 < len(content) else {})
    return httpx.Headers()
