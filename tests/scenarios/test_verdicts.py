"""Servers with known truth that a verdict must not be fooled by, as somebody at the command line meets them."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import read_request, scripted_server, servecert
from tests.scenarios.test_load_answers import REQUEST, infer_answer

Answer = Callable[[int, str], tuple[int, bytes]]


def server(answer: Answer, sound: int = 3) -> Callable[[socket.socket, bytes], None]:
    """``answer`` gives status and body; the first requests, which are asked before the load, are answered at once."""
    counter = itertools.count()

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            path, sent = read_request(connection, data)
            if not path.endswith("/infer"):
                connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
                data = connection.recv(65536)
                continue
            asked = json.loads(sent)["id"]
            number = next(counter)
            status, body = (200, infer_answer(1.0, id=asked)) if number < sound else answer(number, asked)
            connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
            data = connection.recv(65536)

    return serve


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    payload = tmp_path / "payload.json"
    payload.write_text(json.dumps(REQUEST))

    def run(port: int, *options: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{port}"
        # A second of warm-up would be a third of these stages.
        fixed = ["load", url, "--model", "m", "--payload", str(payload), "--warmup", "0s", "--json", "-"]
        result = servecert(*fixed, *options)
        found: dict[str, Any] = json.loads(result.stdout)
        return {**found, "exit": result.returncode, "said": result.stderr}

    return run


def outcome(found: dict[str, Any], name: str) -> str:
    (check,) = [item for item in found["checks"] if item["id"] == f"load.{name}"]
    return str(check["outcome"])


def shedding(number: int, asked: str) -> tuple[int, bytes]:
    """Three of five requests are refused at once, the others take 400 ms."""
    if number % 5 < 3:
        return 503, b"no healthy upstream"
    time.sleep(0.4)
    return 200, infer_answer(1.0, id=asked)


def test_server_that_sheds_load_is_not_fast(ask: Callable[..., dict[str, Any]]) -> None:
    with scripted_server(server(shedding)) as port:
        found = ask(port, "--rate", "60", "--duration", "3s", "--slo", "p50 < 50ms")
    assert found["exit"] == 1
    assert outcome(found, "slo.p50") == "failed"
    assert outcome(found, "slo.errors") == "failed", "a stage is judged by its errors whether or not they are named"
    assert float(found["latency_s"]["p50"]) == float("inf")
    assert float(found["success_latency_s"]["p50"]) >= 0.4
    assert "failed request counts as never answered" in found["said"]
    assert "of those that succeeded" in found["said"]


def test_time_out_is_later_than_any_bound(ask: Callable[..., dict[str, Any]]) -> None:
    def silent(number: int, asked: str) -> tuple[int, bytes]:
        time.sleep(1.5)
        return 200, infer_answer(1.0, id=asked)

    with scripted_server(server(silent)) as port:
        options = ("--rate", "40", "--duration", "2s", "--timeout", "500ms")
        judged = ask(port, *options, "--slo", "p99 < 12s")
    with scripted_server(server(silent)) as port:
        unasked = ask(port, *options)
    assert judged["exit"] == unasked["exit"] == 1
    assert outcome(judged, "slo.p99") == "failed"
    assert outcome(unasked, "slo.errors") == "failed"
    assert unasked["verdict"] == "failed"


def test_few_requests_decide_nothing_and_say_how_many_would(ask: Callable[..., dict[str, Any]]) -> None:
    def steady(number: int, asked: str) -> tuple[int, bytes]:
        time.sleep(0.02)  # beside which the generator's own delay is nothing
        return 200, infer_answer(1.0, id=asked)

    with scripted_server(server(steady)) as port:
        found = ask(port, "--rate", "50", "--duration", "2s", "--slo", "p99 < 5s", "--slo", "errors < 0.1%")
        alone = ask(port, "--rate", "50", "--duration", "2s")
    assert found["exit"] == 1
    assert outcome(found, "slo.p99") == outcome(found, "slo.errors") == "undecided"
    (errors,) = [item for item in found["checks"] if item["id"] == "load.slo.errors"]
    assert "about 3,000 requests" in errors["reason"]
    assert "would decide it" in found["said"]
    # Nobody asked for so long a stage, and nothing failed in it: it is said, and does not decide.
    assert outcome(alone, "slo.errors") == "undecided"
    assert alone["exit"] == 0


def test_no_failure_at_all_can_be_asked_of_a_short_stage(ask: Callable[..., dict[str, Any]]) -> None:
    with scripted_server(server(lambda number, asked: (200, infer_answer(1.0, id=asked)))) as port:
        found = ask(port, "--rate", "50", "--duration", "2s", "--slo", "errors <= 0%")
    assert found["exit"] == 0
    with scripted_server(
        server(lambda number, asked: (503 if number == 50 else 200, infer_answer(1.0, id=asked)))
    ) as port:
        found = ask(port, "--rate", "50", "--duration", "2s", "--slo", "errors <= 0%")
    assert found["exit"] == 1


def one_at_a_time(seconds: float) -> Answer:
    turn = threading.Lock()

    def answer(number: int, asked: str) -> tuple[int, bytes]:
        with turn:
            time.sleep(seconds)
        return 200, infer_answer(1.0, id=asked)

    return answer


@pytest.fixture
def overloaded() -> Iterator[int]:
    """At most 100 requests a second."""
    with scripted_server(server(one_at_a_time(0.01))) as port:
        yield port


def test_overloaded_service_does_not_pass_in_silence(overloaded: int, ask: Callable[..., dict[str, Any]]) -> None:
    found = ask(overloaded, "--rate", "160", "--duration", "6s", "--connections", "2000")
    assert found["exit"] == 1
    assert outcome(found, "kept_up") == "failed"
    (check,) = [item for item in found["checks"] if item["id"] == "load.kept_up"]
    assert "160.0/s were due and" in check["observed"]


def test_busy_service_that_keeps_up_is_silent(ask: Callable[..., dict[str, Any]]) -> None:
    with scripted_server(server(one_at_a_time(0.005))) as port:
        found = ask(port, "--rate", "60", "--duration", "4s")
    assert outcome(found, "kept_up") == "passed"
    assert found["exit"] == 0


def slow(number: int, asked: str) -> tuple[int, bytes]:
    """Half a second, for as many at once as come."""
    time.sleep(0.5)
    return 200, infer_answer(1.0, id=asked)


def test_own_limit_of_connections_is_not_the_service_s(ask: Callable[..., dict[str, Any]]) -> None:
    """20 connections at half a second are 40 requests a second at most, whatever the service can do."""
    options = ("--rate", "80", "--duration", "3s", "--connections", "20", "--processes", "2")
    with scripted_server(server(slow, sound=6)) as port:
        found = ask(port, *options, "--slo", "p95 < 1s", "--slo", "p50 < 200ms")
    assert found["exit"] == 1
    assert outcome(found, "valid") == "error"
    assert not found["valid"]
    assert "connection-bound" in found["invalid_reason"]
    assert "raise --connections" in found["said"]
    assert found["limited"] > 0
    assert outcome(found, "slo.p95") == "error", "with more connections it might be met"
    assert outcome(found, "slo.p50") == "failed", "half a second is not 200 ms however many connections there are"
    with scripted_server(server(slow, sound=6)) as port:
        found = ask(
            port, "--rate", "80", "--duration", "4s", "--warmup", "2s", "--connections", "200", "--slo", "p95 < 6s"
        )
    assert found["limited"] == 0
    assert outcome(found, "slo.p95") == "passed"
