"""What every provider gives: a kubeconfig, and how a service's host name is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.errors import UsageError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ClusterSpec:
    """What a scenario wants. ``directory`` is the provider's own; what it needs to remember lies there."""

    provider: str
    directory: Path
    api_port: int = 0
    ingress_port: int = 0
    mirrors: dict[str, str] = field(default_factory=dict)
    bookmark_s: float = 10.0
    """How often a quiet watch of the embedded API says where it stands."""
    hpa_period_s: float = 15.0
    """How often the embedded cluster's horizontal pod autoscaler decides."""


class Cluster(Protocol):
    """A cluster that is up; leaving it as a context manager takes down what ``up`` created."""

    @property
    def kubeconfig(self) -> Path: ...

    @property
    def ingress(self) -> str:
        """``host:port`` that takes requests for every service, told apart by the Host header."""
        ...

    @property
    def capabilities(self) -> frozenset[str]: ...

    def logs(self) -> str:
        """What the provider's own processes said, for when things go wrong."""
        ...

    def down(self) -> None: ...

    def __enter__(self) -> Cluster: ...

    def __exit__(self, *exc: object) -> None: ...


PROVIDERS = ("local",)


def up(spec: ClusterSpec) -> Cluster:
    """Raises UsageError for an unknown provider, ClusterError when the cluster does not come up."""
    if spec.provider == "local":
        from cluster.local.provider import LocalCluster

        return LocalCluster.start(spec)
    raise UsageError(f"unknown provider {spec.provider!r}; expected one of {', '.join(PROVIDERS)}")
