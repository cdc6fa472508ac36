"""HTTP/1.1 from pre-encoded requests over a pool of connections.

A request that finds no free connection waits in a queue on this side, and its wait is part of its latency.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import httptools

from harness.load.recorder import Recorder
from harness.load.recording import CONNECT, PROTOCOL, RESET, TIMEOUT, TRUNCATED, error_of_status
from harness.load.stream import Events
from harness.load.template import Template

IDLE_NS = 3_000_000_000
"""An idle connection is not used again after this long: servers close theirs after 5 s and more."""

LARGE_BYTES = 32 << 10
"""Parts of larger requests are handed to the socket one by one instead of being copied together."""


def encode(target: str, authority: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {target} HTTP/1.1", f"Host: {authority}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.row = -1
        self.idle_since_ns = 0
        self.closed = False
        self._parser: Any = None
        self._mark = pool.recorder.job.mark.lower().encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, row: int) -> None:
        columns = self.pool.recorder.columns
        self.row = row
        self._size = 0
        self._answered = self._framed = False
        stream = self.pool.recorder.stream
        self._events = Events(stream, row) if stream is not None else None
        self._body: list[bytes] | None = [] if self.pool.recorder.keeps(row) else None
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self.pool.owners[row] = self
        number = self.pool.recorder.number(row)
        template = self.pool.choose(number)
        columns.sent_ns[row] = time.monotonic_ns()
        if len(template.before) < LARGE_BYTES:
            self.transport.write(template.fill(number))
        else:
            self.transport.writelines(template.parts(number))

    def data_received(self, data: bytes) -> None:
        if self.row < 0:
            self.transport.abort()  # an answer that nobody asked for
            return
        columns = self.pool.recorder.columns
        if not columns.first_byte_ns[self.row]:
            columns.first_byte_ns[self.row] = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._end(PROTOCOL, reusable=False)

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif self._mark and lowered == self._mark and self.row >= 0:
            recorder = self.pool.recorder
            recorder.marks[recorder.number(self.row)] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._answered = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._events is not None:
            self._events.feed(body)
        if self._body is not None:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self.row >= 0 and self._answered:
            self._end(error_of_status(self._parser.get_status_code()), reusable=self._parser.should_keep_alive())

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.row >= 0:
            if self._answered and not self._framed:
                self._end(error_of_status(self._parser.get_status_code()), reusable=False)
            elif self.pool.recorder.columns.first_byte_ns[self.row]:
                self._end(TRUNCATED, reusable=False)
            else:
                self._end(RESET, reusable=False)
        self.pool.gone(self)

    def give_up(self) -> None:
        """The request's time is over."""
        self._end(TIMEOUT, reusable=False)

    def _end(self, error: int, *, reusable: bool) -> None:
        row, self.row = self.row, -1
        status = self._parser.get_status_code() if self._answered else 0
        self.pool.owners.pop(row, None)
        if reusable and not self.closed:
            self.idle_since_ns = time.monotonic_ns()
            self.pool.idle.append(self)
        elif not self.closed:
            self.transport.abort()
        answer = b"".join(self._body) if self._body is not None else None
        self.pool.recorder.finish(row, error, status, self._size, answer)
        self.pool.next()


class Pool:
    """At most ``limit`` connections to one address."""

    def __init__(
        self,
        recorder: Recorder,
        host: str,
        port: int,
        templates: Sequence[Template],
        limit: int,
        tls: str | None,
        ca: str = "",
    ) -> None:
        """``tls`` is the server name to verify; None speaks plain HTTP. ``ca`` as in the job."""
        self.recorder = recorder
        self._templates = [templates[index] for index in recorder.job.cycle]
        self.owners: dict[int, Connection] = {}
        self.idle: list[Connection] = []
        self.waiting: deque[int] = deque()
        self._address = (host, port)
        self._limit = limit
        self._tls = tls
        self._context = ssl.create_default_context(cadata=ca or None) if tls is not None else None
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closing = False

    def choose(self, number: int) -> Template:
        return self._templates[number % len(self._templates)]

    def submit(self, row: int) -> None:
        connection = self._take()
        if connection is not None:
            connection.send(row)
            return
        self.waiting.append(row)
        self._open_one()

    def _open_one(self) -> None:
        if len(self._opening) < len(self.waiting) and len(self._open) + len(self._opening) < self._limit:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._opening.add(task)

    def _take(self) -> Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.closed:
                continue
            if time.monotonic_ns() - connection.idle_since_ns < IDLE_NS:
                return connection
            connection.transport.abort()
        return None

    def next(self) -> None:
        while self.waiting and (connection := self._take()) is not None:
            row = self.waiting.popleft()
            if self.recorder.columns.is_done(row):
                self.idle.append(connection)  # it timed out in the queue
            else:
                connection.send(row)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self), *self._address, ssl=self._context, server_hostname=self._tls
            )
        except OSError:
            if self.waiting and not self._closing:
                self.recorder.finish(self.waiting.popleft(), CONNECT, 0, 0)
                self._opening.discard(asyncio.current_task())
                self._open_one()
            return
        finally:
            self._opening.discard(asyncio.current_task())
        if self._closing:
            connection.transport.abort()
            return
        self._open.add(connection)
        connection.idle_since_ns = time.monotonic_ns()
        self.idle.append(connection)
        self.next()

    def gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._closing:
            self._open_one()

    def expire(self, row: int) -> None:
        owner = self.owners.get(row)
        if owner is not None:
            owner.give_up()
        else:
            self.recorder.finish(row, TIMEOUT, 0, 0)

    async def close(self) -> None:
        self._closing = True
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._open):
            connection.transport.abort()
