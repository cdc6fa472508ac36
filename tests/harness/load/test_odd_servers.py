"""Servers that are not at their best: what is kept of their errors, what is sent again, and whose limit it is."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from harness.load.arrivals import due_times, steady
from harness.load.grpc_calls import error_message
from harness.load.http1 import Pool, encode
from harness.load.job import Job, Request
from harness.load.recorder import Recorder
from harness.load.recording import (
    ERRORS,
    GRPC_STATUS,
    HTTP_5XX,
    PROTOCOL,
    REDIRECT,
    RESET,
    TIMEOUT,
    TRUNCATED,
    Columns,
    Example,
)
from harness.load.recording import first_examples as first
from harness.load.runner import StageResult, run_stage, shares
from harness.load.template import Template
from harness.target.protocol.messages import MESSAGES, SERVICE
from tests.harness.load.test_worker import OK, errors, job_for, keep_alive, stage
from tests.helpers import free_port, grpc_server, scripted_server


def error(status: str, body: bytes = b"", head: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def only(result: StageResult) -> tuple[tuple[int, int], Example]:
    assert len(result.examples) == 1, result.examples
    return next(iter(result.examples.items()))


def test_of_an_error_status_the_first_body_is_kept() -> None:
    count = 0

    def serve(connection: socket.socket, data: bytes) -> None:
        nonlocal count
        while data:
            count += 1
            connection.sendall(error("503 No", b"answer %d: upstream connect error" % count))
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        kind, seen = only(stage(port, rate_per_s=50.0, arrivals="constant", connections=1))
    assert kind == (HTTP_5XX, 503)
    assert seen.detail == "answer 1: upstream connect error"
    assert 0 < seen.at_s < 0.5


def test_of_each_status_an_example_is_kept() -> None:
    answers = iter([*[error("500 No", b"first")] * 3, *[error("503 No", b"other")] * 100])

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            connection.sendall(next(answers))
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        result = stage(port, connections=1)
    assert {kind: seen.detail for kind, seen in result.examples.items()} == {
        (HTTP_5XX, 500): "first",
        (HTTP_5XX, 503): "other",
    }


def test_what_a_server_says_is_cut_and_made_visible() -> None:
    body = b"\x1b[2J\x07evil\r\n\xff\xe2\x80\xae" + b"x" * 100_000
    with scripted_server(keep_alive(error("500 No", body))) as port:
        _, seen = only(stage(port))
    assert seen.detail.startswith("\\x1b[2J\\x07evil\\r\\n\\xff\\u202exxx")
    assert len(seen.detail) < 600
    assert seen.detail.isprintable()


def test_of_a_redirect_it_is_kept_where_it_leads() -> None:
    answer = error("302 Found", b"<a>Found</a>", "Location: https://login.example/?to=x\r\n")
    with scripted_server(keep_alive(answer)) as port:
        kind, seen = only(stage(port))
    assert kind == (REDIRECT, 302)
    assert (seen.location, seen.detail) == ("https://login.example/?to=x", "<a>Found</a>")


@pytest.mark.parametrize("then", [None, error("500 No", b"broken")], ids=["silence", "500"])
def test_where_something_was_made_is_no_part_of_an_error(then: bytes | None) -> None:
    """A 201 says where what it made is; the failure that follows on the same connection leads nowhere."""
    answers = iter([error("201 Created", b"", "Location: /made/1\r\n")])

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            if (answer := next(answers, then)) is not None:
                connection.sendall(answer)
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        kind, seen = only(stage(port, connections=1, rate_per_s=20.0, timeout_s=0.3))
    assert kind == ((TIMEOUT, 0) if then is None else (HTTP_5XX, 500))
    assert seen.location == ""


def closes(after: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, data: connection.sendall(after) if after else None


@pytest.mark.parametrize(
    ("serve", "kind", "words"),
    [
        (keep_alive(b"SSH-2.0-OpenSSH\r\n"), PROTOCOL, "it sent: SSH-2.0-OpenSSH\\r\\n"),
        (closes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), TRUNCATED, "after 4 bytes of the body"),
        (closes(b"HTTP/1.1 200 OK\r\nConte"), TRUNCATED, "within the head"),
        (closes(b""), RESET, "before a byte of the answer"),
        (lambda connection, data: connection.recv(1) and None, TIMEOUT, "no answer within 0.3 s"),
    ],
)
def test_an_error_without_a_status_says_what_happened(serve: Any, kind: int, words: str) -> None:
    with scripted_server(serve) as port:
        (seen_kind, _), seen = only(stage(port, rate_per_s=20.0, timeout_s=0.3))
    assert ERRORS[seen_kind] == ERRORS[kind]
    assert words in seen.detail


def test_a_refused_connection_says_so() -> None:
    (kind, status), seen = only(stage(free_port()))
    assert (ERRORS[kind], status) == ("connect", 0)
    assert "refused" in seen.detail


def test_of_several_generators_the_earliest_example_wins() -> None:
    late, early = Example(2.0, "late"), Example(1.0, "early")
    assert first([{(5, 500): late}, {(5, 500): early, (5, 503): late}]) == {(5, 500): early, (5, 503): late}


async def grpc_stage(address: str, **fields: Any) -> StageResult:
    host, _, port = address.rpartition(":")
    job = Job("grpc", host, int(port), "", (Request(f"/{SERVICE}/ServerLive", {}, "body"),), timeout_s=5.0, **fields)
    due = None if job.concurrency else due_times("constant", steady(50, 1), seed=1)
    return await run_stage(job, [b""], due, lambda progress: None)


async def test_of_a_grpc_status_its_name_and_details_are_kept() -> None:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is\nfull")

    async with grpc_server("ServerLive", refuse) as address:
        kind, seen = only(await grpc_stage(address))
    assert kind == (GRPC_STATUS, 8)
    assert seen.detail == "RESOURCE_EXHAUSTED: queue is\\nfull"


def test_error_message_of_a_streamed_answer() -> None:
    assert error_message(b"\x0a\x05wrong") == b"wrong"
    text = b"w" * 300
    assert error_message(b"\x0a\xac\x02" + text + b"\x12\x00") == text


# The limit


def test_the_limit_of_connections_is_counted_where_it_is_reached() -> None:
    """Four connections at 0.2 s do 20 of the 50 requests that are due in a second: the others wait for one of them."""
    with scripted_server(keep_alive(delay_s=0.2)) as port:
        result = stage(port, rate_per_s=50.0, arrivals="constant", connections=4, timeout_s=10.0)
    assert 30 <= result.limited <= 46
    assert errors(result) == {"": 50}


def test_requests_that_wait_for_a_connection_to_open_are_not_limited() -> None:
    with scripted_server(keep_alive(delay_s=0.2)) as port:
        result = stage(port, rate_per_s=50.0, arrivals="constant", connections=50, timeout_s=10.0)
    assert result.limited == 0


def test_a_server_that_accepts_nobody_is_not_the_generators_limit() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        result = stage(listener.getsockname()[1], rate_per_s=50.0, connections=16, timeout_s=0.5)
    assert set(errors(result)) == {"timeout"}
    # One or two connections fit into the backlog and wait for an answer; all others are being opened.
    assert result.limited == 0


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_closed_loop_has_no_limit_but_its_clients(concurrency: int) -> None:
    closing = OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n", 1)
    for answer in (OK, closing):
        with scripted_server(keep_alive(answer)) as port:
            result = stage(port, duration_s=0.5, concurrency=concurrency, connections=1)
        assert result.limited == 0
        assert set(errors(result)) == {""}


@pytest.mark.parametrize(("connections", "expected"), [(256, [86, 85, 85]), (3, [1, 1, 1]), (1, [1, 1, 1])])
def test_the_limit_is_the_stages_and_its_generators_share_it(connections: int, expected: list[int]) -> None:
    due = due_times("constant", steady(100, 1), seed=1)
    parts = shares(job_for(1, connections=connections), due, 3)
    assert [job.connections for job, _ in parts] == expected
    assert [job.connections for job, _ in shares(job_for(1, connections=8), due[:2], 3)] == [4, 4]


def test_processes_open_no_more_connections_than_the_stage_may() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def serve(connection: socket.socket, data: bytes) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        keep_alive(delay_s=0.1)(connection, data)
        with lock:
            at_once -= 1

    with scripted_server(serve) as port:
        result = stage(port, rate_per_s=100.0, processes=2, connections=6, timeout_s=10.0)
    assert most == 6
    assert result.limited > 20


async def test_calls_under_way_over_grpc_are_limited_too() -> None:
    at_once = most = 0

    async def live(request: Any, context: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.2)
        at_once -= 1
        return MESSAGES["ServerLiveResponse"](live=True)

    async with grpc_server("ServerLive", live) as address:
        result = await grpc_stage(address, connections=4)
        assert most == 4
        assert 30 <= result.limited <= 46
        assert errors(result) == {"": 50}
        most = 0
        closed = await grpc_stage(address, connections=1, concurrency=6, duration_s=1.0)
    assert most == 6
    assert closed.limited == 0


# Connections that end


@pytest.mark.parametrize("split", [False, True])
def test_connections_are_used_again(split: bool) -> None:
    """Also where the end of an answer comes in a packet of its own."""
    opened = 0

    def serve(connection: socket.socket, data: bytes) -> None:
        nonlocal opened
        opened += 1
        while data:
            connection.sendall(OK[:-1])
            time.sleep(0.005 * split)
            connection.sendall(OK[-1:])
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        assert errors(stage(port, rate_per_s=20.0, arrivals="constant")) == {"": 20}
    assert opened <= 2


async def test_a_request_that_met_a_connection_closed_before_it_came_is_sent_again_and_counted() -> None:
    """The FIN lies in the socket when the second request is sent: the loop has had no turn to see it."""
    requests: list[bytes] = []
    connections: list[socket.socket] = []

    def serve(connection: socket.socket, data: bytes) -> None:
        requests.append(data)
        connections.append(connection.dup())
        connection.sendall(OK)
        closing.wait(10)

    closing = threading.Event()
    with scripted_server(serve) as port:
        job = job_for(port, connections=1, timeout_s=5.0)
        recorder = Recorder(Columns(2, np.zeros(2, np.int64)), job)
        recorder.start_ns = time.monotonic_ns()
        pool = Pool(recorder, "127.0.0.1", port, [Template(encode("/x", "h", {}, b"hello"), None)], 1, None)
        pool.submit(0)
        while not recorder.done:
            await asyncio.sleep(0.01)
        for connection in connections:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        closing.set()
        time.sleep(0.1)  # noqa: ASYNC251 - the loop must not see it
        pool.submit(1)
        while recorder.done < 2:
            await asyncio.sleep(0.01)
        await pool.close()
    assert recorder.columns.error.tolist() == [0, 0], recorder.examples
    assert recorder.resent == 1
    assert recorder.limited == 0
    assert len(requests) == 2, "what was sent on the closed connection reached nobody"


def test_nothing_is_sent_again_that_a_server_may_have_read() -> None:
    """It reads the second request of a connection and closes without a word: that is an error of the server's."""
    received = []

    def serve(connection: socket.socket, data: bytes) -> None:
        received.append(data)
        connection.sendall(OK)
        received.append(connection.recv(65536))

    with scripted_server(serve) as port:
        result = stage(port, rate_per_s=20.0, arrivals="constant", connections=1)
    assert errors(result) == {"": 10, "reset": 10}
    assert result.resent == 0
    assert len([data for data in received if data]) == 20


def test_a_process_that_dies_with_requests_unread_is_an_error() -> None:
    """What lies unread in the socket of a server that goes away is answered with a reset."""

    def serve(connection: socket.socket, data: bytes) -> None:
        connection.sendall(OK)
        time.sleep(0.2)

    with scripted_server(serve) as port:
        result = stage(port, rate_per_s=10.0, arrivals="constant", connections=1)
    assert errors(result)["reset"] >= 3
    assert result.resent == 0


def test_a_second_answer_to_one_request_is_nobodys() -> None:
    with scripted_server(keep_alive(OK + OK.replace(b"ok", b"no"))) as port:
        result = stage(port, rate_per_s=20.0, check_every=1, connections=1)
    assert errors(result) == {"": 20}
    assert set(result.answers.values()) == {b"ok"}


def test_refusals_at_once_do_not_stop_a_closed_loop() -> None:
    with scripted_server(keep_alive(error("503 Busy", b"later", "Retry-After: 9\r\n"))) as port:
        result = stage(port, duration_s=0.5, concurrency=3)
    assert set(errors(result)) == {"http_5xx"}
    assert result.columns["row"].size > 100
    assert only(result)[1].detail == "later"
