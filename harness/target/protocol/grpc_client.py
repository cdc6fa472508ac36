"""Open Inference Protocol over gRPC. Source: inference_grpc.md, open_inference_grpc.proto."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format

from harness.base.errors import ProtocolError, ServecertError
from harness.results.records import Exchange
from harness.target.protocol.messages import MESSAGES, SERVICE
from harness.target.protocol.patience import SHORT_S, Patience
from harness.target.protocol.tensors import CONTENTS_FIELDS, DTYPES, InferResult, Tensor, TensorSpec, from_raw, to_raw
from harness.target.protocol.transcript import note, shorten

MAX_MESSAGE_BYTES = 256 << 20


class GrpcStatusError(ServecertError):
    """A status other than OK."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        self.details = details
        super().__init__(f"{code.name}: {details}")


def infer_request(
    model: str,
    inputs: Sequence[Tensor],
    *,
    version: str = "",
    request_id: str = "",
    raw: bool = False,
    outputs: Sequence[str] = (),
) -> Any:
    """A ModelInferRequest; ``raw`` puts the tensors into ``raw_input_contents``. Raises ProtocolError."""
    request = MESSAGES["ModelInferRequest"](model_name=model, model_version=version, id=request_id)
    for name in outputs:
        request.outputs.add(name=name)
    for tensor in inputs:
        item = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            request.raw_input_contents.append(to_raw(tensor))
        else:
            fill_contents(item, tensor)
    return request


def fill_contents(item: Any, tensor: Tensor) -> None:
    field = CONTENTS_FIELDS.get(tensor.datatype)
    if field is None:
        raise ProtocolError(f"{tensor.datatype} has no contents field; send it raw")
    getattr(item.contents, field).extend(tensor.flat.tolist())


def parse_infer(answer: Any) -> InferResult:
    """Raises ProtocolError where contents, shapes and raw parts do not fit together."""
    raws = list(answer.raw_output_contents)
    if raws and len(raws) != len(answer.outputs):
        raise ProtocolError(f"expected {len(answer.outputs)} raw_output_contents, got {len(raws)}")
    tensors = []
    for index, output in enumerate(answer.outputs):
        shape = tuple(output.shape)
        if raws:
            tensors.append(from_raw(output.name, output.datatype, shape, raws[index]))
        else:
            tensors.append(_from_contents(output, shape))
    return InferResult(answer.model_name, answer.model_version or None, answer.id or None, tuple(tensors))


def _from_contents(output: Any, shape: tuple[int, ...]) -> Tensor:
    field = CONTENTS_FIELDS.get(output.datatype)
    if field is None:
        raise ProtocolError(f"output {output.name!r}: {output.datatype} must come as raw_output_contents")
    values = list(getattr(output.contents, field))
    count = int(np.prod(shape, dtype=np.int64))
    if len(values) != count:
        raise ProtocolError(
            f"output {output.name!r}: shape {list(shape)} needs {count} elements, {field} has {len(values)}"
        )
    if output.datatype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = values
    else:
        try:
            array = np.array(values, dtype=DTYPES[output.datatype])
        except OverflowError as error:
            raise ProtocolError(f"output {output.name!r}: {error}") from error
    return Tensor(output.name, output.datatype, shape, array.reshape(shape))


class GrpcClient:
    """One server and one model. ``authority`` replaces the host where the address is an ingress."""

    def __init__(
        self, address: str, model: str, *, authority: str = "", timeout_s: float = 15.0, ca: str | None = None
    ) -> None:
        """``ca`` holds the certificates to trust, as PEM, empty for the system's; None speaks without TLS."""
        self.address = address
        self.model = model
        self.authority = authority
        self.timeout_s = timeout_s
        self._patience = Patience()
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if authority:
            options.append(("grpc.default_authority", authority))
        if ca is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            if authority:  # the name that the certificate is for, where the address is an ingress
                options.append(("grpc.ssl_target_name_override", authority))
            credentials = grpc.ssl_channel_credentials(ca.encode() or None)
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._methods: dict[str, Any] = {}

    async def __aenter__(self) -> GrpcClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Any:
        """Raises GrpcStatusError for any status but OK."""
        stub = self._methods.get(method)
        if stub is None:
            stub = self._methods[method] = self._channel.unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=MESSAGES[f"{method}Response"].FromString,
            )
        line, shown = self._describe(method, request)
        limit = self._patience.limit(method, timeout_s or self.timeout_s)
        try:
            answer = await stub(request, timeout=limit)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and limit >= SHORT_S:
                self._patience.unanswered(method)
            else:
                self._patience.answered(method)
            note(Exchange(line, shown, error.code().name, shorten(error.details() or "")))
            raise GrpcStatusError(error.code(), error.details() or "") from error
        self._patience.answered(method)
        note(Exchange(line, shown, "OK", _as_text(answer)))
        return answer

    async def stream_infer(self, request: Any, *, timeout_s: float | None = None) -> list[Any]:
        """One request by Triton's ModelStreamInfer; all its answers. Raises GrpcStatusError."""
        stub = self._channel.unary_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=MESSAGES["ModelStreamInferResponse"].FromString,
        )
        line, shown = self._describe("ModelStreamInfer", request)
        answers: list[Any] = []
        try:
            async for answer in stub(request, timeout=timeout_s or self.timeout_s):
                answers.append(answer)
        except grpc.aio.AioRpcError as error:
            note(Exchange(line, shown, error.code().name, shorten(error.details() or "")))
            raise GrpcStatusError(error.code(), error.details() or "") from error
        note(Exchange(line, shown, "OK", shorten("\n".join(_as_text(answer) for answer in answers))))
        return answers

    async def raw_call(self, method: str, request: bytes, *, stream: bool = False) -> bytes | None:
        """Of another service, whose messages are not ours: the first answer's bytes; None where none comes."""
        kind = self._channel.stream_stream if stream else self._channel.unary_unary
        line = shlex.join(["grpcurl", "-plaintext", self.address, method.strip("/")])
        try:
            if stream:
                answer = await anext(aiter(kind(method)(iter([request]), timeout=self.timeout_s)))
            else:
                answer = await kind(method)(request, timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            note(Exchange(line, request.hex(" "), error.code().name, shorten(error.details() or "")))
            return None
        except StopAsyncIteration:
            return None
        note(Exchange(line, request.hex(" "), "OK", answer.hex(" ")[:600]))
        return bytes(answer)

    def _describe(self, method: str, request: Any) -> tuple[str, str]:
        text = _as_text(request)
        parts = ["grpcurl", "-plaintext", "-proto", "open_inference.proto"]
        if self.authority:
            parts += ["-authority", self.authority]
        body = text if len(text) <= 2000 else "@request.json"
        return shlex.join([*parts, "-d", body, self.address, f"{SERVICE}/{method}"]), shorten(text)

    async def infer(self, inputs: Sequence[Tensor], *, raw: bool = False, **options: Any) -> InferResult:
        """Raises GrpcStatusError or ProtocolError."""
        return parse_infer(await self.call("ModelInfer", infer_request(self.model, inputs, raw=raw, **options)))

    async def metadata(self, model: str | None = None, version: str = "") -> Any:
        return await self.call(
            "ModelMetadata", MESSAGES["ModelMetadataRequest"](name=model or self.model, version=version)
        )


def specs(tensors: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item.name, item.datatype, tuple(item.shape)) for item in tensors)


def _as_text(message: Any) -> str:
    if message.ByteSize() > 20_000:
        return f"{{… {message.ByteSize()} bytes …}}"
    return json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False)
