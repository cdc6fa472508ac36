"""What several tests need: waiting on conditions, real server processes, and servers that misbehave on purpose."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from harness.target.protocol.messages import MESSAGES, SERVICE

ROOT = Path(__file__).resolve().parent.parent
SERVECERT = [sys.executable, "-m", "harness.cli"]


def wait_until(condition: Callable[[], Any], within_s: float = 20.0, what: str = "the condition") -> Any:
    """The first true value of ``condition``; fails the test after ``within_s``."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not hold within {within_s:g} s; last value: {value!r}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tool(name: str) -> str:
    """The path of a program; its absence skips, and fails where everything must be there (CI)."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("SERVECERT_REQUIRE_TOOLS"):
            pytest.fail(f"{name} is not installed, and SERVECERT_REQUIRE_TOOLS is set")
        pytest.skip(f"{name} is not installed")
    return path


def servecert(*arguments: str, timeout_s: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SERVECERT, *arguments], capture_output=True, text=True, timeout=timeout_s, cwd=ROOT, check=False, **options
    )


def servecert_undisturbed(*arguments: str, out: Path, attempts: int = 4) -> subprocess.CompletedProcess[str]:
    """A command that loads, with ``--out``: once more where it says that this machine, busy with other things, moved
    its percentiles. Saying so is right, and no more than that is wrong with it."""
    for _ in range(attempts):
        shutil.rmtree(out, ignore_errors=True)
        result = servecert(*arguments, "--out", str(out))
        if result.returncode == 0 or "generator-bound" not in result.stderr:
            break
    return result


@contextlib.contextmanager
def load_workers(port: int, count: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    command = [*SERVECERT, "worker", f"locust://127.0.0.1:{port}"]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)
        wait_until(lambda: not processes_mentioning(f"--master-port {port}"), what="the end of all workers")


def processes_mentioning(text: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if text in command and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process.pid)
    return found


@dataclass
class Reference:
    """A reference server that runs as a process of its own."""

    process: subprocess.Popen[str]
    http_port: int
    grpc_port: int
    model: str = "identity"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


@contextlib.contextmanager
def reference_server(
    artifacts: Path, model: str = "identity", mutant: str = "", arguments: Sequence[str] = ()
) -> Iterator[Reference]:
    """``mutant`` makes it wrong in one way (tests/faults/mutants.py)."""
    module = ["tests.faults.mutants", mutant] if mutant else ["runtimes.reference"]
    command = [sys.executable, "-m", *module, "--model", f"{model}={artifacts}"]
    with subprocess.Popen(
        [*command, "--http-port", "0", "--grpc-port", "0", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            # "reference 1.0.0 listens on 127.0.0.1: http 40001, grpc 40002"
            words = line.replace(",", "").split()
            assert "http" in words, f"unexpected first line {line!r}"
            yield Reference(process, int(words[words.index("http") + 1]), int(words[words.index("grpc") + 1]), model)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.asynccontextmanager
async def grpc_server(method: str, handler: Callable[..., Any]) -> AsyncIterator[str]:
    """Its address; ``handler`` answers one method of the protocol, a generator a stream of requests."""
    streamed = inspect.isasyncgenfunction(handler)
    made = grpc.stream_stream_rpc_method_handler if streamed else grpc.unary_unary_rpc_method_handler
    request = "ModelInferRequest" if streamed else f"{method}Request"
    rpc = made(
        handler,
        request_deserializer=MESSAGES[request].FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {method: rpc}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.contextmanager
def scripted_server(answer: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """A TCP server on loopback that gives each connection to ``answer`` with what was received first."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            answer(connection, connection.recv(1 << 16))

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def read_request(connection: socket.socket, data: bytes) -> tuple[str, bytes]:
    """Path and body of one request with a Content-Length, of which ``data`` was received already."""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(headers.get(b"content-length", 0)):
        body += connection.recv(65536)
    return head.split(b" ")[1].decode(), body


def stop(process: subprocess.Popen[Any], number: int = signal.SIGTERM, within_s: float = 20) -> int:
    if process.poll() is None:
        process.send_signal(number)
    return int(process.wait(within_s))
