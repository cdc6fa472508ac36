"""Open Inference Protocol over HTTP/REST: JSON, and the binary tensor data extension.

Source: inference_rest.md; binary tensor data extension (Triton, extension_binary_data.md).
"""

from __future__ import annotations

import asyncio
import json
import shlex
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from harness.base.errors import ProtocolError, RefusedError, UnreachableError, UsageError
from harness.results.records import Exchange
from harness.target.protocol.patience import Patience
from harness.target.protocol.tensors import InferResult, Tensor, from_json_data, from_raw, to_json_data, to_raw
from harness.target.protocol.transcript import note, shorten

HEADER_LENGTH = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
MAX_ANSWER_BYTES = 256 << 20


def json_input(tensor: Tensor, *, nested: bool = False) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        "data": to_json_data(tensor, nested=nested),
    }


def json_request(
    inputs: Sequence[Tensor], *, request_id: str = "", nested: bool = False, **fields: Any
) -> dict[str, Any]:
    """The request object; ``fields`` are further keys of it (``outputs``, ``parameters``)."""
    request: dict[str, Any] = {"id": request_id} if request_id else {}
    request["inputs"] = [json_input(tensor, nested=nested) for tensor in inputs]
    return {**request, **fields}


def print_bytes(body: bytes) -> str:
    """A shell command that prints exactly these bytes, whatever they are."""
    octal = "".join(f"\\{byte:03o}" for byte in body)
    return f"printf '{octal}'"


def json_body(request: dict[str, Any] | list[Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False).encode()


def binary_request(inputs: Sequence[Tensor], *, request_id: str = "", binary_output: bool = True) -> tuple[bytes, int]:
    """The body with all inputs as binary data, and the length of its JSON part."""
    chunks = [to_raw(tensor) for tensor in inputs]
    request: dict[str, Any] = {"id": request_id} if request_id else {}
    request["inputs"] = [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "datatype": tensor.datatype,
            "parameters": {"binary_data_size": len(chunk)},
        }
        for tensor, chunk in zip(inputs, chunks, strict=True)
    ]
    if binary_output:
        request["parameters"] = {"binary_data_output": True}
    head = json.dumps(request).encode()
    return b"".join([head, *chunks]), len(head)


@dataclass(frozen=True)
class RestAnswer:
    status: int
    headers: httpx.Headers
    content: bytes
    elapsed_s: float

    @property
    def content_type(self) -> str:
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    def json(self) -> Any:
        """Raises ProtocolError when the body is not strict JSON (NaN and infinity are not)."""

        def refuse(name: str) -> None:
            raise ProtocolError(f"the body holds {name}, which is not JSON")

        try:
            return json.loads(self.content, parse_constant=refuse)
        except ValueError as error:
            raise ProtocolError(f"expected a JSON body, got {shorten(self.content)[:200]!r}") from error

    def object(self) -> dict[str, Any]:
        body = self.json()
        if not isinstance(body, dict):
            raise ProtocolError(f"expected a JSON object, got {type(body).__name__}")
        return body


def parse_infer(answer: RestAnswer) -> InferResult:
    """An inference answer, JSON or binary. Raises ProtocolError naming what is not as the protocol has it."""
    if answer.status != 200:
        words = f"expected status 200, got {answer.status}: {shorten(answer.content)[:300]}"
        raise RefusedError(words, answer.status)
    length = answer.headers.get(HEADER_LENGTH)
    tail = b""
    head = answer
    if length is not None:
        if not length.isdigit() or int(length) > len(answer.content):
            raise ProtocolError(f"{HEADER_LENGTH} is {length!r}, the body has {len(answer.content)} bytes")
        tail = answer.content[int(length) :]
        head = RestAnswer(answer.status, answer.headers, answer.content[: int(length)], answer.elapsed_s)
    body = head.object()
    outputs = body.get("outputs")
    if not isinstance(outputs, list):
        raise ProtocolError(f"expected a list 'outputs', got {outputs!r}")
    tensors = []
    for item in outputs:
        tensor, tail = _read_output(item, tail)
        tensors.append(tensor)
    if tail:
        raise ProtocolError(f"{len(tail)} bytes follow the last binary output")
    return InferResult(body.get("model_name", ""), body.get("model_version"), body.get("id"), tuple(tensors))


