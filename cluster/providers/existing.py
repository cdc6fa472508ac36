"""A cluster that is there already: nothing of it is created or taken down here but what ``install`` asks for."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.commands import Progress, numbered, require_tools, run
from cluster.install import plan_install
from cluster.model import Existing, Reach
from cluster.reach.ingress import Ingress, Reachable, open_ingress
from harness.base.errors import ClusterError, UsageError
from harness.base.files import write_atomic
from harness.kubernetes.kube import Kube

Object = dict[str, Any]
_FILES = {
    "clusters": ("cluster", ("certificate-authority",)),
    "users": ("user", ("client-certificate", "client-key", "tokenFile")),
}


def kubeconfig_files(given: Path | None) -> list[Path]:
    """As kubectl looks for them."""
    if given is not None:
        return [given.expanduser()]
    if listed := os.environ.get("KUBECONFIG"):
        return [Path(part).expanduser() for part in listed.split(os.pathsep) if part]
    return [Path.home() / ".kube" / "config"]


def minified(files: list[Path], context: str | None) -> Object:
    """One kubeconfig with one context, its files named absolutely. Of two entries of one name the first holds, as with
    kubectl. Raises UsageError."""
    merged: Object = {"clusters": {}, "users": {}, "contexts": {}}
    current = ""
    read = 0
    for path in files:
        if not path.exists() and len(files) > 1:
            continue  # kubectl does not mind either
        try:
            data = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"cannot read the kubeconfig {path}: {error}") from error
        if not isinstance(data, dict):
            raise UsageError(f"{path}: expected a kubeconfig, got {type(data).__name__}")
        read += 1
        current = current or str(data.get("current-context") or "")
        for kind in merged:
            for item in data.get(kind) or []:
                if kind in _FILES:
                    key, fields = _FILES[kind]
                    held = dict(item.get(key) or {})
                    for name in fields:
                        if held.get(name):
                            held[name] = str((path.parent / held[name]).resolve())
                    item = {**item, key: held}
                merged[kind].setdefault(item["name"], item)
    if not read:
        raise UsageError(f"no kubeconfig at {', '.join(map(str, files))}; give cluster.kubeconfig or set KUBECONFIG")
    name = context or current
    if name not in merged["contexts"]:
        known = ", ".join(merged["contexts"]) or "none"
        raise UsageError(f"no context {name!r} in {', '.join(map(str, files))}; there are {known}")
    chosen = merged["contexts"][name]
    result: Object = {"apiVersion": "v1", "kind": "Config", "current-context": name, "contexts": [chosen]}
    for kind, key in (("clusters", "cluster"), ("users", "user")):
        wanted = chosen["context"].get(key)
        if wanted not in merged[kind]:
            raise UsageError(f"context {name!r} names {key} {wanted!r}, which is not in the kubeconfig")
        result[kind] = [merged[kind][wanted]]
    return result


def write_kubeconfig(spec: Existing, directory: Path) -> Path:
    """The chosen context alone, for its owner only. Raises UsageError."""
    path = directory / "kubeconfig"
    text = yaml.safe_dump(minified(kubeconfig_files(spec.kubeconfig), spec.context), sort_keys=False)
    write_atomic(path, text, 0o600)
    return path


@dataclass
class ExistingCluster(Reachable):
    spec: Existing
    kubeconfig: Path
    log: Path

    @classmethod
    def open(cls, spec: Existing, directory: Path, stop: threading.Event, progress: Progress) -> ExistingCluster:
        """Raises UsageError for a kubeconfig or context that is none, ClusterError for an API that does not answer."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = directory / "commands.log"
        kubeconfig = write_kubeconfig(spec, directory)
        progress("asking the Kubernetes API")
        Kube(kubeconfig).version()
        if spec.install is not None:
            commands = plan_install(spec.install, spec, kubeconfig)
            require_tools(commands)
            for command in numbered(commands, progress):
                run(command, log, stop, progress)
        if stop.is_set():
            raise ClusterError("stopped before the cluster was used")
        return cls(spec, kubeconfig, log)

    def _open_ingress(self) -> Ingress:
        return open_ingress(self.kubeconfig, self.spec.reach)

    def _reach(self) -> Reach:
        return self.spec.reach

    @property
    def capabilities(self) -> frozenset[str]:
        kube = Kube(self.kubeconfig)
        found = {"rolling-update", "canary", "standard"}
        if kube.serves("serving.kserve.io/v1beta1", "inferenceservices"):
            found.add("inferenceservice")
        if kube.serves("serving.knative.dev/v1", "services"):
            found.add("scale-to-zero")
        nodes = kube.list("v1", "nodes")
        if nodes:
            found.add("nodes")
        if any(
            key.startswith("nvidia.com/") for node in nodes for key in (node.get("status") or {}).get("allocatable", {})
        ):
            found.add("gpu")
        return frozenset(found)

    def logs(self) -> str:
        try:
            return self.log.read_text(errors="replace")
        except OSError:
            return ""

    def down(self) -> None:
        """Closes what was opened here; the cluster stays."""
        self._close_ingress()

    def __enter__(self) -> ExistingCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()
