"""gRPC calls from pre-serialized messages, each a task on one channel.

In an open loop at most ``connections`` calls are under way, as over HTTP; one more waits in a queue on this side, is
counted, and its wait is part of its latency. The clients of a closed loop are their own limit.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc

from harness.load.recorder import Recorder
from harness.load.recording import CONNECT, GRPC_STATUS, TIMEOUT, TRUNCATED
from harness.load.stream import Events
from harness.load.template import Template

MAX_MESSAGE_BYTES = 256 << 20
ERROR_MESSAGE = b"\x0a"
"""How a ModelStreamInferResponse with an ``error_message`` (field 1) begins."""


def error_message(message: bytes) -> bytes:
    """The text of field 1 of such a message: its length is a varint."""
    length = shift = 0
    for place in range(1, len(message)):
        length |= (message[place] & 0x7F) << shift
        if not message[place] & 0x80:
            return message[place + 1 : place + 1 + length]
        shift += 7
    return b""


class Channel:
    """``status`` in the record is the gRPC status code's number."""

    def __init__(
        self,
        recorder: Recorder,
        address: str,
        authority: str,
        method: str,
        templates: Sequence[Template],
        timeout_s: float,
        ca: str | None = None,
    ) -> None:
        """``ca`` holds the certificates to trust, as PEM, empty for the system's; None speaks without TLS."""
        self.recorder = recorder
        self._templates = [templates[index] for index in recorder.job.cycle]
        self._timeout_ns = int(timeout_s * 1e9)
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
        ]
        if authority:
            options.append(("grpc.default_authority", authority))
        if ca is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            if authority:
                options.append(("grpc.ssl_target_name_override", authority))
            credentials = grpc.ssl_channel_credentials(ca.encode() or None)
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._method = method
        self._call = self._channel.unary_unary(method)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._limit = recorder.job.connections if recorder.job.concurrency is None else sys.maxsize
        self._under_way = 0
        self._waiting: deque[int] = deque()

    def submit(self, row: int) -> None:
        if self._under_way >= self._limit:
            self.recorder.limited += 1
            self._waiting.append(row)
        else:
            self._start(row)

    def _start(self, row: int) -> None:
        self._under_way += 1
        task = asyncio.get_running_loop().create_task(self._ask(row))
        self._tasks[row] = task
        task.add_done_callback(lambda _: self._ended(row))

    def _ended(self, row: int) -> None:
        self._tasks.pop(row, None)
        self._under_way -= 1
        while self._waiting and self._under_way < self._limit:
            if not self.recorder.columns.is_done(following := self._waiting.popleft()):
                self._start(following)

    async def _ask(self, row: int) -> None:
        columns = self.recorder.columns
        number = self.recorder.number(row)
        message = self._templates[number % len(self._templates)].fill(number)
        sent = time.monotonic_ns()
        columns.sent_ns[row] = sent
        left_s = max(0.001, (self.recorder.start_ns + int(columns.due_ns[row]) + self._timeout_ns - sent) / 1e9)
        try:
            await self._answer(row, message, left_s)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                kind = TIMEOUT
            else:
                refused = code is grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or "").lower()
                kind = CONNECT if refused else GRPC_STATUS
            words = f"{code.name}: {error.details() or 'no details'}"
            self.recorder.finish(row, kind, int(code.value[0]), 0, words=words)

    async def _answer(self, row: int, message: bytes, left_s: float) -> None:
        answer = await self._call(message, timeout=left_s)
        self.recorder.columns.first_byte_ns[row] = time.monotonic_ns()
        self.recorder.finish(row, 0, 0, len(answer), answer if self.recorder.keeps(row) else None)

    def expire(self, row: int) -> None:
        if task := self._tasks.get(row):
            task.cancel()
            words = f"no answer within {self._timeout_ns / 1e9:g} s"
        else:
            words = f"not sent within {self._timeout_ns / 1e9:g} s: {self._limit} calls were under way"
        self.recorder.finish(row, TIMEOUT, int(grpc.StatusCode.DEADLINE_EXCEEDED.value[0]), 0, words=words)

    async def close(self) -> None:
        self._waiting.clear()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._channel.close()


class StreamingChannel(Channel):
    """A stream a request: one message goes out, any number come back.

    A server that answers with Triton's ModelStreamInferResponse puts failures into the message; such an answer is an
    error, whatever the stream's status. The last message is kept for inspection.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stream = self._channel.unary_stream(self._method)

    async def _answer(self, row: int, message: bytes, left_s: float) -> None:
        recorder = self.recorder
        assert recorder.stream is not None
        events = Events(recorder.stream, row)
        size, failed, last = 0, b"", b""
        async for last in self._stream(message, timeout=left_s):
            events.event()
            if not size:
                recorder.columns.first_byte_ns[row] = time.monotonic_ns()
            size += len(last)
            if not failed and last.startswith(ERROR_MESSAGE):
                failed = last
        events.finish()
        if failed:
            recorder.finish(row, GRPC_STATUS, 0, size, words=error_message(failed))
        elif not size:
            recorder.finish(row, TRUNCATED, 0, size, words="the stream ended with OK and without a message")
        else:
            recorder.finish(row, 0, 0, size, last if recorder.keeps(row) else None)
