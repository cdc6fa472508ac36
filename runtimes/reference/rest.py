"""REST: inference_rest.md, the binary tensor data extension and the model repository extension."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

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
from runtimes.reference.openai import OpenAI
from runtimes.reference.repository import Repository

EXTENSIONS = ["binary_tensor_data", "model_repository", "statistics"]
HEADER_LENGTH = "inference-header-content-length"
MAX_DECODED_BYTES = 256 << 20


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


def _error(error: Exception) -> Response:
    status = {InvalidRequest: 400, NotFound: 404, Unavailable: 503}.get(type(error), 500)
    return _json({"error": str(error) or type(error).__name__}, status)


class RestService:
    """``draining`` turns readiness off while requests in flight are still answered."""

    def __init__(self, repository: Repository, metrics: Metrics, version: str) -> None:
        self.repository = repository
        self.metrics = metrics
        self.version = version
        self.draining = False

    def app(self) -> Starlette:
        model, version = "/v2/models/{model:str}", "/versions/{version:str}"
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/v2/health/live", self.live, methods=get),
            Route("/v2/health/ready", self.ready, methods=get),
            Route("/v2", self.server_metadata, methods=get),
            Route("/v2/models/stats", self.all_statistics, methods=get),
            Route(model, self.guard(self.model_metadata), methods=get),
            Route(model + version, self.guard(self.model_metadata), methods=get),
            Route(model + "/ready", self.guard(self.model_ready), methods=get),
            Route(model + version + "/ready", self.guard(self.model_ready), methods=get),
            Route(model + "/stats", self.guard(self.statistics), methods=get),
            Route(model + version + "/stats", self.guard(self.statistics), methods=get),
            Route(model + "/infer", self.guard(self.infer), methods=post),
            Route(model + version + "/infer", self.guard(self.infer), methods=post),
            Route("/v2/repository/index", self.guard(self.index), methods=post),
            Route("/v2/repository/models/{model:str}/load", self.guard(self.load), methods=post),
            Route("/v2/repository/models/{model:str}/unload", self.guard(self.unload), methods=post),
            Route("/metrics", self.prometheus, methods=get),
            *OpenAI(self.repository, self.metrics).routes(),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: self.http_error, Exception: self.crashed})

    async def http_error(self, request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))

    async def crashed(self, request: HttpRequest, error: Exception) -> Response:
        return _json({"error": f"internal error: {type(error).__name__}"}, 500)

    def guard(
        self, handler: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def guarded(request: HttpRequest) -> Response:
            try:
                return await handler(request)
            except (InvalidRequest, NotFound, Unavailable) as error:
                return _error(error)

        return guarded

    async def all_statistics(self, request: HttpRequest) -> Response:
        models = self.repository.models.values()
        return _json({"model_stats": [self.metrics.statistics(model.name, model.versions[-1]) for model in models]})

    async def statistics(self, request: HttpRequest) -> Response:
        model = self._model(request)
        return _json({"model_stats": [self.metrics.statistics(model.name, model.versions[-1])]})

    async def live(self, request: HttpRequest) -> Response:
        return _json({"live": True})

    async def ready(self, request: HttpRequest) -> Response:
        ready = self.repository.ready and not self.draining
        return _json({"live": True, "ready": ready}, 200 if ready else 503)

    async def server_metadata(self, request: HttpRequest) -> Response:
        return _json({"name": "servecert-reference", "version": self.version, "extensions": EXTENSIONS})

    async def model_metadata(self, request: HttpRequest) -> Response:
        return _json(self._model(request).metadata())

    async def model_ready(self, request: HttpRequest) -> Response:
        model = self.repository.find(request.path_params["model"], request.path_params.get("version", ""))
        return _json({"name": model.name, "ready": model.loaded}, 200 if model.loaded else 503)

    async def prometheus(self, request: HttpRequest) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def index(self, request: HttpRequest) -> Response:
        body = await request.body()
        wish = _parse(body) if body else {}
        return _json(self.repository.index(bool(wish.get("ready", False))))

    async def load(self, request: HttpRequest) -> Response:
        self.repository.load(request.path_params["model"])
        return Response(status_code=200)

    async def unload(self, request: HttpRequest) -> Response:
        self.repository.unload(request.path_params["model"])
        return Response(status_code=200)

    def _model(self, request: HttpRequest) -> Any:
        return self.repository.ready_model(request.path_params["model"], request.path_params.get("version", ""))

    async def infer(self, request: HttpRequest) -> Response:
        model = self._model(request)
        with self.metrics.observe(model.name) as observation:
            content = _decoded(await request.body(), request.headers.get("content-encoding", ""))
            wish, tail = _split(content, request.headers.get(HEADER_LENGTH))
            parsed, binary = _read_request(wish, tail)
            outputs = model.infer(parsed)
            if model.work_s:
                await asyncio.sleep(model.work_s)
            observation.rows = rows_of(outputs)
            observation.succeeded = True
        answer: dict[str, Any] = {"model_name": model.name, "model_version": model.versions[-1]}
        if parsed.id:
            answer["id"] = parsed.id
        chunks: list[bytes] = []
        answer["outputs"] = [_write_output(tensor, binary.get(tensor.name, binary["*"]), chunks) for tensor in outputs]
        if not chunks:
            return _json(answer)
        header = json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
        return Response(
            b"".join([header, *chunks]),
            headers={HEADER_LENGTH: str(len(header))},
            media_type="application/octet-stream",
        )


def _write_output(tensor: Tensor, binary: bool, chunks: list[bytes]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if binary:
        raw = encode_raw(tensor)
        chunks.append(raw)
        return {**described, "parameters": {"binary_data_size": len(raw)}}
    if tensor.datatype == "BYTES":
        try:
            return {**described, "data": [item.decode() for item in tensor.data]}
        except UnicodeDecodeError:
            raise InvalidRequest(f"output {tensor.name!r} is not UTF-8; ask for it as binary data") from None
    if tensor.data.dtype.kind == "f" and not np.isfinite(tensor.data).all():
        raise InvalidRequest(
            f"output {tensor.name!r} holds NaN or infinity, which JSON lacks; ask for it as binary data"
        )
    return {**described, "data": tensor.data.tolist()}


def _decoded(body: bytes, encoding: str) -> bytes:
    if encoding.lower() != "gzip":
        return body
    try:
        expander = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        content = expander.decompress(body, MAX_DECODED_BYTES)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not gzip: {error}") from None
    if expander.unconsumed_tail or not expander.eof:
        raise InvalidRequest(f"the body is cut off, or more than {MAX_DECODED_BYTES} bytes when expanded")
    return content


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not header_length.isascii() or not header_length.isdigit():
        raise InvalidRequest(f"Inference-Header-Content-Length is not a number: {header_length!r}")
    length = int(header_length)
    if length > len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    return body[:length], body[length:]


def _reject_constant(name: str) -> object:
    raise InvalidRequest(f"{name} is not JSON")


def _parse(body: bytes) -> dict[str, Any]:
    try:
        wish = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(wish, dict):
        raise InvalidRequest(f"expected a JSON object, got {type(wish).__name__}")
    return wish


def _parameters(holder: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}: parameters must be an object")
    for key, value in parameters.items():
        if not isinstance(value, str | bool | int | float):
            raise InvalidRequest(f"{where}: parameter {key!r} must be a string, number or boolean")
    return parameters


def _read_request(body: bytes, tail: bytes) -> tuple[Request, dict[str, bool]]:
    """The request, and which outputs go out as binary (key ``*`` for those not named)."""
    wish = _parse(body)
    parameters = _parameters(wish, "request")
    identifier = wish.get("id", "")
    if not isinstance(identifier, str):
        raise InvalidRequest(f"id must be a string, got {identifier!r}")
    inputs = wish.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequest("inputs must be a list with at least one tensor")
    tensors = []
    for item in inputs:
        tensor, tail = _read_input(item, tail)
        tensors.append(tensor)
    if tail:
        raise InvalidRequest(f"{len(tail)} bytes follow the last binary input")
    outputs = wish.get("outputs", [])
    if not isinstance(outputs, list):
        raise InvalidRequest("outputs must be a list")
    binary = {"*": bool(parameters.get("binary_data_output", False))}
    names = []
    for item in outputs:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise InvalidRequest("each requested output needs a name")
        names.append(item["name"])
        choice = _parameters(item, f"output {item['name']!r}").get("binary_data")
        if choice is not None:
            binary[item["name"]] = bool(choice)
    return Request(identifier, tensors, names), binary


def _read_input(item: object, tail: bytes) -> tuple[Tensor, bytes]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"each input must be an object, got {item!r}")
    name = item.get("name")
    if not isinstance(name, str):
        raise InvalidRequest("an input needs a name")
    for key in ("shape", "datatype"):
        if key not in item:
            raise InvalidRequest(f"input {name!r}: {key} is missing")
    shape = check_shape(name, item["shape"])
    datatype = check_datatype(name, item["datatype"])
    size = _parameters(item, f"input {name!r}").get("binary_data_size")
    if size is not None:
        if "data" in item:
            raise InvalidRequest(f"input {name!r}: both data and binary_data_size are given")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidRequest(f"input {name!r}: binary_data_size must be a number of bytes, got {size!r}")
        if size > len(tail):
            raise InvalidRequest(f"input {name!r}: binary_data_size is {size}, {len(tail)} bytes are left in the body")
        return decode_raw(name, datatype, shape, tail[:size]), tail[size:]
    if "data" not in item:
        raise InvalidRequest(f"input {name!r}: data is missing")
    return _from_json(name, datatype, shape, item["data"]), tail


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Tensor:
    if not isinstance(data, list):
        raise InvalidRequest(f"input {name!r}: data must be a list")
    flat: list[Any]
    if any(isinstance(row, list) for row in data):
        flat = []
        _flatten(name, data, shape, flat)
    else:
        flat = data
    if len(flat) != count_of(shape):
        raise InvalidRequest(f"input {name!r}: shape {list(shape)} needs {count_of(shape)} elements, got {len(flat)}")
    if datatype == "BYTES":
        if not all(isinstance(element, str) for element in flat):
            raise InvalidRequest(f"input {name!r}: BYTES elements must be strings")
        return Tensor(name, datatype, shape, [element.encode() for element in flat])
    if datatype == "BOOL":
        if not all(isinstance(element, bool) for element in flat):
            raise InvalidRequest(f"input {name!r}: BOOL elements must be true or false")
        return Tensor(name, datatype, shape, np.array(flat, dtype=np.bool_))
    if any(isinstance(element, bool) or not isinstance(element, int | float) for element in flat):
        raise InvalidRequest(f"input {name!r}: {datatype} elements must be numbers")
    return Tensor(name, datatype, shape, _numbers(name, datatype, flat))


def _flatten(name: str, data: list[Any], shape: tuple[int, ...], into: list[Any]) -> None:
    if not shape or len(data) != shape[0]:
        raise InvalidRequest(f"input {name!r}: nested data do not have the announced shape")
    for row in data:
        if len(shape) > 1:
            if not isinstance(row, list):
                raise InvalidRequest(f"input {name!r}: nested data are ragged")
            _flatten(name, row, shape[1:], into)
        elif isinstance(row, list):
            raise InvalidRequest(f"input {name!r}: nested data are deeper than the shape")
        else:
            into.append(row)


def _numbers(name: str, datatype: str, flat: list[Any]) -> Any:
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for element in flat:
            if isinstance(element, float) and not element.is_integer():
                raise InvalidRequest(f"input {name!r}: {element!r} is not an integer")
            if not limits.min <= element <= limits.max:
                raise InvalidRequest(f"input {name!r}: {element!r} is out of {datatype}'s range")
        return np.array([int(element) for element in flat], dtype=dtype)
    try:
        wide = np.array(flat, dtype=np.float64)
    except OverflowError:
        raise InvalidRequest(f"input {name!r}: a number is out of {datatype}'s range") from None
    with np.errstate(over="ignore"):
        values = wide.astype(dtype)
    if datatype == "BF16":
        bits = values.view("<u4")
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view("<f4")
    if not np.isfinite(values).all():
        raise InvalidRequest(f"input {name!r}: a number is out of {datatype}'s range")
    return values