def _read_output(item: Any, tail: bytes) -> tuple[Tensor, bytes]:
    try:
        name, datatype, shape = item["name"], item["datatype"], tuple(int(size) for size in item["shape"])
        size = (item.get("parameters") or {}).get("binary_data_size")
        if size is not None:
            return from_raw(name, datatype, shape, tail[:size]), tail[size:]
        return from_json_data(name, datatype, shape, item["data"]), tail
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(
            f"expected an output with name, datatype, shape and data, got {shorten(str(item))[:300]}"
        ) from error


class _StaleConnection(httpx.TransportError):
    """A connection from before, which the server had closed: asked again on a new one (RFC 9112, 9.3.1)."""


def _context(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca or None)
    except ssl.SSLError as error:
        raise UsageError(f"expected certificates in PEM: {error}") from error


class RestClient:
    """One server and one model. ``host`` replaces the Host header where the address is an ingress.

    An ``async with`` owns the connections. Each answer is bounded in time (``timeout_s``, whole exchange) and size.
    """

    def __init__(self, base_url: str, model: str, *, host: str = "", timeout_s: float = 15.0, ca: str = "") -> None:
        """``ca`` holds the certificates to trust with https, as PEM; empty trusts the system's. Raises UsageError."""
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.host = host
        self.timeout_s = timeout_s
        self._patience = Patience()
        headers = {"Host": host} if host else {}
        # The name that the certificate is for, where the address is an ingress.
        self._extensions: dict[str, Any] = {"sni_hostname": host} if host and base_url.startswith("https:") else {}
        try:
            # No proxy from the environment: what is measured is this server.
            self._client = httpx.AsyncClient(
                base_url=self.base_url,
                headers=headers,
                timeout=timeout_s,
                trust_env=False,
                verify=_context(ca),
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=2.0),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UnreachableError(f"{base_url!r} is not a URL: {error}") from error

    async def __aenter__(self) -> RestClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    @property
    def model_path(self) -> str:
        return f"/v2/models/{quote(self.model, safe='')}"

    async def request(
        self,
        method: str,
        path: str,
        content: bytes | str | dict[str, Any] | list[Any] | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float | None = None,
        chunks: Sequence[bytes] | None = None,
    ) -> RestAnswer:
        """One exchange, noted in the transcript. Raises UnreachableError when no whole answer came."""
        kind = path.rpartition("/")[2]
        limit = self._patience.limit(kind, timeout_s or self.timeout_s)
        sent_headers = dict(headers or {})
        body: bytes | None = None
        if isinstance(content, dict | list):
            body = json_body(content)
        elif isinstance(content, str):
            body = content.encode()
        else:
            body = content
        if body is not None and not any(name.lower() == "content-type" for name in sent_headers):
            sent_headers["Content-Type"] = "application/json"
        line = self._curl(method, path, body if chunks is None else b"".join(chunks), sent_headers)
        shown = shorten(body if body is not None else b"".join(chunks or []))
        start = time.monotonic()
        try:
            async with asyncio.timeout(limit):
                try:
                    answer = await self._exchange(method, path, body, chunks, sent_headers, limit)
                except _StaleConnection:
                    answer = await self._exchange(method, path, body, chunks, sent_headers, limit)
        except (httpx.HTTPError, TimeoutError, ProtocolError) as error:
            why = (
                f"no answer within {limit:g} s"
                if isinstance(error, TimeoutError)
                else f"{type(error).__name__}: {error}"
            )
            if isinstance(error, TimeoutError | httpx.TimeoutException):
                self._patience.unanswered(kind)
            note(Exchange(line, shown, "no answer", why))
            raise UnreachableError(f"{method} {self.base_url}{path}: {why}") from error
        self._patience.answered(kind)
        answer = RestAnswer(answer.status, answer.headers, answer.content, time.monotonic() - start)
        kind = answer.headers.get("content-type", "no content type")
        note(Exchange(line, shown, f"{answer.status} ({kind})", shorten(answer.content)))
        return answer

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        chunks: Sequence[bytes] | None,
        headers: dict[str, str],
        limit: float,
    ) -> RestAnswer:
        async def pieces() -> Any:
            for chunk in chunks or []:
                yield chunk

        fresh = answered = False

        async def watch(event: str, _: Any) -> None:
            nonlocal fresh
            fresh = fresh or event == "connection.connect_tcp.started"

        try:
            async with self._client.stream(
                method,
                path,
                content=body if chunks is None else pieces(),
                headers=headers,
                timeout=limit,
                extensions={"trace": watch, **self._extensions},
            ) as response:
                answered = True
                received = bytearray()
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if len(received) > MAX_ANSWER_BYTES:
                        raise ProtocolError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
                return RestAnswer(response.status_code, response.headers, bytes(received), 0.0)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            if fresh or answered:
                raise
            raise _StaleConnection(str(error)) from error

    async def first_bytes(self, method: str, path: str, content: dict[str, Any]) -> bytes:
        """What comes first of an answer; the connection is cut then. Raises UnreachableError, or ProtocolError when the
        answer ends without a byte or is not 200."""
        body = json_body(content)
        line = self._curl(method, path, body, {"Content-Type": "application/json"})
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self._client.stream(
                    method,
                    path,
                    content=body,
                    headers={"Content-Type": "application/json", "Connection": "close"},
                    extensions=self._extensions,
                ) as response,
            ):
                if response.status_code != 200:
                    raise ProtocolError(f"expected status 200, got {response.status_code}")
                async for chunk in response.aiter_bytes():
                    note(Exchange(line, shorten(body), "200, left after the first bytes", shorten(chunk)))
                    return chunk
        except (httpx.HTTPError, TimeoutError) as error:
            raise UnreachableError(f"{method} {self.base_url}{path}: {type(error).__name__}: {error}") from error
        raise ProtocolError("the answer ended without a byte")

    def _curl(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> str:
        parts = ["curl", "-sS", "-i", "-X", method]
        if self.host:
            parts += ["-H", f"Host: {self.host}"]
        for name, value in headers.items():
            parts += ["-H", f"{name}: {value}"]
        before = ""
        if body is not None:
            try:
                text = body.decode() if b"\0" not in body else ""
            except UnicodeDecodeError:
                text = ""
            if len(body) > 4000:
                text = "@request.json" if text else "@request.bin"
            elif not text and body:
                before, text = f"{print_bytes(body)} | ", "@-"
            parts += ["--data-binary", text]
        return before + shlex.join([*parts, f"{self.base_url}{path}"])

    async def get(self, path: str) -> RestAnswer:
        return await self.request("GET", path)

    async def infer_raw(self, content: Any, headers: dict[str, str] | None = None, **options: Any) -> RestAnswer:
        return await self.request("POST", f"{self.model_path}/infer", content, headers, **options)

    async def infer(self, inputs: Sequence[Tensor], *, request_id: str = "", **fields: Any) -> InferResult:
        """Raises ProtocolError or UnreachableError."""
        return parse_infer(await self.infer_raw(json_request(inputs, request_id=request_id, **fields)))

    async def infer_binary_raw(
        self, inputs: Sequence[Tensor], *, request_id: str = "", binary_output: bool = True
    ) -> RestAnswer:
        """All inputs as binary data."""
        body, length = binary_request(inputs, request_id=request_id, binary_output=binary_output)
        return await self.infer_raw(body, {HEADER_LENGTH: str(length), "Content-Type": OCTETS})

    async def infer_binary(self, inputs: Sequence[Tensor], *, request_id: str = "") -> InferResult:
        return parse_infer(await self.infer_binary_raw(inputs, request_id=request_id))
