"""A served model as the suites see it: where it is, what it is called, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.base.errors import UsageError
from harness.base.tls import Tls
from harness.results.records import Deviation
from harness.target.protocol.grpc_client import GrpcClient
from harness.target.protocol.rest import RestClient
from harness.target.protocol.tensors import Tensor


@dataclass(frozen=True)
class Endpoint:
    """``host`` is the name to ask for where the address is an ingress; empty: the address itself."""

    service: str
    runtime: str
    url: str
    model: str
    host: str = ""
    grpc_address: str = ""
    inside: str = ""
    """HOST:PORT at which pods of the cluster reach the ingress; empty where that is not known."""
    tls: Tls | None = None
    """Whom to trust where TLS is spoken, which an ``https`` URL says; None trusts the system's certificates."""
    grpc_tls: bool = False
    golden: Path | None = None
    payload: tuple[Tensor, ...] = ()
    mix: tuple[tuple[tuple[Tensor, ...], float], ...] = ()
    """Several payloads and how often each is sent, for load."""
    chat: tuple[dict[str, Any], ...] = ()
    """Chat completion requests, for load on the OpenAI API."""
    metrics_path: str = "/metrics"
    """Where the server speaks to Prometheus: a path, or a whole URL where that is another port."""
    deviations: dict[str, Deviation] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def rest(self, timeout_s: float | None = None) -> RestClient:
        """``timeout_s`` for a whole exchange; the client's own by default."""
        given = {} if timeout_s is None else {"timeout_s": timeout_s}
        return RestClient(self.url, self.model, host=self.host, ca=self.trusted(), **given)

    def grpc(self, timeout_s: float | None = None) -> GrpcClient:
        given = {} if timeout_s is None else {"timeout_s": timeout_s}
        ca = self.trusted() if self.grpc_tls else None
        return GrpcClient(self.grpc_address, self.model, authority=self.host, ca=ca, **given)

    def trusted(self) -> str:
        """The certificates to trust where TLS is spoken, as PEM; empty for the system's."""
        return self.tls.trusted() if self.tls else ""


def check_url(url: str) -> str:
    """A base URL without a trailing slash. Raises UsageError."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is none, a bracket that is not closed
        fits = False
    if not fits:
        raise UsageError(f"expected a URL such as http://127.0.0.1:8080, got {url!r}")
    return url.rstrip("/")
