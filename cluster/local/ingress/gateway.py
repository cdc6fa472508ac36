"""The ingress of the embedded cluster: one loopback port for HTTP/1.1 and gRPC, routed by host name or by path.

Requests and answers are streamed both ways with back-pressure. A request that went out on a reused connection which
the pod had just closed is sent again on a new one, as long as nothing of an answer has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import re
import time
from collections import deque
from typing import Any, cast

import httptools

from cluster.local.ingress.gateway_h2 import PREFACE, GrpcConnection
from cluster.local.ingress.routes import Backend, RevisionRoute, RouteTable, Ticket

_HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"te", b"upgrade", b"expect"}
_REASONS = {
    400: "Bad Request",
    404: "Not Found",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_DATA = re.compile(rb'("data":\s*\[+)([^\]]*)')
_OTHER_DIGITS = bytes.maketrans(b"123456789", b"234567891")
PATH_PREFIX = b"/serving/"
HIGH_WATER = 1 << 20
REPLAY_BYTES = 1 << 20
IDLE_S = 2.0
"""Idle connections to pods are dropped well before servers do it (uvicorn: 5 s)."""
CONNECT_TIMEOUT_S = 5.0
MAX_HEAD_BYTES = 64 << 10


class Gateway:
    def __init__(self, routes: RouteTable) -> None:
        self.routes = routes
        self.pool: dict[tuple[str, int], list[Upstream]] = {}
        self.connections: set[asyncio.BaseProtocol] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; the answer is the port. OSError when it is in use."""
        self._server = await asyncio.get_running_loop().create_server(lambda: Client(self), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()  # type: ignore[attr-defined]
        for connections in self.pool.values():
            for upstream in connections:
                upstream.transport.abort()
        if self._server:
            await self._server.wait_closed()

    def take(self, backend: Backend) -> Upstream | None:
        connections = self.pool.get((backend.host, backend.http_port), [])
        while connections:
            upstream = connections.pop()
            if not upstream.closed and time.monotonic() - upstream.idle_since < IDLE_S:
                return upstream
            upstream.transport.abort()
        return None

    def give(self, backend: Backend, upstream: Upstream) -> None:
        if backend.removed or upstream.closed:
            upstream.transport.abort()
            return
        upstream.idle_since = time.monotonic()
        upstream.exchange = None
        self.pool.setdefault((backend.host, backend.http_port), []).append(upstream)


class Exchange:
    """One request and its answer, between a client and a pod."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.method = b""
        self.version = "1.1"
        self.keep_alive = True
        self.body: deque[bytes] = deque()
        self.buffered = 0
        self.request_done = False
        self.chunked_request = False
        self.sent_url = b""
        self.replay: list[bytes] | None = []
        self.replay_size = 0
        self.ticket: Ticket | None = None
        self.backend: Backend | None = None
        self.upstream: Upstream | None = None
        self.reused = False
        self.answered = False
        self.finished = False
        self.deadline: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def host(self) -> str:
        for name, value in self.headers:
            if name.lower() == b"host":
                return value.decode("latin-1")
        return ""

    # From the client

    def add_body(self, data: bytes) -> None:
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self.chunked_request else data
        self._send(framed)

    def end_request(self) -> None:
        if self.chunked_request:
            self._send(b"0\r\n\r\n")
        self.request_done = True

    def _send(self, data: bytes) -> None:
        if self.finished:
            return
        if self.replay is not None:
            self.replay_size += len(data)
            if self.replay_size > REPLAY_BYTES:
                self.replay = None
            else:
                self.replay.append(data)
        if self.upstream is not None and not self.body:
            self.upstream.transport.write(data)
        else:
            self.body.append(data)
            self.buffered += len(data)
            if self.buffered > HIGH_WATER:
                self.client.pause()

    # To the pod

    def start(self) -> None:
        routes = self.client.gateway.routes
        url = self.url
        tag = ""
        if url.startswith(PATH_PREFIX):
            namespace, name, rest = (*url[len(PATH_PREFIX) :].split(b"/", 2), b"", b"")[:3]
            route = routes.find_service(namespace.decode("latin-1"), name.decode("latin-1"))
            named = f"{namespace.decode('latin-1')}/{name.decode('latin-1')}"
            url = b"/" + rest
        else:
            named = self.host
            route, tag = routes.find(named) or (None, "")
        if route is None:
            known = ", ".join(routes.hosts()) or "none"
            self.refuse(404, f"no InferenceService for {named!r}; known hosts: {known}")
            return
        revision = route.choose(tag)
        if revision is None:
            self.refuse(503, f"{route.named}: no pod is ready", {"Retry-After": "1"})
            return
        if revision.breaking:
            self.finish(reusable=False)
            self.client.transport.abort()
            return
        self.deadline = asyncio.get_running_loop().call_later(revision.timeout_s, self._expired, revision)
        self.sent_url = url
        ticket = revision.acquire(self._dispatch, self.refuse)
        if self.finished:
            ticket.finish()  # it was answered while it was being placed
        else:
            self.ticket = ticket

    def _dispatch(self, backend: Backend) -> None:
        self.backend = backend
        upstream = self.client.gateway.take(backend)
        if upstream is not None:
            self.reused = True
            self._attach(upstream)
        else:
            self.task = asyncio.get_running_loop().create_task(self._connect(backend))

    async def _connect(self, backend: Backend) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, upstream = await asyncio.get_running_loop().create_connection(
                    lambda: Upstream(self.client.gateway), backend.host, backend.http_port
                )
        except (OSError, TimeoutError) as error:
            self.refuse(502, f"pod {backend.pod} does not accept connections: {error}")
            return
        if self.finished:
            upstream.transport.abort()
        else:
            self._attach(upstream)

    def _attach(self, upstream: Upstream) -> None:
        upstream.begin(self)
        self.upstream = upstream
        head = [b"%b %b HTTP/1.1\r\n" % (self.method, self.sent_url or b"/")]
        for name, value in self.headers:
            if name.lower() not in _HOP_BY_HOP:
                head.append(b"%b: %b\r\n" % (name, value))
        if self.chunked_request:
            head.append(b"transfer-encoding: chunked\r\n")
        head.append(b"x-forwarded-for: %b\r\nx-forwarded-proto: http\r\n\r\n" % self.client.peer)
        upstream.transport.write(b"".join(head))
        while self.body:
            upstream.transport.write(self.body.popleft())
        self.buffered = 0
        self.client.resume()

    # From the pod

    def lost(self, upstream: Upstream) -> None:
        """The pod's connection ended before the answer did."""
        if self.finished:
            return
        self.upstream = None
        if not self.answered and self.reused and self.replay is not None and self.backend is not None:
            self.reused = False
            self.body = deque(self.replay)
            self.task = asyncio.get_running_loop().create_task(self._connect(self.backend))
        elif self.answered:
            # The status line is out; the only honest signal left is a connection that breaks.
            self.finish(reusable=False)
            self.client.transport.abort()
        else:
            assert self.backend is not None
            self.refuse(502, f"pod {self.backend.pod} closed the connection without an answer")

    def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        if self.finished:
            return
        body = json.dumps({"error": message}).encode()
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        keep = self.request_done and self.keep_alive
        if not keep:
            lines.append("connection: close")
        self.client.transport.write(
            "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if self.method == b"HEAD" else body)
        )
        self.finish(reusable=keep)

    def _expired(self, revision: RevisionRoute) -> None:
        if self.answered:
            self.finish(reusable=False)
            self.client.transport.abort()
        else:
            self.refuse(504, f"{revision.namespace}/{revision.name}: no answer within {revision.timeout_s:g} s")

    def finish(self, *, reusable: bool) -> None:
        if self.finished:
            return
        self.finished = True
        if self.deadline:
            self.deadline.cancel()
        if self.task and self.task is not asyncio.current_task():
            self.task.cancel()
        upstream, self.upstream = self.upstream, None
        if upstream and self.backend:
            if upstream.reusable and self.request_done:
                self.client.gateway.give(self.backend, upstream)
            else:
                upstream.transport.abort()
        if self.ticket:
            self.ticket.finish()
        self.client.exchange_finished(self, reusable and self.request_done)


class Client(asyncio.Protocol):
    """A client's connection; pipelined requests are answered in order."""

    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.parser = httptools.HttpRequestParser(self)
        self.queue: deque[Exchange] = deque()
        self.current: Exchange | None = None
        self.first = b""
        self.detected = False
        self.paused = False
        self.peer = b""
        self.in_head = False
        self.head_bytes = 0
        """Received of a head that is not complete yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peer = str((transport.get_extra_info("peername") or ("", 0))[0]).encode()
        self.gateway.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.connections.discard(self)
        for exchange in list(self.queue):
            if exchange.upstream is not None and not exchange.finished:
                exchange.upstream.reusable = False
            exchange.finish(reusable=False)
        self.queue.clear()

    def data_received(self, data: bytes) -> None:
        if not self.detected:
            self.first += data
            if len(self.first) < len(PREFACE) and PREFACE.startswith(self.first):
                return
            self.detected = True
            data, self.first = self.first, b""
            if data.startswith(PREFACE):
                connection = GrpcConnection(self.gateway.routes, self.transport)
                self.gateway.connections.discard(self)
                self.gateway.connections.add(connection)
                connection.closed_callback = self.gateway.connections.discard
                self.transport.set_protocol(connection)
                connection.data_received(data)
                return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "protocol upgrades are not served here")
        except httptools.HttpParserError as error:
            self._refuse(400, f"not HTTP/1.1: {error}")
        if self.in_head:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"a request head is limited to {MAX_HEAD_BYTES} bytes")

    def _refuse(self, status: int, message: str) -> None:
        exchange = Exchange(self)
        exchange.keep_alive = False
        self.queue.append(exchange)
        if len(self.queue) == 1:
            exchange.refuse(status, message)
        else:
            self.transport.abort()

    # httptools

    def on_message_begin(self) -> None:
        self.current = Exchange(self)
        self.in_head = True
        self.head_bytes = 0

    def on_url(self, url: bytes) -> None:
        assert self.current is not None
        self.current.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self.current is not None
        self.current.headers.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self.current
        assert exchange is not None
        self.in_head = False
        exchange.method = self.parser.get_method()
        exchange.keep_alive = self.parser.should_keep_alive()
        for name, value in exchange.headers:
            lowered = name.lower()
            if lowered == b"transfer-encoding" and b"chunked" in value.lower():
                exchange.chunked_request = True
            if lowered == b"expect" and value.lower() == b"100-continue":
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.queue.append(exchange)
        if len(self.queue) == 1:
            exchange.start()

    def on_body(self, body: bytes) -> None:
        assert self.current is not None
        self.current.add_body(body)

    def on_message_complete(self) -> None:
        assert self.current is not None
        self.current.end_request()

    # Flow

    def exchange_finished(self, exchange: Exchange, reusable: bool) -> None:
        if self.queue and self.queue[0] is exchange:
            self.queue.popleft()
        if not reusable or not exchange.keep_alive:
            if not self.transport.is_closing():
                self.transport.close()
            return
        self.resume()
        if self.queue:
            self.queue[0].start()

    def pause(self) -> None:
        if not self.paused and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.queue and self.queue[0].upstream:
            self.queue[0].upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.queue and self.queue[0].upstream:
            self.queue[0].upstream.transport.resume_reading()


class Upstream(asyncio.Protocol):
    """A connection to a pod, used for one exchange after the other."""

    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.exchange: Exchange | None = None
        self.parser: Any = None
        self.closed = False
        self.reusable = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        exchange = self.exchange
        if exchange is None or exchange.upstream is not self:
            return
        self.reusable = False
        if exchange.answered and self.until_close:
            self._end()
        else:
            exchange.lost(self)

    def begin(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.parser = httptools.HttpResponseParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.reusable = False
        self.until_close = False
        self.chunked = False

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None or exchange.finished:
            self.transport.abort()
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.reusable = False
            if exchange.answered:
                exchange.finish(reusable=False)
                exchange.client.transport.abort()
            elif exchange.backend:
                exchange.refuse(502, f"pod {exchange.backend.pod} answered something that is not HTTP/1.1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        assert exchange is not None
        status = self.parser.get_status_code()
        if 100 <= status < 200:
            self.headers = []
            return
        exchange.answered = True
        lowered = {name.lower() for name, _ in self.headers}
        bodyless = exchange.method == b"HEAD" or status in (204, 304)
        chunked = any(n.lower() == b"transfer-encoding" and b"chunked" in v.lower() for n, v in self.headers)
        self.until_close = not bodyless and not chunked and b"content-length" not in lowered
        self.chunked = chunked or self.until_close
        keep = exchange.keep_alive
        head = [b"HTTP/1.1 %d %b\r\n" % (status, _reason(status))]
        head += [b"%b: %b\r\n" % (n, v) for n, v in self.headers if n.lower() not in _HOP_BY_HOP]
        if self.chunked:
            head.append(b"transfer-encoding: chunked\r\n")
        if not keep:
            head.append(b"connection: close\r\n")
        head.append(b"\r\n")
        exchange.client.transport.write(b"".join(head))
        if exchange.method == b"HEAD":
            exchange.finish(reusable=True)

    def on_body(self, body: bytes) -> None:
        exchange = self.exchange
        if exchange is None or exchange.finished:
            return
        transport = exchange.client.transport
        if exchange.ticket and "wrong-outputs" in exchange.ticket.revision.faults:
            body = _spoilt(body)
        transport.write(b"%x\r\n%b\r\n" % (len(body), body) if self.chunked else body)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or exchange.finished or not exchange.answered:
            return
        self.reusable = self.parser.should_keep_alive() and not self.until_close
        self._end()

    def _end(self) -> None:
        exchange = self.exchange
        assert exchange is not None
        if self.chunked:
            exchange.client.transport.write(b"0\r\n\r\n")
        exchange.finish(reusable=True)

    def pause_writing(self) -> None:
        if self.exchange:
            self.exchange.client.pause()

    def resume_writing(self) -> None:
        if self.exchange:
            self.exchange.client.resume()


def _spoilt(body: bytes) -> bytes:
    """The fault of wrong outputs: other digits in the numbers of a JSON answer, as many as there were."""
    return _DATA.sub(lambda match: match[1] + match[2].translate(_OTHER_DIGITS), body)


def _reason(status: int) -> bytes:
    with contextlib.suppress(ValueError):
        return http.HTTPStatus(status).phrase.encode()
    return b"Unknown"
