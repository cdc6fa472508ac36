"""Starts, finds and ends the embedded cluster's process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from cluster.processes import start_ticks
from harness.base.errors import ClusterError
from harness.base.tls import Tls

UP_S = 20.0
DOWN_S = 15.0


@dataclass(frozen=True)
class LocalSpec:
    """``directory`` is the cluster's own: its certificates, state and log lie there. Port 0 takes a free one."""

    directory: Path
    api_port: int = 0
    ingress_port: int = 0
    mirrors: dict[str, str] = field(default_factory=dict)
    bookmark_s: float = 10.0
    """How often a quiet watch of the API says where it stands."""
    hpa_period_s: float = 15.0
    """How often the horizontal pod autoscaler decides."""


@dataclass
class LocalCluster:
    """``process`` is None for a cluster that another command started and that outlives this one."""

    directory: Path
    state: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    _lifeline: int = -1

    # The provider protocol

    @property
    def kubeconfig(self) -> Path:
        return Path(self.state["kubeconfig"])

    @property
    def ingress(self) -> str:
        return str(self.state["ingress"])

    @property
    def inside(self) -> str:
        return self.ingress

    @property
    def tls(self) -> Tls | None:
        return None

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"inferenceservice", "rolling-update", "canary", "scale-to-zero", "standard"})

    def logs(self) -> str:
        return _read(self.directory / "cluster.log")

    def down(self) -> None:
        """Ends the cluster and every process in it, and removes its directory."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(DOWN_S)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its pods notice and end with it
                self.process.wait()
        else:
            _end(self.state)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    # Coming up

    @staticmethod
    def start(spec: LocalSpec, *, detached: bool = False) -> LocalCluster:
        """Attached, the cluster ends with this process, however that ends. Raises ClusterError."""
        directory = spec.directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            log = (directory / "cluster.log").open("wb")
        except OSError as error:
            raise ClusterError(f"cannot write {directory}: {error.strerror}; choose another directory") from error
        command = [sys.executable, "-m", "cluster.local.daemon", "--directory", str(directory)]
        command += ["--api-port", str(spec.api_port), "--ingress-port", str(spec.ingress_port)]
        command += ["--mirrors", json.dumps(spec.mirrors), "--bookmark-seconds", str(spec.bookmark_s)]
        command += ["--hpa-period", str(spec.hpa_period_s)]
        lifeline = -1
        with log:
            if detached:
                process = _spawn(command, log, ())
            else:
                read_end, lifeline = os.pipe2(os.O_CLOEXEC)
                process = _spawn([*command, "--parent-fd", str(read_end), "--ephemeral"], log, (read_end,))
                os.close(read_end)
        cluster = LocalCluster(directory, {}, process, lifeline)
        try:
            cluster.state = _await_state(directory, process)
        except BaseException:
            cluster.down()
            raise
        return cluster

    @staticmethod
    def find(directory: Path) -> LocalCluster | None:
        """A cluster that is running from ``directory``; what a dead one left there is removed."""
        try:
            state = json.loads((directory / "cluster.json").read_text())
        except (OSError, ValueError):
            return None
        if _alive(state) is None:
            shutil.rmtree(directory, ignore_errors=True)
            return None
        return LocalCluster(directory, state)


def _spawn(command: list[str], log: IO[bytes], keep: tuple[int, ...]) -> subprocess.Popen[bytes]:
    # A session of its own: a Ctrl-C in the terminal is for the harness, which then takes the cluster down in order.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=keep, start_new_session=True
    )


def _await_state(directory: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + UP_S
    path = directory / "cluster.json"
    while time.monotonic() < deadline:
        if path.exists():
            state: dict[str, Any] = json.loads(path.read_text())
            return state
        if process.poll() is not None:
            words = _read(directory / "cluster.log").strip()
            raise ClusterError(f"the embedded cluster ended with exit code {process.returncode}: {words[-2000:]}")
        time.sleep(0.01)
    raise ClusterError(f"the embedded cluster was not up within {UP_S:g} s: {_read(directory / 'cluster.log')[-2000:]}")


def _alive(state: dict[str, Any]) -> psutil.Process | None:
    """The cluster's process, unless its number now belongs to another one."""
    with contextlib.suppress(psutil.Error, OSError, KeyError, TypeError, ValueError):
        process = psutil.Process(int(state["pid"]))
        if start_ticks(process.pid) == int(state["start_ticks"]) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _end(state: dict[str, Any]) -> None:
    process = _alive(state)
    if process is None:
        return
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DOWN_S)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(DOWN_S)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
