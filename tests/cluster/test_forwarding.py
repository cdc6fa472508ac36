"""``kubectl port-forward`` kept up, with an executable in kubectl's place that listens where it says that it does."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from cluster.reach.forwarding import Forwarding
from cluster.reach.ingress import Ingress, Reachable
from harness.base.errors import ClusterError
from tests.helpers import wait_until

KUBECTL = """#!{python}
import os, socket, sys
state = {state!r}
open(state + "/pid", "w").write(str(os.getpid()))
open(state + "/calls", "a").write(" ".join(sys.argv[1:]) + chr(10))
if os.path.exists(state + "/refuse"):
    sys.exit('Error from server (NotFound): services "none" not found')
local, _, remote = sys.argv[-1].rpartition(":")
listener = socket.create_server(("127.0.0.1", int(local or 0)))
print(f"Forwarding from 127.0.0.1:{{listener.getsockname()[1]}} -> {{remote}}", flush=True)
while True:
    peer, _ = listener.accept()
    for _ in range(500):
        print("Handling connection for " + str(listener.getsockname()[1]), flush=True)
    peer.sendall(b"hello")
    peer.close()
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools, state = tmp_path / "tools", tmp_path / "state"
    tools.mkdir()
    state.mkdir()
    kubectl = tools / "kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable, state=str(state)))
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return state


def hello(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        return connection.recv(100)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_begins_again_at_the_same_port(tmp_path: Path, state: Path) -> None:
    """A pod that goes takes kubectl with it."""
    opened = Forwarding(tmp_path / "kubeconfig", "there", "ns", "service/ingress", 80)
    try:
        assert hello(opened.address) == b"hello"
        first = int((state / "pid").read_text())
        os.kill(first, signal.SIGKILL)

        def again() -> bool:
            try:
                return int((state / "pid").read_text()) != first and hello(opened.address) == b"hello"
            except (OSError, ValueError):
                return False

        wait_until(again, what="the port open again")
        calls = (state / "calls").read_text().splitlines()
        assert calls[0].endswith("--context there port-forward --address 127.0.0.1 -n ns service/ingress :80")
        assert calls[1].endswith(f"service/ingress {opened.address.rpartition(':')[2]}:80")
    finally:
        opened.close()
    assert not alive(int((state / "pid").read_text()))
    assert len((state / "calls").read_text().splitlines()) == 2, "what is closed is not begun again"


def test_what_kubectl_says_of_connections_is_read(tmp_path: Path, state: Path) -> None:
    """A pipe that nobody reads is full after 64 KiB, and kubectl stands still: here after five connections."""
    opened = Forwarding(tmp_path / "kubeconfig", None, "ns", "pod/model", 8080)
    try:
        assert [hello(opened.address) for _ in range(50)] == [b"hello"] * 50
        assert opened.said == ""
    finally:
        opened.close()


def test_what_cannot_be_forwarded_says_why(tmp_path: Path, state: Path) -> None:
    (state / "refuse").touch()
    before = threading.active_count()
    with pytest.raises(ClusterError, match=r"port-forward to service/none in ns did not start: .*NotFound"):
        Forwarding(tmp_path / "kubeconfig", None, "ns", "service/none", 80)
    assert threading.active_count() == before


def test_services_that_ask_at_once_share_one_ingress() -> None:
    opened = []

    class Cluster(Reachable):
        def _open_ingress(self) -> Ingress:
            opened.append(threading.get_ident())
            entered.wait(0.2)  # time for the others to come in, if they could
            return Ingress(f"127.0.0.1:{len(opened)}", "here")

    entered, cluster = threading.Event(), Cluster()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(cluster.ingress)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["127.0.0.1:1"] * 4
    assert len(opened) == 1
