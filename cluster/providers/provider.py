"""What every provider gives: a kubeconfig, and how a service's host name is reached."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cluster.model import ClusterChoice, Existing, Local
from harness.base.tls import Tls

Progress = Callable[[str], None]


class Cluster(Protocol):
    """A cluster that is up; leaving it as a context manager takes down what ``up`` created."""

    @property
    def kubeconfig(self) -> Path: ...

    @property
    def ingress(self) -> str:
        """``host:port`` that takes requests for every service, told apart by the Host header."""
        ...

    @property
    def inside(self) -> str:
        """The same as pods of the cluster have it; empty where that is not known."""
        ...

    @property
    def tls(self) -> Tls | None:
        """How the ingress proves who it is; None where it speaks plainly."""
        ...

    @property
    def capabilities(self) -> frozenset[str]: ...

    def logs(self) -> str:
        """What the provider's own processes said, for when things go wrong."""
        ...

    def down(self) -> None: ...

    def __enter__(self) -> Cluster: ...

    def __exit__(self, *exc: object) -> None: ...


def up(
    choice: ClusterChoice,
    directory: Path,
    stop: threading.Event | None = None,
    progress: Progress = lambda line: None,
    *,
    keep: bool = False,
) -> Cluster:
    """A cluster of the chosen kind. ``directory`` is this run's own: what is not to outlive it lies there. ``keep``
    means that the cluster is to outlive this process. With ``stop`` set, what was begun is taken down again.

    Raises ClusterError when the cluster does not come up; nothing of it is left then that the ledger does not name.
    """
    stop = stop or threading.Event()
    match choice:
        case Local():
            from cluster.local.provider import LocalCluster, LocalSpec

            return LocalCluster.start(LocalSpec(directory), detached=keep)
        case Existing():
            from cluster.providers.existing import ExistingCluster

            return ExistingCluster.open(choice, directory, stop, progress)
        case _:
            from cluster.providers.managed import ManagedCluster

            return ManagedCluster.create(choice, stop, progress, keep=keep)
