"""``kubectl port-forward``, kept up: it ends when its pod does, or takes no connection, and is then begun again at the
same local port.

It goes through the API server, so it is no measure of latency.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections import deque
from pathlib import Path

from cluster.commands import Command, require_tools, with_parent
from harness.base.errors import ClusterError

START_S = 20.0
AGAIN_S = 0.5
"""Between two tries to begin again."""


class Forwarding:
    """``address`` is HOST:PORT of this machine, and leads to a port of ``service/NAME`` or ``pod/NAME``."""

    def __init__(self, kubeconfig: Path, context: str | None, namespace: str, target: str, port: int) -> None:
        """Returns when connections are taken. Raises ClusterError with what kubectl said."""
        self.target, self.namespace = target, namespace
        self._command = ["kubectl", "--kubeconfig", str(kubeconfig)]
        if context:
            self._command += ["--context", context]
        self._command += ["port-forward", "--address", "127.0.0.1", "-n", namespace, target]
        self._port = port
        require_tools([Command((*self._command, f":{port}"), "forward a port")])
        self.address = ""
        self._said: deque[str] = deque(maxlen=5)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._open, self._closed = threading.Event(), threading.Event()
        # The kernel ends kubectl with the thread that began it: one thread begins, reads and begins again.
        self._thread = threading.Thread(target=self._keep, name=f"forward {target}", daemon=True)
        self._thread.start()
        self._open.wait(START_S)
        if not self.address:
            self.close()
            raise ClusterError(f"kubectl port-forward to {target} in {namespace} did not start: {self.said[-500:]}")

    @property
    def said(self) -> str:
        """The last lines of kubectl that tell of more than a connection."""
        return "\n".join(self._said)

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(10)

    def _keep(self) -> None:
        while not self._closed.is_set():
            self._once()
            if not self.address:
                break
            self._closed.wait(AGAIN_S)
        self._open.set()

    def _once(self) -> None:
        """From a beginning of kubectl to its end."""
        local = self.address.rpartition(":")[2]
        command = [*self._command, f"{local}:{self._port}"]
        with self._lock:
            if self._closed.is_set():
                return
            process = self._process = subprocess.Popen(
                with_parent([shutil.which(command[0]) or command[0], *command[1:]]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
                errors="replace",
            )
        assert process.stdout is not None
        with contextlib.closing(process.stdout):
            # To its end: kubectl says a line for each connection, and stops where nobody reads.
            for line in process.stdout:
                if line.startswith("Forwarding from 127.0.0.1:") and "->" in line:
                    self.address = line.removeprefix("Forwarding from ").split(" ")[0]
                    self._open.set()
                elif not line.startswith("Handling connection"):
                    self._said.append(line.strip())
        process.wait()
