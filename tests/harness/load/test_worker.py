"""The load generator against real sockets: what it sends, when, and what it says of servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import trustme
import uvloop

from harness.base.columns import WHOLE_PAGES_ROWS
from harness.load.arrivals import due_times, steady
from harness.load.job import ID_PLACEHOLDER, Job, Request
from harness.load.recording import COLUMNS, ERRORS, TIMES
from harness.load.runner import Control, Progress, StageResult, WorkerError, run_stage, write_task
from tests.helpers import free_port, processes_mentioning, scripted_server, wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def job_for(port: int, **fields: Any) -> Job:
    return Job("rest", "127.0.0.1", port, f"localhost:{port}", (Request("/x", {"A": "b"}, "body"),), **fields)


def stage(
    port: int,
    rate_per_s: float = 50.0,
    duration_s: float = 1.0,
    arrivals: str = "poisson",
    processes: int = 1,
    body: bytes = b"hello",
    **fields: Any,
) -> StageResult:
    due = None
    if "concurrency" in fields:
        fields["duration_s"] = duration_s
    else:
        due = due_times(arrivals, steady(rate_per_s, duration_s), seed=1)
    job = job_for(port, **{"timeout_s": 2.0, **fields})
    return asyncio.run(run_stage(job, [body], due, lambda progress: None, processes))


def errors(result: StageResult) -> dict[str, int]:
    return {ERRORS[kind]: count for kind, count in Counter(result.columns["error"].tolist()).items()}


def keep_alive(answer: bytes = OK, delay_s: float = 0.0) -> Any:
    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            if delay_s:
                time.sleep(delay_s)
            connection.sendall(answer)
            data = connection.recv(65536)

    return serve


class _AtOnce(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(OK * data.count(b"POST "))


@contextlib.contextmanager
def answering_at_once() -> Iterator[int]:
    """A server that is faster than one thread a connection."""
    loop = uvloop.new_event_loop()
    server = loop.run_until_complete(loop.create_server(_AtOnce, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def test_open_loop_sends_what_was_planned_when_it_was_due() -> None:
    with scripted_server(keep_alive()) as port:
        result = stage(port, rate_per_s=200.0, duration_s=2.5, arrivals="constant")
    columns = result.columns
    assert columns["due_ns"].size == 500
    assert np.all(np.diff(columns["due_ns"]) == 5_000_000)
    assert errors(result) == {"": 500}
    assert np.all(columns["due_ns"] <= columns["dispatched_ns"])
    assert np.all(columns["dispatched_ns"] <= columns["sent_ns"])
    assert np.all(columns["sent_ns"] <= columns["first_byte_ns"])
    assert np.all(columns["first_byte_ns"] <= columns["done_ns"])
    assert set(columns["status"].tolist()) == {200}
    assert 0 < result.cpu < 1.5


def test_requests_reach_the_server_byte_for_byte() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket, data: bytes) -> None:
        seen.append(data)
        keep_alive()(connection, data)

    with scripted_server(serve) as port:
        stage(port, rate_per_s=5.0)
    assert seen[0] == b"POST /x HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: 5\r\nA: b\r\n\r\nhello" % port


def test_closed_loop_keeps_its_clients_busy() -> None:
    with scripted_server(keep_alive(delay_s=0.02)) as port:
        result = stage(port, concurrency=4, duration_s=1.0)
    assert set(errors(result)) == {""}
    # Four clients at 20 ms a turn can do 200 in a second; half of that shows that they did not wait for each other.
    assert 100 <= result.columns["done_ns"].size <= 204


def test_stalled_server_cannot_hide_its_stall() -> None:
    """The server stands still for half a second: whoever was due meanwhile waited for the rest of it.

    At 100/s and 1 connection, the 50 requests due in the stall wait 0.25 s on average. A closed loop would see one.
    """
    stalled = threading.Event()

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            if not stalled.is_set() and time.monotonic() - started > 1.0:
                stalled.set()
                time.sleep(0.5)
            for _ in range(data.count(b"POST")):
                connection.sendall(OK)
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        started = time.monotonic()
        result = stage(port, rate_per_s=100.0, duration_s=2.0, arrivals="constant", connections=1)
    latency = (result.columns["done_ns"] - result.columns["due_ns"]) / 1e9
    waited = latency[latency > 0.1]
    assert set(errors(result)) == {""}
    assert 35 <= waited.size <= 46, "those due in the first 400 ms of the stall waited for more than 100 ms"
    assert latency.max() == pytest.approx(0.5, abs=0.1)
    lag = (result.columns["dispatched_ns"] - result.columns["due_ns"]) / 1e9
    assert np.median(lag) < 0.01, "the wait is the server's, not the generator's"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "http_4xx"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "http_5xx"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "redirect"),
        (b"HTTP/1.1 600 What\r\nContent-Length: 0\r\n\r\n", "http_other"),
        (b"this is not HTTP at all\r\n\r\n", "protocol"),
    ],
)
def test_each_kind_of_wrong_answer_has_its_class(answer: bytes, kind: str) -> None:
    with scripted_server(keep_alive(answer)) as port:
        result = stage(port)
    assert errors(result) == {kind: 50}


def test_truncated_and_reset_connections_are_told_apart() -> None:
    def half(connection: socket.socket, data: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with scripted_server(half) as port:
        assert errors(stage(port)) == {"truncated": 50}
    with scripted_server(lambda connection, data: None) as port:
        assert errors(stage(port)) == {"reset": 50}


def test_chunked_and_closing_answers_are_whole() -> None:
    def serve(connection: socket.socket, data: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        if connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")

    with scripted_server(serve) as port:
        result = stage(port, connections=1, check_every=1)
    assert errors(result) == {"": 50}
    assert set(result.answers.values()) == {b"ok", b"until the end"}


def test_dead_address_is_a_connect_error_and_ends_in_time() -> None:
    started = time.monotonic()
    assert errors(stage(free_port())) == {"connect": 50}
    assert time.monotonic() - started < 10


def test_silent_server_times_out_every_request_and_the_errors_stay_in_the_sample() -> None:
    release = threading.Event()
    with scripted_server(lambda connection, data: release.wait(10) and None) as port:
        result = stage(port, rate_per_s=20.0, timeout_s=0.5)
        release.set()
    assert errors(result) == {"timeout": 20}
    latency = (result.columns["done_ns"] - result.columns["due_ns"]) / 1e9
    assert latency.min() >= 0.5
    assert np.median(latency) < 0.7


def test_waiting_for_a_connection_counts_as_latency() -> None:
    with scripted_server(keep_alive(delay_s=0.05)) as port:
        result = stage(port, rate_per_s=40.0, connections=1, arrivals="constant", timeout_s=10.0)
    latency = (result.columns["done_ns"] - result.columns["due_ns"]) / 1e9
    # One connection does 20/s of the 40/s: the last request waits for about a second.
    assert latency[-1] > 0.7
    assert errors(result) == {"": 40}


def test_kept_answers_are_one_in_n() -> None:
    with scripted_server(keep_alive()) as port:
        result = stage(port, check_every=10)
    assert sorted(result.answers) == [0, 10, 20, 30, 40]


def test_tls_is_verified(tmp_path: Any) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    def serve(connection: socket.socket, data: bytes) -> None:
        raise AssertionError("never called with plain data")

    def listen(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(plain,), daemon=True).start()

    def talk(plain: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError), context.wrap_socket(plain, server_side=True) as secure:
            while secure.recv(65536):
                secure.sendall(OK)

    for trusted, expected in ((authority, {"": 20}), (other, {"connect": 20})):
        bundle = tmp_path / f"{id(trusted)}.pem"
        trusted.cert_pem.write_to_path(str(bundle))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            threading.Thread(target=listen, args=(listener,), daemon=True).start()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SSL_CERT_FILE", str(bundle))
                assert errors(stage(port, tls=True, rate_per_s=20.0)) == expected
            listener.shutdown(socket.SHUT_RDWR)


def test_progress_is_told_while_it_runs() -> None:
    seen: list[Progress] = []
    with scripted_server(keep_alive()) as port:
        due = due_times("poisson", steady(50, 2), seed=1)
        asyncio.run(run_stage(job_for(port), [b""], due, seen.append))
    assert len(seen) >= 2
    assert seen[-1].done > seen[0].done


def test_cancelling_ends_the_generator() -> None:
    async def cancelled(port: int) -> None:
        due = due_times("poisson", steady(50, 60), seed=1)
        task = asyncio.create_task(run_stage(job_for(port), [b""], due, lambda progress: None))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with scripted_server(keep_alive()) as port:
        started = time.monotonic()
        asyncio.run(cancelled(port))
    assert time.monotonic() - started < 10
    assert not processes_mentioning("harness.load.worker")


def test_killed_generator_is_an_error_and_not_a_result() -> None:
    def kill() -> None:
        pids = wait_until(lambda: processes_mentioning("harness.load.worker"), 10)
        os.kill(pids[0], signal.SIGKILL)

    with scripted_server(keep_alive()) as port:
        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(WorkerError, match="-9"):
            stage(port, duration_s=30.0)
        thread.join()


def test_generator_ends_with_its_parent() -> None:
    import subprocess
    import sys
    import textwrap

    with scripted_server(keep_alive()) as port:
        code = textwrap.dedent(
            f"""
            import asyncio
            from harness.load.arrivals import due_times, steady
            from harness.load.job import Job, Request
            from harness.load.runner import run_stage
            job = Job("rest", "127.0.0.1", {port}, "h", (Request("/", {{}}, "body"),))
            due = due_times("poisson", steady(5, 120), seed=1)
            asyncio.run(run_stage(job, [b""], due, lambda progress: print("on", flush=True)))
            """
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            parent.stdout.readline()
            children = psutil.Process(parent.pid).children()
            assert children
            parent.kill()
        wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 10)


def test_each_request_carries_its_own_number() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            seen.append(data.rpartition(b"\r\n\r\n")[2])
            connection.sendall(OK)
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        stage(port, rate_per_s=20.0, body=b'{"id": "%b"}' % ID_PLACEHOLDER.encode())
    assert sorted(seen) == [b'{"id": "%012d"}' % number for number in range(20)]


def test_weights_decide_how_often_each_request_is_sent() -> None:
    seen: Counter[bytes] = Counter()

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            seen[data.rpartition(b"\r\n\r\n")[2]] += 1
            connection.sendall(OK)
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        requests = (Request("/", {}, "a"), Request("/", {}, "b"))
        job = Job("rest", "127.0.0.1", port, "h", requests, cycle=(0, 0, 0, 1))
        due = due_times("constant", steady(100, 1), seed=1)
        asyncio.run(run_stage(job, [b"often", b"seldom"], due, lambda progress: None))
    assert seen == {b"often": 75, b"seldom": 25}


def test_processes_share_the_requests_and_are_merged_exactly() -> None:
    with scripted_server(keep_alive()) as port:
        result = stage(port, rate_per_s=300.0, processes=3, check_every=10)
    assert errors(result) == {"": 300}
    assert result.columns["row"].tolist() == list(range(300))
    assert np.all(np.diff(result.columns["due_ns"]) >= 0)
    assert np.array_equal(result.columns["due_ns"], due_times("poisson", steady(300, 1), seed=1))
    assert sorted(result.answers) == list(range(0, 300, 10))
    lag = (result.columns["dispatched_ns"] - result.columns["due_ns"]) / 1e9
    assert np.median(lag) < 0.01, "they began at one moment"


def test_closed_loop_is_shared_by_processes() -> None:
    with scripted_server(keep_alive(delay_s=0.02)) as port:
        result = stage(port, concurrency=5, duration_s=1.0, processes=2)
    assert set(errors(result)) == {""}
    assert len(set(result.columns["row"].tolist())) == result.columns["row"].size > 100


@pytest.mark.parametrize("fields", [{"concurrency": 8}, {"rate_per_s": 9000.0}])
def test_rows_that_leave_the_memory_of_a_long_stage_are_all_there_at_its_end(fields: dict[str, Any]) -> None:
    with answering_at_once() as port:
        result = stage(port, duration_s=9.0, rows_in_memory=0, timeout_s=5.0, check_every=1000, **fields)
    columns = result.columns
    assert columns["row"].size > 2 * WHOLE_PAGES_ROWS, "too few for anything to have been written down on the way"
    assert np.array_equal(columns["row"], np.arange(columns["row"].size))
    assert errors(result) == {"": columns["row"].size}
    assert np.all(np.diff(columns["due_ns"]) >= 0)
    for earlier, later in itertools.pairwise(TIMES):
        assert np.all(columns[earlier] <= columns[later])
    assert sorted(result.answers) == list(range(0, columns["row"].size, 1000))


def test_full_disk_ends_a_stage_with_what_to_do(tmp_path: Path) -> None:
    job = job_for(1, timeout_s=1.0)
    due_ns = np.zeros(10, np.int64)
    write_task(tmp_path, job, [b"hello"], due_ns)
    (tmp_path / "columns").mkdir()
    for name in COLUMNS:
        (tmp_path / "columns" / name).symlink_to("/dev/full")
    worker = [sys.executable, "-m", "harness.load.worker", str(tmp_path)]
    with subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"%d\n" % time.monotonic_ns())
        process.stdin.flush()
        assert process.wait(10) == 1
        words = process.stderr.read().decode()
    assert "could not write what was measured" in words
    assert "No space left on device" in words
    assert "TMPDIR" in words


def test_thinking_clients_ask_less_often() -> None:
    with scripted_server(keep_alive()) as port:
        result = stage(port, concurrency=2, duration_s=1.0, think_s=0.1)
    assert 12 <= result.columns["row"].size <= 22
    assert set(errors(result)) == {""}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("closed", [False, True])
def test_a_stage_that_has_enough_ends_early_and_loses_nothing(processes: int, closed: bool) -> None:
    async def run(port: int) -> tuple[StageResult, float]:
        control = Control()
        fields: dict[str, Any] = {"concurrency": 4, "duration_s": 60.0} if closed else {}
        due = None if closed else due_times("constant", steady(50.0, 60.0), seed=1)
        job = job_for(port, timeout_s=5.0, **fields)
        running = asyncio.create_task(run_stage(job, [b"hello"], due, lambda progress: None, processes, control))
        await control.started.wait()
        await asyncio.sleep(1.0)
        told = time.monotonic()
        control.enough()
        return await running, time.monotonic() - told

    with scripted_server(keep_alive(delay_s=0.05)) as port:
        result, took_s = asyncio.run(run(port))
    assert took_s < 3
    assert result.stopped
    assert set(errors(result)) == {""}
    assert result.columns["row"].size > 20
    assert len(set(result.columns["row"].tolist())) == result.columns["row"].size


def test_a_marked_header_is_kept_of_every_answer_failures_included() -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nX-Revision: one\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 500 No\r\nx-revision: two\r\nContent-Length: 2\r\n\r\nno",
        OK,
    ]

    def serve(connection: socket.socket, data: bytes) -> None:
        count = 0
        while data:
            connection.sendall(answers[count % 3])
            count += 1
            data = connection.recv(65536)

    with scripted_server(serve) as port:
        result = stage(port, rate_per_s=30, arrivals="constant", connections=1, mark="X-Revision")
    assert result.marks == {row: ("one", "two")[row % 3] for row in range(30) if row % 3 < 2}
