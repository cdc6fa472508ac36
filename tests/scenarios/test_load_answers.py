"""What the load suite says of servers whose answers are odd in themselves."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.results.records import CheckResult, LoadResult, Outcome
from harness.target.endpoint import Endpoint
from harness.target.golden import read_payload
from scenarios.suites.shared.stage import Plan, load
from tests.helpers import read_request, scripted_server

REQUEST = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}


def server(answer: Callable[[int, str], bytes]) -> Callable[[socket.socket, bytes], None]:
    counter = itertools.count()

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            _, sent = read_request(connection, data)
            body = answer(next(counter), json.loads(sent)["id"])
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            data = connection.recv(65536)

    return serve


async def judge(port: int, tmp_path: Path) -> tuple[LoadResult, CheckResult]:
    payload = tmp_path / "payload.json"
    payload.write_text(json.dumps(REQUEST))
    endpoint = Endpoint("m", "r", f"http://127.0.0.1:{port}", "m", payload=tuple(read_payload(payload)))
    plan = Plan("load", 1.0, rate_per_s=60, warmup_s=0.1)
    records: list[Any] = [record async for record in load(endpoint, plan, "s", lambda progress: None)]
    result = next(record for record in records if isinstance(record, LoadResult))
    return result, next(record for record in records if isinstance(record, CheckResult) and record.id == "load.answers")


def infer_answer(value: float, **fields: Any) -> bytes:
    output = {"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    return json.dumps({"model_name": "m", "outputs": [output], **fields}).encode()


async def test_model_that_does_not_repeat_itself_is_judged_by_ids(tmp_path: Path) -> None:
    with scripted_server(server(lambda number, asked: infer_answer(float(number)))) as port:
        result, answers = await judge(port, tmp_path)
    assert answers.outcome is Outcome.PASSED
    assert "does not repeat itself" in answers.observed
    assert result.errors == 0


async def test_answer_with_another_requests_id_is_wrong(tmp_path: Path) -> None:
    def answer(number: int, asked: str) -> bytes:
        return infer_answer(1.0, id=asked if number < 40 else "somebody-elses")

    with scripted_server(server(answer)) as port:
        result, answers = await judge(port, tmp_path)
    assert answers.outcome is Outcome.FAILED
    assert "somebody-elses" in answers.observed
    assert 0 < result.errors_by_class["wrong_answer"] <= result.checked_answers
    assert result.errors == result.errors_by_class["wrong_answer"], "wrong answers are errors of the sample"


@pytest.mark.parametrize("body", [b'{"ok": true}', b"plain text", b'{"outputs": 7}'])
async def test_server_that_does_not_speak_the_protocol_is_measured_and_fails(body: bytes, tmp_path: Path) -> None:
    with scripted_server(server(lambda number, asked: body)) as port:
        result, answers = await judge(port, tmp_path)
    assert result.requests == 60
    assert answers.outcome is Outcome.FAILED
    assert "before the load" in answers.observed


def test_an_answer_is_known_again_only_where_all_but_the_id_is_the_same() -> None:
    from scenarios.suites.shared.stage.requests import request_id, without_id

    def named(row: int, text: str = "") -> bytes:
        return json.dumps({"id": request_id(row), "text": text}).encode()

    assert without_id(named(7), 7) == without_id(named(8), 8)
    assert without_id(named(7), 7) != without_id(named(8, "x"), 8)
    assert without_id(named(8), 7) == named(8), "the id of another request stays, and makes it another answer"
    assert without_id(named(7, request_id(7)), 7) is None, "twice: what is left would say nothing"
