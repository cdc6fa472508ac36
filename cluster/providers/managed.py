"""Clusters that a command-line tool makes: kind, GKE, EKS and AKS.

What is about to be created is written down first; from that entry it is taken down, by whoever comes to it. Each
provider is four pure functions (create, delete, listing, listed) that give commands; here they are run.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from cluster import ledger
from cluster.commands import Command, Progress, numbered, require_tools, run
from cluster.install import node_port, plan_install
from cluster.model import PROVIDERS, Aks, Eks, Gke, Install, Kind, Made, Reach
from cluster.naming import labels
from cluster.providers import aks, eks, gke, kind
from cluster.reach.ingress import Ingress, Reachable, open_ingress
from harness.base.errors import ClusterError

_MODULES: dict[str, ModuleType] = {"kind": kind, "gke": gke, "eks": eks, "aks": aks}
_AUTHENTICATES = {"gke": "gke-gcloud-auth-plugin"}
"""Programs that a kubeconfig calls: without them all else works, and is paid for in vain."""


def _module(spec: Made) -> Any:
    return _MODULES[spec.provider]


def settle(spec: Made) -> Made:
    """With what is left to be chosen chosen: a free port for kind's ingress."""
    if isinstance(spec, Kind) and not spec.http_port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return spec.model_copy(update={"http_port": int(probe.getsockname()[1])})
    return spec


def plan_create(spec: Made, directory: Path, expires_s: float) -> list[Command]:
    """Every command that brings the cluster up, in order: pure, so that what is shown is what is run."""
    extra = spec.labels if isinstance(spec, Gke | Eks | Aks) else {}
    commands: list[Command] = list(_module(spec).create(spec, directory, labels(spec.name, extra, expires_s)))
    if spec.install is not None:
        commands += plan_install(spec.install, spec, directory / "kubeconfig")
    return commands


def _beside(spec: Made) -> list[Command]:
    return [Command((_AUTHENTICATES[spec.provider],), "authenticate")] if spec.provider in _AUTHENTICATES else []


def plan_delete(spec: Made, directory: Path) -> list[Command]:
    commands: list[Command] = list(_module(spec).delete(spec, directory))
    return commands


def spec_of(entry: ledger.Entry) -> Made:
    """Raises ClusterError for what an older or newer version wrote and this one does not understand."""
    try:
        spec = PROVIDERS[entry.provider].model_validate(entry.spec)
    except (KeyError, ValidationError) as error:
        raise ClusterError(
            f"{entry.key}: what was written down of it cannot be read: {error}; take it down by hand"
        ) from error
    assert isinstance(spec, Kind | Gke | Eks | Aks)
    return spec


def take_down(entry: ledger.Entry, progress: Progress = lambda line: None) -> None:
    """Deletes the cluster and then the entry. May be repeated. Raises ClusterError, and the entry stays."""
    spec = spec_of(entry)
    commands = plan_delete(spec, entry.directory)
    require_tools(commands)
    entry = ledger.mark(entry, "deleting")
    for command in commands:
        progress(command.does)
        # Not to be stopped: what is half deleted costs as much as what is not deleted.
        run(command, entry.log, threading.Event(), progress)
    ledger.forget(entry)


def strays(spec: Made) -> list[str]:
    """Names of clusters with our label that the ledger of this machine does not know. Raises ClusterError."""
    command = _module(spec).listing(spec)
    require_tools([command])
    output = run(command, ledger.state_directory() / "listing.log", threading.Event())
    known = {entry.name for entry in ledger.entries() if entry.provider == spec.provider}
    try:
        return [name for name in _module(spec).listed(spec, output) if name not in known]
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{command.shown()}: expected a list of clusters, got {output[:300]!r}") from error


@dataclass
class ManagedCluster(Reachable):
    """A cluster that was created here. Leaving it takes it down, unless it is kept."""

    spec: Made
    entry: ledger.Entry
    kept: bool

    @property
    def kubeconfig(self) -> Path:
        return self.entry.directory / "kubeconfig"

    def _open_ingress(self) -> Ingress:
        return open_ingress(self.kubeconfig, self.spec.reach, *_own_address(self.spec))

    def _reach(self) -> Reach:
        return self.spec.reach

    @property
    def capabilities(self) -> frozenset[str]:
        return capabilities(self.spec)

    def logs(self) -> str:
        try:
            return self.entry.log.read_text(errors="replace")
        except OSError:
            return ""

    @classmethod
    def create(cls, spec: Made, stop: threading.Event, progress: Progress, *, keep: bool) -> ManagedCluster:
        """Raises ClusterError, after having taken down what was created."""
        spec = settle(spec)
        entry = ledger.begin(
            spec.provider, spec.name, spec.model_dump(mode="json", exclude_none=True), spec.ttl, kept=keep
        )
        commands = plan_create(spec, entry.directory, entry.expires_s)
        try:
            require_tools([*commands, *_beside(spec)])
        except BaseException:
            ledger.forget(entry)  # nothing was begun
            raise
        try:
            for command in numbered(commands, progress):
                run(command, entry.log, stop, progress)
                _protect(entry.directory / "kubeconfig")
            entry = ledger.mark(entry, "up")
        except BaseException as error:
            _after_failure(entry, error, progress)
            raise
        return cls(spec, entry, keep)

    @classmethod
    def find(cls, key: str) -> ManagedCluster | None:
        """A cluster that another command made and kept."""
        entry = ledger.find(key)
        return None if entry is None else cls(spec_of(entry), entry, True)

    def down(self) -> None:
        """Raises ClusterError that says what is still there."""
        self._close_ingress()
        if not self.kept:
            take_down(self.entry)

    def __enter__(self) -> ManagedCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()


def _after_failure(entry: ledger.Entry, error: BaseException, progress: Progress) -> None:
    progress("taking down what was created")
    try:
        take_down(entry, progress)
    except ClusterError as second:
        raise ClusterError(
            f"{error}\nand it could not be taken down again: {second}\n"
            f"it may cost money; repeat: servecert cluster down {entry.key}"
        ) from error


def _protect(kubeconfig: Path) -> None:
    if kubeconfig.exists():
        kubeconfig.chmod(0o600)


def _own_address(spec: Made) -> tuple[str, str]:
    """Where the provider itself has put the ingress, and where pods find it; empty where the cluster has to be
    asked."""
    if not isinstance(spec, Kind):
        return "", ""
    install = spec.install or Install.model_validate({})
    namespace = node_port(install)["metadata"]["namespace"]
    return f"127.0.0.1:{spec.http_port}", f"servecert-ingress.{namespace}.svc.cluster.local:80"


def capabilities(spec: Made) -> frozenset[str]:
    """What scenarios may ask of it."""
    found = {"inferenceservice", "rolling-update", "canary", "standard", "nodes"}
    if spec.install is None or spec.install.mode == "Knative":
        found.add("scale-to-zero")
    if isinstance(spec, Gke | Eks | Aks):
        found.add("node-autoscaling")
        if spec.gpu:
            found.add("gpu")
            if spec.gpu.mig:
                found.add("mig")
    return frozenset(found)
