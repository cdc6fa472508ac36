"""gRPC calls from pre-serialized messages, each a task on one channel."""

from __future__ import annotations

import asyncio
import time
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

    def submit(self, row: int) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(row))
        self._tasks[row] = task
        task.add_done_callback(lambda _: self._tasks.pop(row, None))

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
            self.recorder.finish(row, kind, int(code.value[0]), 0)

    async def _answer(self, row: int, message: bytes, left_s: float) -> None:
        answer = await self._call(message, timeout=left_s)
        self.recorder.columns.first_byte_ns[row] = time.monotonic_ns()
        self.recorder.finish(row, 0, 0, len(answer), answer if self.recorder.keeps(row) else None)

    def expire(self, row: int) -> None:
        if task := self._tasks.get(row):
            task.cancel()
        self.recorder.finish(row, TIMEOUT, int(grpc.StatusCode.DEADLINE_EXCEEDED.value[0]), 0)

    async def close(self) -> None:
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
        size, failed, last = 0, False, b""
        async for last in self._stream(message, timeout=left_s):
            events.event()
            if not size:
                recorder.columns.first_byte_ns[row] = time.monotonic_ns()
            size += len(last)
            failed = failed or last.startswith(ERROR_MESSAGE)
        events.finish()
        if failed or not size:
            recorder.finish(row, GRPC_STATUS if failed else TRUNCATED, 0, size)
        else:
            recorder.finish(row, 0, 0, size, last if recorder.keeps(row) else None)
