"""HTTP/1.1 from pre-encoded requests over a pool of connections.

A request that finds no free connection waits in a queue on this side, and its wait is part of its latency. Where it
waits because the pool has as many connections as it may, it is counted: that limit is the generator's.

What is done with servers that are not at their best: an error status is an error, and what its body says is kept of the
first; ``Retry-After`` is not obeyed (a closed loop asks again at once, an open loop when the next request is due);
``Connection: close`` opens a new connection for the next request, whose time is part of its latency. A request goes
out twice in one case alone: it was sent on a connection from before, and the server had closed that before the request
reached it, so that nobody ever read it (RFC 9112, 9.3.1). TCP tells: the server's FIN does not acknowledge the request.
It is sent once more, on a new connection, and counted. A connection that ends in any other way while a request is on it
is an error, whether or not the server did any work.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import httptools

from harness.base.shown import SAID_BYTES
from harness.load.recorder import Recorder
from harness.load.recording import CONNECT, PROTOCOL, RESET, TIMEOUT, TRUNCATED, error_of_status
from harness.load.stream import Events
from harness.load.template import Template

IDLE_NS = 3_000_000_000
"""An idle connection is not used again after this long: servers close theirs after 5 s and more."""

LARGE_BYTES = 32 << 10
"""Parts of larger requests are handed to the socket one by one instead of being copied together."""
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8
TCP_INFO_BYTES, UNACKED = 32, 24
"""Of Linux's struct tcp_info: the state is its first byte, the segments that nobody acknowledged a number at 24."""


