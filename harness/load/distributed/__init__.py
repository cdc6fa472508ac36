"""Load from several machines: Locust's master and workers carry this engine, and every row comes back.

Locust finds the workers, watches over them and spawns one user on each; that user is a whole generator. ``fleet`` is
the asynchronous side that the suites use, ``master`` the process that speaks to Locust's workers, and ``locustfile``
what those workers run.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

DEFAULT_PORT = 5557
PARENT_VARIABLE = "SERVECERT_WORKER_PARENT"
"""A worker ends with the process of this number, where one is named."""
MESSAGES_VERSION = 3
"""Of what master and workers tell each other; both must have the same."""


@dataclass(frozen=True)
class Address:
    """Where the master listens, and how many workers it waits for. ``in_cluster``: it is started there, as are they."""

    host: str
    port: int = DEFAULT_PORT
    expect: int = 1
    wait_s: float = 120.0
    in_cluster: bool = False

    @staticmethod
    def parse(url: str) -> Address:
        """``locust://HOST[:PORT][?expect=N&wait=SECONDS]``, or ``cluster://?expect=N``. Raises ValueError."""
        wanted = (
            "expected locust://HOST:PORT?expect=N, such as locust://127.0.0.1:5557?expect=2, or cluster://?expect=N"
        )
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
        try:
            port = DEFAULT_PORT if parts.port is None else parts.port
            expect = int(query.pop("expect", ["1"])[-1])
            wait_s = float(query.pop("wait", ["120"])[-1])
        except ValueError as error:
            raise ValueError(f"{wanted}, got {url!r}") from error
        in_cluster = parts.scheme == "cluster"
        if (
            parts.scheme not in ("locust", "cluster")
            or bool(parts.netloc) is in_cluster
            or (not in_cluster and not parts.hostname)
            or query
            or parts.path.strip("/")
            or expect < 1
            or not wait_s > 0
        ):
            raise ValueError(f"{wanted}, got {url!r}")
        return Address(parts.hostname or "", port, expect, wait_s, in_cluster)
