"""Container probes: HTTP, TCP and gRPC, with Kubernetes' defaults."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from cluster.local.api.resources import Object

HOST = "127.0.0.1"


@dataclass(frozen=True)
class ProbeSpec:
    kind: str
    """``http``, ``tcp`` or ``grpc``."""
    port: int
    path: str = "/"
    initial_delay_s: float = 0
    period_s: float = 10
    timeout_s: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3
    grace_s: float = 30

    @staticmethod
    def parse(spec: Object | None, local_port: Callable[[object], int]) -> ProbeSpec:
        """No probe is a TCP connect to the serving port, which is queue-proxy's default."""
        spec = spec or {"tcpSocket": {"port": "http"}, "periodSeconds": 1}
        if "httpGet" in spec:
            kind, action = "http", spec["httpGet"]
        elif "grpc" in spec:
            kind, action = "grpc", spec["grpc"]
        else:
            kind, action = "tcp", spec.get("tcpSocket") or {"port": "http"}
        return ProbeSpec(
            kind,
            local_port(action.get("port")),
            action.get("path", "/"),
            spec.get("initialDelaySeconds", 0),
            spec.get("periodSeconds", 10),
            spec.get("timeoutSeconds", 1),
            spec.get("successThreshold", 1),
            spec.get("failureThreshold", 3),
            spec.get("terminationGracePeriodSeconds", 30),
        )


async def probe(spec: ProbeSpec) -> str | None:
    """None when the probe succeeds, else why it failed."""
    try:
        async with asyncio.timeout(spec.timeout_s):
            if spec.kind == "http":
                return await _http(spec)
            _, writer = await asyncio.open_connection(HOST, spec.port)
            writer.close()
            return None
    except TimeoutError:
        return f"no answer within {spec.timeout_s:g}s"
    except OSError as error:
        return f"connect to {HOST}:{spec.port}: {error.strerror or error}"


async def _http(spec: ProbeSpec) -> str | None:
    reader, writer = await asyncio.open_connection(HOST, spec.port)
    try:
        head = (
            f"GET {spec.path} HTTP/1.1",
            f"Host: {HOST}:{spec.port}",
            "User-Agent: kube-probe/1.32",
            "Connection: close",
        )
        writer.write("\r\n".join([*head, "", ""]).encode())
        await writer.drain()
        line = await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    words = line.split()
    if len(words) < 2 or not words[1].isdigit():
        return f"not an HTTP answer: {line[:80]!r}"
    status = int(words[1])
    return None if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"
