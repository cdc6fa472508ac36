"""The ingress: HTTP/1.1 and gRPC, by host and by path, streaming, large bodies, refusals."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from cluster.local.ingress.gateway import Gateway
from cluster.local.ingress.routes import Backend, RouteTable, Share
from cluster.local.provider import LocalCluster
from harness.target.golden import read_golden
from harness.target.protocol.grpc_client import GrpcClient, GrpcStatusError, infer_request
from harness.target.protocol.tensors import Tensor, same
from runtimes.catalog import BuiltModel
from tests.cluster.conftest import Deploy
from tests.helpers import scripted_server


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    """A pod that answers every request with what it got: the length and hash of the body, and its framing."""

    def answer(connection: socket.socket, data: bytes) -> None:
        while data:
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            chunked = headers.get(b"transfer-encoding") == b"chunked"
            if chunked:
                while not body.endswith(b"0\r\n\r\n"):
                    body += connection.recv(65536)
                raw, rest = b"", body
                while rest:
                    size, _, rest = rest.partition(b"\r\n")
                    raw, rest = raw + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
                body = raw
            else:
                received = bytearray(body)
                while len(received) < int(headers.get(b"content-length", 0)):
                    received += connection.recv(1 << 20)
                body = bytes(received)
            path = head.split(b" ")[1].decode()
            text = json.dumps(
                {"path": path, "size": len(body), "sha": hashlib.sha256(body).hexdigest(), "chunked": chunked}
            ).encode()
            if path == "/stream":
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for part in (b"one", b"two"):
                    connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
                    if connection.recv(1) == b"":  # goes on only when the client has seen the part
                        return
                connection.sendall(b"0\r\n\r\n")
            elif path == "/close":
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
                return
            elif path == "/break":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                return
            elif path == "/nonsense":
                connection.sendall(b"\x00\x01\x02 this is not HTTP\r\n\r\n")
                return
            elif path == "/silent":
                return
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            data = connection.recv(65536)

    with scripted_server(answer) as port:
        yield port


@pytest.fixture
async def ingress(backend: int) -> Any:
    routes = RouteTable()
    gateway = Gateway(routes)
    routes.set_backends("ns", "echo-1", [Backend("echo-pod", "echo-1", "127.0.0.1", backend, None)])
    routes.set("ns", "echo", [Share(routes.revision("ns", "echo-1"), 100)], {})
    routes.set("ns", "empty", [], {})
    port = await gateway.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}"
    await gateway.stop()


@pytest.fixture
async def http(ingress: str) -> Any:
    headers = {"Host": "echo.ns.example.com"}
    async with httpx.AsyncClient(base_url=ingress, headers=headers, timeout=30, trust_env=False) as client:
        yield client


async def test_requests_are_routed_by_host_and_by_path(http: httpx.AsyncClient, ingress: str) -> None:
    assert (await http.get("/v2?x=1")).json()["path"] == "/v2?x=1"
    internal = await http.get("/v2", headers={"Host": "echo.ns.svc.cluster.local"})
    assert internal.status_code == 200
    async with httpx.AsyncClient(trust_env=False) as browser:
        assert (await browser.get(f"{ingress}/serving/ns/echo/v2/models")).json()["path"] == "/v2/models"


async def test_unknown_host_is_404_and_names_the_known_ones(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v2", headers={"Host": "other.ns.example.com"})
    assert answer.status_code == 404
    assert "other.ns.example.com" in answer.json()["error"]
    assert "echo.ns.example.com" in answer.json()["error"]


async def test_service_without_a_ready_pod_is_503_with_retry_after(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v2", headers={"Host": "empty.ns.example.com"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_64_mib_bodies_pass_whole(http: httpx.AsyncClient) -> None:
    body = bytes(range(256)) * (64 << 12)
    assert len(body) == 64 << 20
    answer = (await http.post("/v2/models/m/infer", content=body)).json()
    assert (answer["size"], answer["sha"]) == (len(body), hashlib.sha256(body).hexdigest())


async def test_chunked_requests_stay_chunked(http: httpx.AsyncClient) -> None:
    async def parts() -> Any:
        for part in (b"a" * 1000, b"b" * 70_000, b"c"):
            yield part

    answer = (await http.post("/v2", content=parts())).json()
    assert answer["chunked"]
    assert answer["size"] == 71_001


async def test_connections_are_kept_alive(ingress: str) -> None:
    host, _, port = ingress.removeprefix("http://").partition(":")

    def exchange() -> list[bytes]:
        answers = []
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(10)
            for number in range(5):
                connection.sendall(b"GET /%d HTTP/1.1\r\nHost: echo.ns.example.com\r\n\r\n" % number)
                data = b""
                while b"}" not in data:
                    data += connection.recv(65536)
                answers.append(data)
        return answers

    answers = await asyncio.to_thread(exchange)
    assert [f'"/{number}"'.encode() in answer for number, answer in enumerate(answers)] == [True] * 5


async def test_answers_stream_part_by_part(ingress: str) -> None:
    host, _, port = ingress.removeprefix("http://").partition(":")

    def exchange() -> list[bytes]:
        seen = []
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(10)
            # The body's bytes are the signals by which the pod goes on: streaming both ways at once.
            connection.sendall(
                b"POST /stream HTTP/1.1\r\nHost: echo.ns.example.com\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            connection.sendall(b"0\r\n\r\n")
            data = b""
            while b"one" not in data:
                data += connection.recv(4096)
            seen.append(data)
        return seen

    seen = await asyncio.to_thread(exchange)
    assert b"two" not in seen[0]


async def test_answer_without_a_length_ends_with_the_pods_connection(http: httpx.AsyncClient) -> None:
    assert (await http.get("/close")).text == "until the end"


async def test_answer_that_breaks_off_breaks_off_for_the_client_too(http: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get("/break")
    assert (await http.get("/after")).status_code == 200


@pytest.mark.parametrize("path", ["/nonsense", "/silent"])
async def test_pod_that_does_not_answer_properly_is_502(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status_code == 502
    assert "echo-pod" in answer.json()["error"]


async def test_request_timeout_is_504(backend: int) -> None:
    stalled = threading.Event()

    def never(connection: socket.socket, data: bytes) -> None:
        stalled.wait(10)

    with scripted_server(never) as port:
        routes = RouteTable()
        gateway = Gateway(routes)
        revision = routes.revision("ns", "slow-1")
        revision.timeout_s = 0.3
        revision.set_backends([Backend("slow-pod", "slow-1", "127.0.0.1", port, None)])
        routes.set("ns", "slow", [Share(revision, 100)], {})
        address = await gateway.start("127.0.0.1", 0)
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{address}/", headers={"Host": "slow.ns.example.com"})
        await gateway.stop()
        stalled.set()
    assert answer.status_code == 504


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\nA" + b"a" * 100_000]
)
async def test_garbage_closes_the_connection_and_nothing_else(
    http: httpx.AsyncClient, ingress: str, garbage: bytes
) -> None:
    host, _, port = ingress.removeprefix("http://").partition(":")

    def send() -> bytes:
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(10)
            connection.sendall(garbage)
            data = b""
            try:
                while part := connection.recv(4096):
                    data += part
            except ConnectionResetError:
                pass
            return data

    data = await asyncio.to_thread(send)
    assert data == b"" or data.startswith(b"HTTP/1.1 4")
    assert (await http.get("/still")).status_code == 200


# gRPC, through the whole cluster


async def test_grpc_reaches_the_pod_by_authority(
    cluster: LocalCluster, deploy: Deploy, namespace: str, identity: BuiltModel
) -> None:
    deploy("rpc")
    cases = read_golden(identity.golden)
    async with GrpcClient(cluster.ingress, "rpc", authority=f"rpc.{namespace}.example.com") as client:
        for case in cases:
            result = await client.infer(case.inputs)
            assert all(same(tensor, result.output(tensor.name)) for tensor in case.outputs)
        # 40 MiB both ways: many times the flow-control windows of the gateway.
        rows = 280_000
        tensors = [_repeat(tensor, rows) for tensor in cases[0].inputs]
        answer = await client.call("ModelInfer", infer_request("rpc", tensors, raw=True), timeout_s=60)
        sent = infer_request("rpc", tensors, raw=True)
        assert list(answer.raw_output_contents) == list(sent.raw_input_contents)
    async with GrpcClient(cluster.ingress, "rpc", authority="nobody.ns.example.com") as stranger:
        with pytest.raises(GrpcStatusError) as refused:
            await stranger.metadata()
    assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED


def _repeat(tensor: Tensor, rows: int) -> Tensor:
    array = np.repeat(tensor.array.reshape(tensor.shape)[:1], rows, axis=0)
    return Tensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), array)


async def test_connection_survives_messages_that_are_refused_unread(
    cluster: LocalCluster, deploy: Deploy, namespace: str, identity: BuiltModel
) -> None:
    """A request that ends early leaves bytes behind; if nobody gives their window back, the connection stands still."""
    deploy("refuser")
    inputs = list(read_golden(identity.golden)[0].inputs)
    async with GrpcClient(cluster.ingress, "refuser", authority=f"refuser.{namespace}.example.com") as client:
        for _ in range(4):
            tensors = [_repeat(tensor, 100_000) for tensor in inputs]
            with pytest.raises(GrpcStatusError) as cancelled:
                await client.call("ModelInfer", infer_request("refuser", tensors, raw=True), timeout_s=0.02)
            assert cancelled.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        result = await client.infer(inputs)
    assert len(result.outputs) == 12
