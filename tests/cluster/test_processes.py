"""Nothing outlives the cluster: not after a clean end, not after SIGKILL of any part of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes import client, config

from cluster.local.provider import LocalCluster, LocalSpec
from harness.base.errors import ClusterError
from runtimes.catalog import BuiltModel
from tests.cluster.conftest import isvc_manifest, ready_isvc
from tests.helpers import ROOT, free_port, processes_mentioning, servecert, wait_until

HOLDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from cluster.local.provider import LocalCluster, LocalSpec
    cluster = LocalCluster.start(LocalSpec(Path(sys.argv[1])))
    print(cluster.kubeconfig, flush=True)
    time.sleep(600)
    """
)


def _serve(kubeconfig: str, identity: BuiltModel) -> None:
    custom = client.CustomObjectsApi(config.new_client_from_config(kubeconfig))
    manifest = isvc_manifest("kept", "default", f"file://{identity.artifacts}")
    custom.create_namespaced_custom_object("serving.kserve.io", "v1beta1", "default", "inferenceservices", manifest)
    ready_isvc(custom, "default", "kept")


@contextlib.contextmanager
def _holder(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A harness that holds a cluster, as ``servecert run`` does."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_sigkill_of_the_harness_leaves_nothing_behind(tmp_path: Path, identity: BuiltModel) -> None:
    directory = tmp_path / "killed"
    with _holder(directory) as (process, kubeconfig):
        _serve(kubeconfig, identity)
        assert len(processes_mentioning(str(directory))) >= 3, "the cluster, a shim and the model server run"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not processes_mentioning(str(directory)), 10, "the end of every process")
    wait_until(lambda: not directory.exists(), 10, "the end of the cluster's directory")


def test_sigkill_of_the_cluster_takes_its_pods_along(tmp_path: Path, identity: BuiltModel) -> None:
    directory = tmp_path / "headless"
    with _holder(directory) as (_, kubeconfig):
        _serve(kubeconfig, identity)
        state = json.loads((directory / "cluster.json").read_text())
        os.kill(state["pid"], signal.SIGKILL)

        def servers() -> list[int]:
            return [pid for pid in processes_mentioning(str(directory)) if "-c" not in _command(pid)]

        wait_until(lambda: not servers(), 10, "the end of the pods")


def _command(pid: int) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []


def test_clean_end_leaves_neither_processes_nor_files_nor_ports(tmp_path: Path, identity: BuiltModel) -> None:
    directory = tmp_path / "clean"
    with LocalCluster.start(LocalSpec(directory)) as running:
        _serve(str(running.kubeconfig), identity)
        ingress = running.ingress
    assert not processes_mentioning(str(directory))
    assert not directory.exists()
    host, _, port = ingress.rpartition(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


def test_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match="in use"):
            LocalCluster.start(LocalSpec(tmp_path / "c", ingress_port=port))


def test_unwritable_directory_is_named() -> None:
    with pytest.raises(ClusterError, match="/proc/servecert"):
        LocalCluster.start(LocalSpec(Path("/proc/servecert")))


def test_cluster_commands(tmp_path: Path) -> None:
    environment = {**os.environ, "SERVECERT_CACHE": str(tmp_path / "cache")}

    def call(*arguments: str) -> Any:
        return servecert("cluster", *arguments, env=environment)

    assert call("status").returncode == 1
    port = free_port()
    up = call("up", "--provider", "local", "--ingress-port", str(port))
    try:
        assert up.returncode == 0, up.stderr
        assert up.stdout.startswith("export KUBECONFIG=")
        assert f"127.0.0.1:{port}" in up.stdout
        again = call("up", "--json", "-")
        assert again.returncode == 0
        assert json.loads(again.stdout)["ingress"] == f"127.0.0.1:{port}", "the running cluster is found, not doubled"
        assert json.loads(call("status", "--json", "-").stdout)["up"] is True
        other = call("up", "--ingress-port", str(free_port()))
        assert other.returncode == 3
        assert "already up" in other.stderr
    finally:
        down = call("down")
    assert down.returncode == 0
    assert call("status").returncode == 1
    assert not processes_mentioning(str(tmp_path))
    assert call("up", "--provider", "moon").returncode == 2
