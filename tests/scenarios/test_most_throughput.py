"""``concurrency: max`` finds how many clients a server of known parallelism can make use of."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from harness.base.errors import MeasurementError
from harness.results.records import LoadResult
from harness.target.endpoint import Endpoint
from harness.target.protocol.tensors import TensorSpec, example_tensor
from scenarios.suites.shared import stage as suite
from scenarios.suites.shared.stage import Plan, load
from tests.helpers import read_request, scripted_server
from tests.scenarios.test_verdicts import server

PARALLEL, SERVICE_S = 4, 0.05
"""Long beside the time between an answer and the client's next request, which only more clients can fill."""
INPUT = (example_tensor(TensorSpec("x", "FP32", (1, 2))),)


def serving() -> object:
    slots = threading.Semaphore(PARALLEL)

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            _, body = read_request(connection, data)
            request = json.loads(body or b"{}")
            with slots:
                time.sleep(SERVICE_S)
            outputs = [{**item, "name": "y"} for item in request.get("inputs", [])]
            answer = json.dumps({"model_name": "m", "id": request.get("id", ""), "outputs": outputs}).encode()
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
            data = connection.recv(65536)

    return serve


async def test_the_fewest_clients_with_the_highest_throughput() -> None:
    notes: list[str] = []
    with scripted_server(serving()) as port:  # type: ignore[arg-type]
        endpoint = Endpoint("m", "r", f"http://127.0.0.1:{port}", "m", payload=INPUT)
        plan = Plan("load", 1.0, concurrency=1, most_throughput=True, warmup_s=0.2)
        records = [record async for record in load(endpoint, plan, "s", lambda progress: None, notes.append)]
    result = next(record for record in records if isinstance(record, LoadResult))
    assert result.concurrency == PARALLEL, notes
    assert "fewest with the highest throughput" in result.offered
    assert result.achieved_rate_per_s == pytest.approx(PARALLEL / SERVICE_S, rel=0.15)
    assert [int(note.split()[0]) for note in notes] == [1, 2, 4, 8, 16], "two doublings that brought nothing end it"


async def test_errors_are_no_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "SEARCH_PIECE_S", 0.3)
    with scripted_server(server(lambda number, asked: (503, b"no"), sound=2)) as port:
        endpoint = Endpoint("m", "r", f"http://127.0.0.1:{port}", "m", payload=INPUT)
        plan = Plan("load", 1.0, concurrency=1, most_throughput=True, warmup_s=0.2)
        with pytest.raises(MeasurementError, match="no request succeeded"):
            async for _ in load(endpoint, plan, "s", lambda progress: None):
                pass
