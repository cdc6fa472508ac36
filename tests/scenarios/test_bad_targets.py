"""Targets that are none: each check is bounded in time, the suite goes on, and says what happened."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest

from harness.base.errors import MeasurementError, UnreachableError
from harness.results.records import CheckResult, Outcome
from harness.target.endpoint import Endpoint
from harness.target.protocol import patience
from harness.target.protocol.rest import RestClient
from runtimes.catalog import BuiltModel
from scenarios.suites.conformance import suite
from scenarios.suites.conformance.suite import conformance, select
from tests.helpers import Reference, read_request, reference_server, scripted_server, stop

METADATA = {
    "name": "m",
    "versions": ["1"],
    "platform": "p",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2]}],
}
Serve = Callable[[socket.socket, bytes], None]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RestClient.__init__.__kwdefaults__ or {}, "timeout_s", 0.5)
    monkeypatch.setattr(patience, "SHORT_S", 0.05)


def answer(connection: socket.socket, status: str, body: bytes, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def serving(infer: Serve) -> Serve:
    """A server with health and metadata, whose inference is ``infer``."""

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            path, body = read_request(connection, data)
            if path.endswith("/infer"):
                infer(connection, body)
                return
            known = {"/v2/models/m": METADATA, "/v2/health/live": {"live": True}, "/v2": {"extensions": []}}
            if path in known:
                answer(connection, "200 OK", json.dumps(known[path]).encode())
            else:
                answer(connection, "404 Not Found", b'{"error": "no"}')
            data = connection.recv(65536)

    return serve


def hangs(connection: socket.socket, body: bytes) -> None:
    connection.recv(1)


def html(connection: socket.socket, body: bytes) -> None:
    answer(connection, "200 OK", b"<html>welcome</html>", "text/html")


def redirects(connection: socket.socket, body: bytes) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")


def endless(connection: socket.socket, body: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        connection.sendall(b" " * 65536)


def slow_loris(connection: socket.socket, body: bytes) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def closes(connection: socket.socket, body: bytes) -> None:
    connection.close()


async def results(port: int) -> list[CheckResult]:
    endpoint = Endpoint("m", "r", f"http://127.0.0.1:{port}", "m")
    return [result async for result in conformance(endpoint, ["rest"])]


@pytest.mark.parametrize("infer", [hangs, html, redirects, endless, slow_loris, closes], ids=lambda f: f.__name__)
async def test_inference_that_is_none_fails_and_the_suite_goes_on(infer: Serve) -> None:
    started = time.monotonic()
    with scripted_server(serving(infer)) as port:
        found = await results(port)
    assert len(found) == len(select(["rest"]))
    by_id = {result.id: result for result in found}
    assert by_id["rest.health.live"].outcome is Outcome.PASSED
    assert by_id["rest.model_metadata.name"].outcome is Outcome.PASSED
    for name in ("model_name", "outputs", "id_echo", "concurrent"):
        assert by_id[f"rest.infer.{name}"].outcome is Outcome.FAILED, name
        assert by_id[f"rest.infer.{name}"].observed
    assert not [result for result in found if result.outcome is Outcome.ERROR]
    assert time.monotonic() - started < 60
    assert max(result.duration_s for result in found) < 15


async def test_a_server_that_is_no_http_server_is_named_as_such() -> None:
    def ssh(connection: socket.socket, data: bytes) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with scripted_server(ssh) as port, pytest.raises(UnreachableError, match="is the server up, and is the address"):
        await results(port)


async def test_a_server_that_dies_in_the_middle(identity: BuiltModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "GONE_S", 0.5)
    found: list[CheckResult] = []
    with reference_server(identity.artifacts) as server:
        endpoint = Endpoint("identity", "r", server.url, "identity")

        async def until_it_dies() -> None:
            async for result in conformance(endpoint, ["rest"]):
                found.append(result)
                if len(found) == 30:
                    stop(server.process)

        with pytest.raises(MeasurementError, match=r"does not answer any more, since \S+ or the check after it"):
            await until_it_dies()
    assert 30 < len(found) < len(select(["rest"]))
    assert [result.outcome for result in found[:29]].count(Outcome.FAILED) == 0


async def test_patience_comes_back_with_the_first_answer(reference: Reference) -> None:
    waiting = patience.Patience()
    for _ in range(patience.ENOUGH):
        assert waiting.limit("infer", 9.0) == 9.0
        waiting.unanswered("infer")
    assert waiting.limit("infer", 9.0) == patience.SHORT_S
    assert waiting.limit("live", 9.0) == 9.0
    waiting.answered("infer")
    assert waiting.limit("infer", 9.0) == 9.0
