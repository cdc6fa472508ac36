"""The look before the load: what is wrong is said first, and it takes a stated time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import trustme

from harness.base.errors import MeasurementError, NotServedError, ServecertError, UnreachableError
from harness.results.records import CheckResult, LoadResult, Outcome
from harness.target.endpoint import Endpoint
from harness.target.protocol.tensors import TensorSpec, example_tensor
from scenarios.suites.shared.stage import Plan, load
from scenarios.suites.shared.stage.beforehand import brief, encode, how_inspected
from tests.helpers import Reference, free_port, grpc_server, servecert

METADATA = {
    "name": "m",
    "versions": ["1"],
    "platform": "p",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2]}],
}
HTML = b"<!DOCTYPE html><title>Sign in to Acme</title><form></form>"
LOGIN = "https://login.acme.example/auth?next=/"


@dataclass(frozen=True)
class Said:
    status: int
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


Answer = Callable[[str, str, bytes], Awaitable[Said]]


@contextlib.asynccontextmanager
async def standing_in(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on loopback that answers each request with what ``answer`` gives for method, path and body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                lengths = [
                    line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length")
                ]
                said = await answer(method, path, await reader.readexactly(int(lengths[0]) if lengths else 0))
                body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
                lines = [f"HTTP/1.1 {said.status} X", f"Content-Length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in said.headers.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


def paths(**said: Said) -> Answer:
    """A v2 server that has the model ``m``; ``said`` replaces what it says: live, ready, server, model, model_ready,
    index, infer."""
    names = {
        "/v2/health/live": "live",
        "/v2/health/ready": "ready",
        "/v2": "server",
        "/v2/models/m": "model",
        "/v2/models/m/ready": "model_ready",
        "/v2/repository/index": "index",
        "/v2/models/m/infer": "infer",
    }
    known = {
        "live": Said(200, {"live": True}),
        "ready": Said(200, {"ready": True}),
        "server": Said(200, {"name": "s", "version": "1", "extensions": []}),
        "model": Said(200, METADATA),
        "model_ready": Said(200, {"ready": True}),
        "index": Said(200, [{"name": "m", "state": "READY"}]),
    }

    async def answer(method: str, path: str, body: bytes) -> Said:
        name = names.get(path, "")
        if name == "infer" and "infer" not in said:
            return echo(body)
        return said.get(name) or said.get("everything") or known.get(name) or Said(404, {"error": f"no {path}"})

    return answer


def everything(said: Said) -> Answer:
    async def answer(method: str, path: str, body: bytes) -> Said:
        return said

    return answer


def echo(body: bytes) -> Said:
    asked = json.loads(body)
    outputs = [{**tensor, "name": "y"} for tensor in asked["inputs"]]
    return Said(200, {"model_name": "m", "id": asked["id"], "outputs": outputs})


def endpoint(port: int, **fields: Any) -> Endpoint:
    return Endpoint("svc", "r", f"http://127.0.0.1:{port}", "m", **fields)


PAYLOAD = (example_tensor(TensorSpec("x", "FP32", (1, 2)), seed=1),)
PLAN = Plan("load", 1.0, rate_per_s=20, warmup_s=0.0, timeout_s=2.0)
TWO = [{"name": "iris"}, {"name": "b"}]
NO_MODEL = Said(404, {"error": "unknown model"})


@pytest.mark.parametrize("payload", [(), PAYLOAD], ids=["made", "payload"])
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (everything(Said(302, b"", {"Location": LOGIN})), NotServedError, f"redirect (302) to {LOGIN}"),
        (
            everything(Said(200, HTML, {"Content-Type": "text/html"})),
            NotServedError,
            "web page titled 'Sign in to Acme'",
        ),
        (everything(Said(200, HTML)), NotServedError, "web page titled"),
        (everything(Said(401, {"error": "token"})), NotServedError, 'got 401 (\'{"error": "token"}\')'),
        (everything(Said(403, b"RBAC: access denied")), NotServedError, "RBAC: access denied"),
        (everything(Said(404, b"404 page not found")), NotServedError, "none of its paths is answered 200"),
        (everything(Said(400, b"plain HTTP request was sent to HTTPS port")), NotServedError, "try https://"),
        (everything(Said(503, b"no healthy upstream")), NotServedError, "not ready"),
        (
            paths(ready=Said(503), model=Said(503), infer=Said(503), index=Said(503), model_ready=Said(503)),
            NotServedError,
            "the server is not ready",
        ),
        (
            paths(
                model=NO_MODEL, infer=NO_MODEL, model_ready=NO_MODEL, index=Said(200, [{"name": "iris"}, {"name": "b"}])
            ),
            NotServedError,
            "has no model 'm' (status 404): it has b, iris; name one of them with --model",
        ),
        (
            paths(model=NO_MODEL, infer=NO_MODEL, model_ready=NO_MODEL, index=Said(404)),
            NotServedError,
            "has no model 'm' (status 404): it says '{\"error\": \"unknown model\"}'",
        ),
        (
            paths(
                model=NO_MODEL,
                infer=NO_MODEL,
                model_ready=Said(503, {"ready": False}),
                index=Said(200, [{"name": "m", "state": "UNAVAILABLE", "reason": "out of memory"}]),
            ),
            NotServedError,
            "the server's repository says: UNAVAILABLE, out of memory",
        ),
        (paths(infer=Said(400, {"error": "expected 4 columns"})), MeasurementError, "expected 4 columns"),
        (paths(infer=Said(400, {"error": "4 columns"}), model_ready=Said(405)), MeasurementError, "4 columns"),
        (paths(infer=Said(400, {"error": "4 columns"}), model_ready=Said(501)), MeasurementError, "4 columns"),
        (paths(infer=Said(400, {"error": "4 columns"}), ready=Said(405, b"no")), MeasurementError, "4 columns"),
        (paths(infer=Said(400, {"error": "4"}), model_ready=Said(503)), NotServedError, "'m' is not ready"),
        (paths(infer=Said(500, b"\x1b[31mTraceback")), MeasurementError, "\\x1b[31mTraceback"),
    ],
)
async def test_what_is_wrong_is_said_first(answer: Answer, kind: type, words: str, payload: Any) -> None:
    async with standing_in(answer) as port:
        with pytest.raises(ServecertError) as caught:
            await encode(endpoint(port, payload=payload), PLAN)
    assert words in str(caught.value)
    assert type(caught.value) is kind
    assert kind.exit_code == (1 if kind is MeasurementError else 3)  # type: ignore[attr-defined]


async def test_metadata_without_inputs_are_what_is_wrong_where_the_model_is_there() -> None:
    async with standing_in(paths(model=Said(200, {"name": "m"}))) as port:
        with pytest.raises(MeasurementError, match="name no inputs"):
            await encode(endpoint(port), PLAN)
        assert (await encode(endpoint(port, payload=PAYLOAD), PLAN))[0].expected


async def test_nobody_listens() -> None:
    with pytest.raises(UnreachableError, match="nobody listens there"):
        await encode(endpoint(free_port()), PLAN)


async def test_no_name_for_the_host() -> None:
    with pytest.raises(UnreachableError, match="the name of its host is not known here"):
        await encode(Endpoint("svc", "r", "http://no-such-host.invalid:80", "m"), PLAN)


async def test_tls_is_named_where_it_is_what_is_wrong(reference: Reference) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with standing_in(paths(), context) as port:
        with pytest.raises(UnreachableError, match="certificate is not trusted"):
            await encode(Endpoint("svc", "r", f"https://127.0.0.1:{port}", "m"), PLAN)
        with pytest.raises(UnreachableError, match=r"or TLS \(then try https://"):
            await encode(endpoint(port), PLAN)
    with pytest.raises(UnreachableError, match="does not speak TLS; try http://"):
        await encode(Endpoint("svc", "r", f"https://127.0.0.1:{reference.http_port}", "m"), PLAN)


async def test_what_speaks_no_http_is_named() -> None:
    async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(ssh, "127.0.0.1", 0)
    with pytest.raises(UnreachableError, match="gave no HTTP answer: it speaks another protocol, or TLS"):
        await encode(endpoint(server.sockets[0].getsockname()[1]), PLAN)
    server.close()


async def test_a_refusal_for_now_is_asked_again() -> None:
    count = itertools.count()
    fine = paths()

    async def answer(method: str, path: str, body: bytes) -> Said:
        if path.endswith("/infer") and next(count) == 0:
            return Said(503, b"warming up")
        return await fine(method, path, body)

    async with standing_in(answer) as port:
        assert all(item.expected for item in await encode(endpoint(port), PLAN))


async def test_the_reference_says_which_models_there_are(reference: Reference) -> None:
    for protocol, fields in (("rest", {}), ("grpc", {"grpc_address": reference.grpc, "payload": PAYLOAD})):
        target = Endpoint("svc", "r", reference.url, "no-such", **fields)
        with pytest.raises(NotServedError, match=r"has no model 'no-such'.*: it has identity; name one"):
            await encode(target, Plan("load", 1.0, rate_per_s=5, protocol=protocol))  # type: ignore[arg-type]


def test_the_command_line_says_it_and_exits_with_3(reference: Reference) -> None:
    result = servecert("load", reference.url, "--model", "typo", "--rate", "5", "--duration", "1s")
    assert result.returncode == 3
    assert "has no model 'typo'" in result.stderr + result.stdout
    assert "name no inputs" not in result.stderr + result.stdout


# gRPC


def over_grpc(address: str) -> tuple[Endpoint, Plan]:
    return endpoint(1, grpc_address=address, payload=PAYLOAD), Plan("load", 1.0, rate_per_s=5, protocol="grpc")


async def test_a_closed_grpc_port_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError, match=f"gRPC at {address}: .*nobody answers there"):
        await encode(*over_grpc(address))


async def test_the_rest_port_is_no_grpc_port(reference: Reference) -> None:
    with pytest.raises(UnreachableError, match="is it the REST port"):
        await encode(*over_grpc(f"127.0.0.1:{reference.http_port}"))


async def test_a_grpc_server_of_another_service_is_named() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(NotServedError, match=r"does not serve inference\.GRPCInferenceService"):
        await encode(*over_grpc(f"127.0.0.1:{port}"))
    await server.stop(None)


async def test_a_request_that_is_refused_over_grpc_has_the_servers_words() -> None:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected 4 columns\n")

    async with grpc_server("ModelInfer", refuse) as address:
        with pytest.raises(MeasurementError, match=r"refused: INVALID_ARGUMENT: expected 4 columns\\n"):
            await encode(*over_grpc(address))


# OpenAI


@pytest.mark.parametrize(
    ("models", "chat", "kind", "words"),
    [
        (Said(302, b"", {"Location": LOGIN}), Said(404), NotServedError, LOGIN),
        (Said(401, b"Unauthorized"), Said(404), NotServedError, "sends no credentials"),
        (Said(200, HTML, {"Content-Type": "text/html"}), Said(404), NotServedError, "Sign in to Acme"),
        (Said(404, b"nothing"), Said(404), NotServedError, "no OpenAI API is served"),
        (Said(503, b"loading"), Said(404), NotServedError, "is not ready"),
        (Said(200, {"data": [{"id": "llama"}]}), Said(404, {"error": "x"}), NotServedError, "it has llama"),
        (Said(200, {"data": [{"id": "m"}]}), Said(400, {"error": "too long"}), MeasurementError, "too long"),
        (Said(200, {"data": [{"id": "m"}]}), Said(403, b"no key"), NotServedError, "no key"),
    ],
)
async def test_what_is_wrong_with_an_openai_api_is_said_first(models: Said, chat: Said, kind: type, words: str) -> None:
    async def answer(method: str, path: str, body: bytes) -> Said:
        return chat if path.endswith("/chat/completions") else models

    async with standing_in(answer) as port:
        with pytest.raises(ServecertError) as caught:
            await encode(endpoint(port), Plan("load", 1.0, rate_per_s=5, protocol="openai"))
    assert words in str(caught.value)
    assert type(caught.value) is kind


# Time


def slow(seconds: float, at_once: int = 1000) -> tuple[Answer, list[int]]:
    """A server that takes so long for an inference; and how many it worked on at once at most."""
    fine, turns, seen, busy = paths(), asyncio.Semaphore(at_once), [0], [0]

    async def answer(method: str, path: str, body: bytes) -> Said:
        if not path.endswith("/infer"):
            return await fine(method, path, body)
        busy[0] += 1
        seen[0] = max(seen[0], busy[0])
        async with turns:
            await asyncio.sleep(seconds)
        busy[0] -= 1
        return echo(body)

    return answer, seen


async def test_the_look_takes_its_time_and_no_more() -> None:
    answer, seen = slow(0.4)
    plan = Plan("load", 5.0, rate_per_s=2)
    async with standing_in(answer) as port:
        started = time.monotonic()
        encoded = await encode(endpoint(port), plan, brief(plan))
        took = time.monotonic() - started
    assert took < 0.4 + 2.0 + 0.6
    assert len(encoded) == 16, "what is not known in time is sent all the same"
    known = sum(bool(item.expected) for item in encoded)
    assert encoded[0].expected
    assert known in (2, 3)
    assert sum(item.unasked for item in encoded) == 16 - known
    assert f"; {16 - known} of 16 requests were checked by id only: there was no time" in how_inspected(encoded)
    assert seen == [1]


async def test_the_first_is_asked_twice_however_long_it_takes() -> None:
    answer, seen = slow(0.2)
    async with standing_in(answer) as port:
        encoded = await encode(endpoint(port), PLAN, 0.0)
    assert [bool(item.expected) for item in encoded] == [True] + [False] * 15
    assert seen == [1]


async def test_a_request_that_hangs_holds_nothing_up() -> None:
    fine = paths()
    count = itertools.count()

    async def answer(method: str, path: str, body: bytes) -> Said:
        if path.endswith("/infer") and next(count) == 4:
            await asyncio.sleep(60)
        return await fine(method, path, body)

    async with standing_in(answer) as port:
        started = time.monotonic()
        encoded = await encode(endpoint(port), PLAN, 0.5)
        assert time.monotonic() - started < 2.5
    assert [bool(item.expected) for item in encoded[:3]] == [True, True, False]
    assert encoded[2].unasked


async def test_without_a_budget_all_are_asked_one_by_one() -> None:
    answer, seen = slow(0.01)
    async with standing_in(answer) as port:
        encoded = await encode(endpoint(port), PLAN)
    assert all(item.expected for item in encoded)
    assert seen == [1]
    assert how_inspected(encoded) == ""


async def test_a_check_says_how_many_requests_were_inspected_by_id_alone() -> None:
    answer, _ = slow(0.3)
    async with standing_in(answer) as port:
        plan = Plan("load", 1.0, rate_per_s=30, warmup_s=0.0)
        records = [record async for record in load(endpoint(port), plan, "s", lambda progress: None)]
    result = next(record for record in records if isinstance(record, LoadResult))
    check = next(record for record in records if isinstance(record, CheckResult) and record.id == "load.answers")
    assert result.errors == 0
    assert check.outcome is Outcome.PASSED
    assert "of 16 requests were checked by id only: there was no time to ask them before the load" in check.observed


def test_short_stages_on_fast_servers_are_not_held_up() -> None:
    assert brief(Plan("x", 2.0, rate_per_s=1)) == 2.0
    assert brief(Plan("x", 60.0, concurrency=1)) == 12.0
