"""gRPC: inference_grpc.md and the repository extension, as generic handlers over the compiled descriptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from runtimes.reference.messages import MESSAGES, SERVICE
from runtimes.reference.metrics import Metrics
from runtimes.reference.model import (
    DTYPES,
    InvalidRequest,
    NotFound,
    Request,
    Tensor,
    Unavailable,
    check_datatype,
    check_shape,
    count_of,
    decode_raw,
    encode_raw,
    rows_of,
)
from runtimes.reference.repository import Repository
from runtimes.reference.rest import EXTENSIONS

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_CODES = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}


class GrpcService:
    def __init__(self, repository: Repository, metrics: Metrics, version: str) -> None:
        self.repository = repository
        self.metrics = metrics
        self.version = version
        self.draining = False

    def handlers(self) -> Any:
        methods = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_load,
            "RepositoryModelUnload": self.repository_unload,
        }
        stream = grpc.stream_stream_rpc_method_handler(
            self.stream_infer,
            request_deserializer=MESSAGES["ModelInferRequest"].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {"ModelStreamInfer": stream}
            | {
                name: grpc.unary_unary_rpc_method_handler(
                    _guard(method),
                    request_deserializer=MESSAGES[f"{name}Request"].FromString,
                    response_serializer=lambda message: message.SerializeToString(),
                )
                for name, method in methods.items()
            },
        )

    async def server_live(self, request: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def server_ready(self, request: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self.repository.ready and not self.draining)

    async def model_ready(self, request: Any) -> Any:
        model = self.repository.find(request.name, request.version)
        return MESSAGES["ModelReadyResponse"](ready=model.loaded)

    async def server_metadata(self, request: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](
            name="servecert-reference", version=self.version, extensions=EXTENSIONS
        )

    async def model_metadata(self, request: Any) -> Any:
        return MESSAGES["ModelMetadataResponse"](
            **self.repository.ready_model(request.name, request.version).metadata()
        )

    async def repository_index(self, request: Any) -> Any:
        return MESSAGES["RepositoryIndexResponse"](models=self.repository.index(request.ready))

    async def repository_load(self, request: Any) -> Any:
        self.repository.load(request.model_name)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def repository_unload(self, request: Any) -> Any:
        self.repository.unload(request.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def model_infer(self, request: Any) -> Any:
        model = self.repository.ready_model(request.model_name, request.model_version)
        with self.metrics.observe(model.name) as observation:
            raw = bool(request.raw_input_contents)
            outputs = model.infer(_read(request))
            if model.work_s:
                await asyncio.sleep(model.work_s)
            observation.rows = rows_of(outputs)
            observation.succeeded = True
        answer = MESSAGES["ModelInferResponse"](model_name=model.name, model_version=model.versions[-1], id=request.id)
        # FP16 and BF16 have no contents field; one raw tensor makes the whole answer raw.
        raw = raw or any(tensor.datatype not in _CONTENTS for tensor in outputs)
        for tensor in outputs:
            described = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if raw:
                answer.raw_output_contents.append(encode_raw(tensor))
            else:
                values = tensor.data if tensor.datatype == "BYTES" else tensor.data.tolist()
                getattr(described.contents, _CONTENTS[tensor.datatype]).extend(values)
        return answer

    async def stream_infer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Triton's protocol, extension for streams: a request that fails says so in its answer, and the stream goes
        on."""
        async for request in requests:
            try:
                yield MESSAGES["ModelStreamInferResponse"](infer_response=await self.model_infer(request))
            except (InvalidRequest, NotFound, Unavailable) as error:
                yield MESSAGES["ModelStreamInferResponse"](
                    error_message=str(error), infer_response=MESSAGES["ModelInferResponse"](id=request.id)
                )


def _guard(method: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await method(request)
        except tuple(_CODES) as error:
            await context.abort(_CODES[type(error)], str(error))

    return guarded


def _read(request: Any) -> Request:
    inputs = list(request.inputs)
    if not inputs:
        raise InvalidRequest("inputs must hold at least one tensor")
    raws = list(request.raw_input_contents)
    if raws:
        if any(item.HasField("contents") for item in inputs):
            raise InvalidRequest("raw_input_contents and contents are given together")
        if len(raws) != len(inputs):
            raise InvalidRequest(f"expected {len(inputs)} raw_input_contents, got {len(raws)}")
    tensors = []
    for index, item in enumerate(inputs):
        shape = check_shape(item.name, list(item.shape))
        datatype = check_datatype(item.name, item.datatype)
        if raws:
            tensors.append(decode_raw(item.name, datatype, shape, raws[index]))
        else:
            tensors.append(_from_contents(item, datatype, shape))
    return Request(request.id, tensors, [output.name for output in request.outputs])


def _from_contents(item: Any, datatype: str, shape: tuple[int, ...]) -> Tensor:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidRequest(f"input {item.name!r}: {datatype} must be sent as raw_input_contents")
    filled = [name for name in set(_CONTENTS.values()) if len(getattr(item.contents, name))]
    if any(name != field for name in filled):
        raise InvalidRequest(f"input {item.name!r}: {datatype} belongs into {field}, got {', '.join(sorted(filled))}")
    values = list(getattr(item.contents, field))
    if len(values) != count_of(shape):
        raise InvalidRequest(
            f"input {item.name!r}: shape {list(shape)} needs {count_of(shape)} elements, got {len(values)}"
        )
    if datatype == "BYTES":
        return Tensor(item.name, datatype, shape, values)
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if any(not limits.min <= value <= limits.max for value in values):
            raise InvalidRequest(f"input {item.name!r}: a number is out of {datatype}'s range")
    return Tensor(item.name, datatype, shape, np.array(values, dtype=dtype))