def encode(target: str, authority: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {target} HTTP/1.1", f"Host: {authority}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def never_received(transport: asyncio.BaseTransport) -> bool:
    """Whether the server had closed the connection before what was sent last reached it; asked when its FIN came.

    The FIN acknowledges all that had come until then. What it does not acknowledge is open still, or the server has
    answered it with a reset, as one does for a connection that is no more. Where the system cannot tell, it is False.
    """
    connection = transport.get_extra_info("socket")
    if sys.platform != "linux" or connection is None:
        return False
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return False
    state, unacked = int(info[0]), int(struct.unpack_from("I", info, UNACKED)[0])
    return state == TCP_CLOSE or (state == TCP_CLOSE_WAIT and unacked > 0)


class Connection(asyncio.Protocol):
    transport: asyncio.Transport
    _words: list[bytes] | None = None
    """The body of the first answer of its kind of error, as far as it is kept."""
    _location = b""
    _answered = False
    _size = 0

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
        self._answered = self._framed = self._complete = False
        stream = self.pool.recorder.stream
        self._events = Events(stream, row) if stream is not None else None
        self._body: list[bytes] | None = [] if self.pool.recorder.keeps(row) else None
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
            self._first_row = row
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
            self.close()  # an answer that nobody asked for
            return
        columns = self.pool.recorder.columns
        if not columns.first_byte_ns[self.row]:
            columns.first_byte_ns[self.row] = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._complete:  # the answer is whole, and what follows is none that anybody asked for
                self._end(error_of_status(self._status), reusable=False)
            else:
                self._end(PROTOCOL, reusable=False, words=b"%b; it sent: %b" % (str(error).encode(), data[:SAID_BYTES]))
            return
        if self._complete:
            self._end(error_of_status(self._status), reusable=self._kept_alive)

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif self._mark and lowered == self._mark and self.row >= 0:
            recorder = self.pool.recorder
            recorder.marks[recorder.number(self.row)] = value.decode("latin-1")
        elif lowered == b"location" and self._parser.get_status_code() >= 300:
            self._location = value  # of a 201 it is what was made, and nothing of an error

    def on_headers_complete(self) -> None:
        if self._complete:
            raise ValueError("a second answer to one request")
        self._status = status = self._parser.get_status_code()
        self._answered = status >= 200
        if status >= 300 and (error_of_status(status), status) not in self.pool.recorder.examples:
            self._words = []

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._events is not None:
            self._events.feed(body)
        if self._body is not None:
            self._body.append(body)
        if self._words is not None and self._size - len(body) < SAID_BYTES:
            self._words.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._answered
        self._kept_alive = self._parser.should_keep_alive()  # the parser knows it here, and not after

    def eof_received(self) -> None:
        row = self.row
        if row < 0 or row == self._first_row or self.pool.recorder.columns.first_byte_ns[row]:
            return
        if row not in self.pool.resent and never_received(self.transport):
            self.row = -1
            self.pool.owners.pop(row, None)
            self.pool.again(row)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.row >= 0:
            why = f": {exc}" if exc is not None else ""
            if self._answered and not self._framed:
                self._end(error_of_status(self._status), reusable=False)
            elif self.pool.recorder.columns.first_byte_ns[self.row]:
                came = f"after {self._size} bytes of the body" if self._answered else "within the head"
                self._end(TRUNCATED, reusable=False, words=f"the connection ended {came} of the answer{why}")
            else:
                self._end(RESET, reusable=False, words=f"the connection ended before a byte of the answer{why}")
        self.pool.gone(self)

    def give_up(self) -> None:
        """The request's time is over."""
        limit = f"within {self.pool.recorder.job.timeout_s:g} s"
        if self._answered:
            words = f"the answer was not whole {limit}; {self._size} bytes of its body had come"
        else:
            words = f"no answer {limit}"
        self._end(TIMEOUT, reusable=False, words=words)

    def close(self) -> None:
        """Takes no place in the pool from here on, and no request."""
        self.closed = True
        self.pool.leave(self)
        self.transport.abort()

    def _end(self, error: int, *, reusable: bool, words: str | bytes = "") -> None:
        row, self.row = self.row, -1
        status = self._status if self._answered else 0
        self.pool.owners.pop(row, None)
        if reusable and not self.closed:
            self.idle_since_ns = time.monotonic_ns()
            self.pool.idle.append(self)
        elif not self.closed:
            self.close()
        answer = b"".join(self._body) if self._body is not None else None
        if error:
            words = words or b"".join(self._words or ())
            self.pool.recorder.finish(row, error, status, self._size, None, words, self._location)
            self._words, self._location = None, b""
        else:
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
        self.resent: set[int] = set()
        """Rows that went out twice."""
        self._last_limited = -1
        """The last row that is counted as one that waited because of the limit."""

    def choose(self, number: int) -> Template:
        return self._templates[number % len(self._templates)]

    def submit(self, row: int) -> None:
        connection = self._take()
        if connection is not None:
            connection.send(row)
            return
        self.waiting.append(row)
        self._open_one()
        if not self._opening:
            self._count_limited()

    def _count_limited(self) -> None:
        """Rows that wait while no connection is being opened wait for one that is busy: there may be no more."""
        rows = self.waiting
        if len(self._open) < self._limit or not rows or rows[-1] <= self._last_limited:
            return
        for row in reversed(rows):
            if row <= self._last_limited:
                break
            self.recorder.limited += not self.recorder.columns.is_done(row)
        self._last_limited = rows[-1]

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
            connection.close()
        return None

    def next(self) -> None:
        while self.waiting and (connection := self._take()) is not None:
            row = self.waiting.popleft()
            if self.recorder.columns.is_done(row):
                self.idle.append(connection)  # it timed out in the queue
            else:
                connection.send(row)

    def again(self, row: int) -> None:
        """Sends a row once more that no server has read, on a connection of its own."""
        self.resent.add(row)
        self.recorder.resent += 1
        self._opening.add(asyncio.get_running_loop().create_task(self._connect(row)))

    async def _connect(self, row: int | None = None) -> None:
        """Opens a connection: for ``row``, or for whoever waits."""
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self), *self._address, ssl=self._context, server_hostname=self._tls
            )
        except OSError as error:
            self._opening.discard(asyncio.current_task())
            if self._closing:
                return
            if row is None and self.waiting:
                row = self.waiting.popleft()
            if row is not None:
                self.recorder.finish(row, CONNECT, 0, 0, words=str(error))
                self._open_one()
            return
        finally:
            self._opening.discard(asyncio.current_task())
        if self._closing:
            connection.transport.abort()
            return
        self._open.add(connection)
        if row is not None and not self.recorder.columns.is_done(row):
            connection.send(row)
            return
        connection.idle_since_ns = time.monotonic_ns()
        self.idle.append(connection)
        self.next()
        if not self._opening:
            self._count_limited()

    def leave(self, connection: Connection) -> None:
        """It closes, and takes no place in the pool any more."""
        self._open.discard(connection)

    def gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._closing:
            self._open_one()

    def expire(self, row: int) -> None:
        owner = self.owners.get(row)
        if owner is not None:
            owner.give_up()
        else:
            limit_s = self.recorder.job.timeout_s
            self.recorder.finish(row, TIMEOUT, 0, 0, words=f"no connection was free or opened within {limit_s:g} s")

    async def close(self) -> None:
        self._closing = True
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._open):
            connection.transport.abort()
