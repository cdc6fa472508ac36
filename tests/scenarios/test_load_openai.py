"""Streamed chat answers: time to first token, gaps, tokens a second, and streams that are not whole."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from harness.base.errors import NotServedError, ProtocolError
from harness.results.records import CheckResult, LoadResult, Outcome
from harness.results.slo import parse_slo
from harness.target.endpoint import Endpoint
from harness.target.protocol.openai import read_stream
from scenarios.suites.shared.stage import Plan, load
from tests.helpers import read_request, scripted_server

FIRST_S, GAP_S, TOKENS = 0.05, 0.02, 6


def event(text: str = "", finish: str | None = None) -> bytes:
    chunk = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": text}, "finish_reason": finish}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def whole() -> list[bytes]:
    return [*(event(f"t{number} ") for number in range(TOKENS - 1)), event("", "stop")]


def llm(pieces: Callable[[], list[bytes]], prefix: str = "/openai", seen: list[dict[str, Any]] | None = None) -> Any:
    """A server that waits before its first event and between events, as a decoder does."""

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            path, body = read_request(connection, data)
            if path != f"{prefix}/v1/chat/completions":
                status = "200 OK" if path == f"{prefix}/v1/models" else "404 Not Found"
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            else:
                if seen is not None:
                    seen.append(json.loads(body))
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                time.sleep(FIRST_S)
                for number, piece in enumerate([*pieces(), b"data: [DONE]\n\n"]):
                    if 0 < number < TOKENS:
                        time.sleep(GAP_S)
                    connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                connection.sendall(b"0\r\n\r\n")
            data = connection.recv(65536)

    return serve


async def run(port: int, timeout_s: float = 10.0, **fields: Any) -> tuple[LoadResult, list[CheckResult]]:
    endpoint = Endpoint("llm", "r", f"http://127.0.0.1:{port}", "tiny", **fields)
    texts = ["ttft p50 < 80ms", "gap p50 < 40ms", "gap p99 < 1us"] if timeout_s == 10 else ["ttft p95 < 500ms"]
    slo = tuple(parse_slo(text) for text in texts)
    plan = Plan(
        "load",
        2.0,
        rate_per_s=40,
        warmup_s=0.2,
        protocol="openai",
        arrivals="constant",
        objectives=slo,
        timeout_s=timeout_s,
    )
    records = [record async for record in load(endpoint, plan, "s", lambda progress: None)]
    checks = [record for record in records if isinstance(record, CheckResult)]
    return next(record for record in records if isinstance(record, LoadResult)), checks


@pytest.mark.parametrize("prefix", ["/openai", ""])
async def test_streams_are_timed_event_by_event(prefix: str) -> None:
    seen: list[dict[str, Any]] = []
    with scripted_server(llm(whole, prefix, seen)) as port:
        result, checks = await run(port)
    assert result.errors == 0
    assert result.requests == 80
    assert result.streaming["tokens"]["per_answer"] == TOKENS
    assert result.streaming["tokens"]["total"] == 80 * TOKENS
    assert result.streaming["ttft_s"]["p50"] == pytest.approx(FIRST_S, abs=0.015)
    assert result.streaming["gap_s"]["p50"] == pytest.approx(GAP_S, abs=0.008)
    assert result.latency_s["p50"] == pytest.approx(FIRST_S + (TOKENS - 1) * GAP_S, abs=0.05)
    outcomes = {check.id: check.outcome for check in checks}
    assert outcomes == {
        "load.valid": Outcome.PASSED,
        "load.answers": Outcome.PASSED,
        "load.slo.ttft.p50": Outcome.PASSED,
        "load.slo.gap.p50": Outcome.PASSED,
        "load.slo.gap.p99": Outcome.FAILED,
        "load.slo.errors": Outcome.UNDECIDED,  # 80 requests without a failure do not show fewer than 1 %
        "load.kept_up": Outcome.PASSED,
    }
    assert all(request["stream"] is True and request["model"] == "tiny" for request in seen)


async def test_chat_request_of_a_file_is_sent_as_it_is() -> None:
    seen: list[dict[str, Any]] = []
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "model": "other"}
    with scripted_server(llm(whole, seen=seen)) as port:
        await run(port, chat=(chat,))
    assert {key: seen[-1][key] for key in chat} == chat


async def test_streams_that_break_off_are_wrong_answers() -> None:
    calls = iter(range(1000))

    def sometimes_cut() -> list[bytes]:
        return whole() if next(calls) % 2 == 0 else whole()[:-1]

    with scripted_server(llm(sometimes_cut)) as port:
        result, checks = await run(port)
    answers = next(check for check in checks if check.id == "load.answers")
    assert answers.outcome is Outcome.FAILED
    assert "finish reason" in answers.observed
    assert result.errors_by_class["wrong_answer"] > 0


async def test_first_token_that_never_came_is_later_than_any_bound() -> None:
    """Every second answer has no token and no end before the client's time is over."""
    calls = iter(range(10_000))

    def sometimes_silent() -> list[bytes]:
        if next(calls) % 2:
            time.sleep(1.5)
        return whole()

    with scripted_server(llm(sometimes_silent)) as port:
        result, checks = await run(port, timeout_s=1.0)
    outcomes = {check.id: check.outcome for check in checks}
    assert 30 <= result.errors_by_class["timeout"] <= 50
    assert result.streaming["ttft_s"]["p99"] == math.inf
    assert outcomes["load.slo.ttft.p95"] is Outcome.FAILED
    assert outcomes["load.slo.errors"] is Outcome.FAILED


async def test_server_without_the_api_is_named() -> None:
    with (
        scripted_server(llm(whole, prefix="/elsewhere")) as port,
        pytest.raises(NotServedError, match="no OpenAI API"),
    ):
        await run(port)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data: {\n\n", "JSON object"),
        (event("a") + event("", "stop"), "no \\[DONE\\]"),
        (event("a") + b"data: [DONE]\n\n", "no finish reason"),
        (event("", "stop") + event("late") + b"data: [DONE]\n\n", "follows the finish"),
        (event("", "stop") + b"data: [DONE]\n\n" + event("more"), "follows \\[DONE\\]"),
        (b"<html></html>", "no finish reason"),
    ],
)
def test_broken_streams_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read_stream(content)


def test_whole_stream_is_its_text() -> None:
    assert read_stream(b"".join(whole()) + b": comment\n\ndata: [DONE]\n\n") == "t0 t1 t2 t3 t4 "
