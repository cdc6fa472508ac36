"""gRPC through the gateway: HTTP/2 streams of a client mapped onto HTTP/2 streams to pods.

Bytes are acknowledged to the sender only when they have gone out to the receiver, so that each side's flow control
reaches through to the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import quote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from cluster.local.ingress.routes import Backend, RevisionRoute, RouteTable, Ticket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW = 4 << 20
Headers = list[tuple[str, str]]
_UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE, _DEADLINE = 12, 13, 14, 4


@dataclass(eq=False)
class Side:
    """One HTTP/2 connection of a pair."""

    connection: h2.connection.H2Connection
    transport: asyncio.Transport

    def flush(self) -> None:
        data = self.connection.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)


@dataclass(eq=False)
class Stream:
    """A client's stream and its twin at the pod. Pending: (data, bytes to acknowledge), headers, or None (end)."""

    client_id: int
    revision: RevisionRoute
    backend: Backend | None = None
    ticket: Ticket | None = None
    pod: PodConnection | None = None
    pod_id: int = 0
    to_pod: deque[tuple[bytes, int] | Headers | None] = field(default_factory=deque)
    to_client: deque[tuple[bytes, int] | Headers | None] = field(default_factory=deque)
    answered: bool = False
    done: bool = False
    deadline: asyncio.TimerHandle | None = None


def _configure(connection: h2.connection.H2Connection) -> None:
    connection.local_settings = h2.settings.Settings(
        client=connection.config.client_side,
        initial_values={
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1000,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 64 << 10,
            h2.settings.SettingCodes.ENABLE_PUSH: 0,
        },
    )
    connection.initiate_connection()
    connection.increment_flow_control_window(WINDOW)


def _send(
    side: Side, stream_id: int, pending: deque[tuple[bytes, int] | Headers | None], source: Side | None, source_id: int
) -> None:
    """As much as the receiver's window takes; what is sent is acknowledged to its source."""
    connection = side.connection
    while pending:
        item = pending[0]
        if item is None:
            connection.end_stream(stream_id)
            pending.popleft()
        elif isinstance(item, list):
            ends = len(pending) > 1 and pending[1] is None
            connection.send_headers(stream_id, item, end_stream=ends)
            pending.popleft()
            if ends:
                pending.popleft()
        else:
            data, owed = item
            room = min(connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
            if room <= 0 and data:
                break
            connection.send_data(stream_id, data[:room])
            if len(data) > room:
                pending[0] = (data[room:], owed - room)
                owed = room
            else:
                pending.popleft()
            if source is not None and owed > 0:
                source.connection.acknowledge_received_data(owed, source_id)
    side.flush()
    if source is not None:
        source.flush()


def _acknowledge(side: Side, size: int, stream_id: int) -> None:
    """Gives the sender room for bytes that nobody waits for any more: the window of the connection is everybody's."""
    if size and not side.transport.is_closing():
        side.connection.acknowledge_received_data(size, stream_id)
        side.flush()


def _pod(stream: Stream) -> str:
    return f"pod {stream.backend.pod}" if stream.backend else "the pod"


def _owed(pending: deque[tuple[bytes, int] | Headers | None]) -> int:
    return sum(item[1] for item in pending if isinstance(item, tuple))


class PodConnection(asyncio.Protocol):
    """HTTP/2 to one pod, for the streams of one client connection."""

    def __init__(self, owner: GrpcConnection) -> None:
        self.owner = owner
        self.streams: dict[int, Stream] = {}
        self.closed = False
        self.side: Side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_inbound_headers=False)
        self.side = Side(h2.connection.H2Connection(config), cast(asyncio.Transport, transport))
        _configure(self.side.connection)
        self.side.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        for stream in list(self.streams.values()):
            self.owner.fail(stream, _UNAVAILABLE, f"{_pod(stream)} closed the connection")
        self.streams.clear()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.side.connection.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.side.transport.abort()
            return
        for event in events:
            self._handle(event)
        self.side.flush()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.closed = True  # no new streams; those under way may finish
            return
        if isinstance(event, h2.events.WindowUpdated) and event.stream_id == 0:
            for waiting in list(self.streams.values()):
                self.owner.push_to_pod(waiting)
            return
        stream = self.streams.get(getattr(event, "stream_id", 0) or 0)
        if stream is None:
            if isinstance(event, h2.events.DataReceived):
                _acknowledge(self.side, event.flow_controlled_length or 0, event.stream_id or 0)
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            stream.answered = True
            stream.to_client.append([(str(name), str(value)) for name, value in event.headers or []])
        elif isinstance(event, h2.events.DataReceived):
            stream.to_client.append((event.data or b"", event.flow_controlled_length or 0))
        elif isinstance(event, h2.events.StreamEnded):
            stream.to_client.append(None)
        elif isinstance(event, h2.events.StreamReset):
            self.owner.reset(stream, int(event.error_code or 0))
            return
        elif isinstance(event, h2.events.WindowUpdated):
            self.owner.push_to_pod(stream)
            return
        else:
            return
        if getattr(event, "stream_ended", None) is None:
            # Otherwise the end follows at once and both go out in one frame.
            self.owner.push_to_client(stream)


