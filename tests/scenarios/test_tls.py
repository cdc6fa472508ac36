"""REST and gRPC over TLS behind an ingress: the certificate is for the service's name, not for the address."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from harness.base.errors import UnreachableError, UsageError
from harness.base.tls import Tls
from harness.results.records import LoadResult
from harness.target.endpoint import Endpoint
from scenarios.suites.shared.stage import Plan, load
from tests.helpers import Reference

HOST = "svc.ns.example.com"


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


class Front:
    """What ends TLS in front of a server, as an ingress does."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port, self._context = port, context
        self.names: list[str | None] = []
        context.sni_callback = lambda connection, name, _: self.names.append(name)

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(_pipe(reader, downstream), _pipe(upstream, writer))


@pytest.fixture
async def endpoint(reference: Reference, tmp_path: Path) -> AsyncIterator[Endpoint]:
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.cert_pem.bytes())
    contexts = []
    for protocols in (["http/1.1"], ["h2"]):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(context)
        context.set_alpn_protocols(protocols)
        contexts.append(context)
    rest, grpc = Front(reference.http_port, contexts[0]), Front(reference.grpc_port, contexts[1])
    async with rest as rest_port, grpc as grpc_port:
        yield Endpoint(
            "s", "r", f"https://127.0.0.1:{rest_port}", reference.model,
            host=HOST, grpc_address=f"127.0.0.1:{grpc_port}", tls=Tls(ca), grpc_tls=True,
        )  # fmt: skip
        assert HOST in rest.names + grpc.names, "the name asked for is the service's"


async def test_both_protocols_verify_the_service_s_name(endpoint: Endpoint) -> None:
    async with endpoint.rest() as rest:
        assert (await rest.request("GET", "/v2/health/live")).status == 200
    async with endpoint.grpc() as grpc:
        assert (await grpc.call("ServerLive", _request("ServerLiveRequest"))).live


def _request(name: str) -> object:
    from harness.target.protocol.grpc_client import MESSAGES

    return MESSAGES[name]()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
async def test_load_over_tls(endpoint: Endpoint, protocol: str) -> None:
    plan = Plan("load", 0.5, rate_per_s=40, warmup_s=0.1, protocol=protocol)  # type: ignore[arg-type]
    found = [record async for record in load(endpoint, plan, "s", lambda progress: None)]
    result = next(record for record in found if isinstance(record, LoadResult))
    assert result.requests > 10
    assert result.errors == 0, result.errors_by_class


async def test_a_certificate_of_somebody_else_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().cert_pem.bytes())
    for wrong in (replace(endpoint, tls=Tls(other)), replace(endpoint, host="another.example.com")):
        async with wrong.rest() as rest:
            with pytest.raises(UnreachableError, match=r"CERTIFICATE_VERIFY_FAILED|certificate"):
                await rest.request("GET", "/v2/health/live")


def test_certificates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the certificates"):
        Tls(tmp_path / "none").trusted()
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="expected certificates in PEM"):
        Tls(tmp_path / "text").trusted()