class GrpcConnection(asyncio.Protocol):
    """A client's HTTP/2 connection."""

    def __init__(self, routes: RouteTable, transport: asyncio.Transport) -> None:
        self.routes = routes
        self.transport = transport
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=False)
        self.side = Side(h2.connection.H2Connection(config), transport)
        _configure(self.side.connection)
        self.side.flush()
        self.streams: dict[int, Stream] = {}
        self.pods: dict[Backend, asyncio.Task[PodConnection]] = {}
        self.closed_callback: Callable[[asyncio.BaseProtocol], None] = lambda connection: None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_callback(self)
        for stream in list(self.streams.values()):
            self._finish(stream)
        for task in self._tasks:
            task.cancel()
        for opening in self.pods.values():
            if not opening.done():
                opening.cancel()
            elif not opening.cancelled() and opening.exception() is None:
                opening.result().side.transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.side.connection.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.side.flush()
            self.transport.close()
            return
        for event in events:
            self._handle(event)
        self.side.flush()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._open(event.stream_id or 0, [(str(n), str(v)) for n, v in event.headers or []])
            return
        if isinstance(event, h2.events.WindowUpdated) and event.stream_id == 0:
            for waiting in list(self.streams.values()):
                self.push_to_client(waiting)
            return
        stream = self.streams.get(getattr(event, "stream_id", 0) or 0)
        if isinstance(event, h2.events.DataReceived):
            if stream is None:
                _acknowledge(self.side, event.flow_controlled_length or 0, event.stream_id or 0)
            else:
                stream.to_pod.append((event.data or b"", event.flow_controlled_length or 0))
                self.push_to_pod(stream)
        elif stream is None:
            return
        elif isinstance(event, h2.events.StreamEnded):
            if stream.to_pod and stream.to_pod[-1] is None:
                return
            stream.to_pod.append(None)
            self.push_to_pod(stream)
        elif isinstance(event, h2.events.StreamReset):
            if stream.pod and not stream.pod.closed:
                self._reset_side(stream.pod.side, stream.pod_id, int(event.error_code or 0))
            self._finish(stream)
        elif isinstance(event, h2.events.WindowUpdated):
            self.push_to_client(stream)

    def _open(self, stream_id: int, headers: Headers) -> None:
        values = dict(headers)
        host = values.get(":authority") or values.get("host", "")
        if not values.get("content-type", "").startswith("application/grpc"):
            body = b"HTTP/2 is served here for gRPC only; use HTTP/1.1\n"
            self.side.connection.send_headers(stream_id, [(":status", "415"), ("content-length", str(len(body)))])
            self.side.connection.send_data(stream_id, body, end_stream=True)
            return
        route, tag = self.routes.find(host) or (None, "")
        if route is None:
            known = ", ".join(self.routes.hosts()) or "none"
            self._refuse(stream_id, _UNIMPLEMENTED, f"no InferenceService for {host!r}; known hosts: {known}")
            return
        revision = route.choose(tag)
        if revision is None:
            self._refuse(stream_id, _UNAVAILABLE, f"{route.named}: no pod is ready")
            return
        if revision.breaking:
            self.transport.abort()
            return
        stream = Stream(stream_id, revision)
        self.streams[stream_id] = stream
        stream.to_pod.append(headers)
        stream.deadline = asyncio.get_running_loop().call_later(
            revision.timeout_s, self.fail, stream, _DEADLINE, f"no answer within {revision.timeout_s:g} s"
        )
        ticket = revision.acquire(partial(self._placed, stream), partial(self._unplaced, stream))
        if stream.done:
            ticket.finish()  # it was answered while it was being placed
        else:
            stream.ticket = ticket

    def _placed(self, stream: Stream, backend: Backend) -> None:
        stream.backend = backend
        if backend.grpc_port is None:
            revision = stream.revision
            self.fail(stream, _UNIMPLEMENTED, f"{revision.namespace}/{revision.name}: its runtime does not serve gRPC")
            return
        task = asyncio.get_running_loop().create_task(self._connect(stream, backend))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _unplaced(self, stream: Stream, status: int, why: str) -> None:
        self.fail(stream, _INTERNAL if status == 500 else _UNAVAILABLE, why)

    async def _connect(self, stream: Stream, backend: Backend) -> None:
        opening = self.pods.get(backend)
        if opening is None or (opening.done() and (opening.exception() is not None or opening.result().closed)):
            opening = asyncio.get_running_loop().create_task(self._dial(backend))
            self.pods[backend] = opening
        try:
            pod = await asyncio.shield(opening)
        except OSError as error:
            self.fail(stream, _UNAVAILABLE, f"pod {backend.pod} does not accept connections: {error}")
            return
        if stream.done:
            return
        if pod.closed:
            self.fail(stream, _UNAVAILABLE, f"pod {backend.pod} is going away")
            return
        stream.pod = pod
        stream.pod_id = pod.side.connection.get_next_available_stream_id()
        pod.streams[stream.pod_id] = stream
        self.push_to_pod(stream)

    async def _dial(self, backend: Backend) -> PodConnection:
        loop = asyncio.get_running_loop()
        _, pod = await loop.create_connection(lambda: PodConnection(self), backend.host, cast(int, backend.grpc_port))
        return pod

    def push_to_pod(self, stream: Stream) -> None:
        if stream.done or stream.pod is None or stream.pod.closed:
            return
        try:
            _send(stream.pod.side, stream.pod_id, stream.to_pod, self.side, stream.client_id)
        except h2.exceptions.ProtocolError as error:
            # After an early answer the pod has closed its end; what the client still sends is of no use to it.
            if not stream.answered:
                self.fail(stream, _UNAVAILABLE, f"{_pod(stream)}: {error}")

    def push_to_client(self, stream: Stream) -> None:
        if stream.done:
            return
        ends = bool(stream.to_client) and stream.to_client[-1] is None
        try:
            _send(self.side, stream.client_id, stream.to_client, stream.pod.side if stream.pod else None, stream.pod_id)
        except h2.exceptions.ProtocolError:
            self._finish(stream)
            return
        if ends and not stream.to_client:
            self._finish(stream)

    def fail(self, stream: Stream, code: int, message: str) -> None:
        if stream.done:
            return
        if stream.answered:
            self.reset(stream, int(h2.errors.ErrorCodes.INTERNAL_ERROR))
            return
        if stream.pod and not stream.pod.closed:
            self._reset_side(stream.pod.side, stream.pod_id, int(h2.errors.ErrorCodes.CANCEL))
        self._finish(stream)
        self._refuse(stream.client_id, code, message)
        self.side.flush()

    def reset(self, stream: Stream, code: int) -> None:
        if not stream.done:
            self._finish(stream)
            self._reset_side(self.side, stream.client_id, code)

    def _reset_side(self, side: Side, stream_id: int, code: int) -> None:
        try:
            side.connection.reset_stream(stream_id, code)
        except h2.exceptions.ProtocolError:
            return
        side.flush()

    def _refuse(self, stream_id: int, code: int, message: str) -> None:
        headers = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", str(code)),
            ("grpc-message", quote(message, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"")),
        ]
        try:
            self.side.connection.send_headers(stream_id, headers, end_stream=True)
        except h2.exceptions.ProtocolError:
            return

    def _finish(self, stream: Stream) -> None:
        if stream.done:
            return
        stream.done = True
        if stream.deadline:
            stream.deadline.cancel()
        self.streams.pop(stream.client_id, None)
        _acknowledge(self.side, _owed(stream.to_pod), stream.client_id)
        if stream.pod:
            stream.pod.streams.pop(stream.pod_id, None)
            if not stream.pod.closed:
                _acknowledge(stream.pod.side, _owed(stream.to_client), stream.pod_id)
        if stream.ticket:
            stream.ticket.finish()
