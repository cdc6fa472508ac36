"""The load engine beside its peers, in one run on one machine: ``python benchmarks/loadgen.py``.

Everything is measured in turn, several rounds, with each client pinned to the first processor and the server to the
last; the table has medians and ratios. Peers that are not installed are named as such. Traffic goes to loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import grpc
import numpy as np

from benchmarks.peers import CLIENT, PACED, PEERS, wrk_at
from harness.base.protocols import Protocol
from harness.load.arrivals import due_times, steady
from harness.load.job import Job, Request
from harness.load.runner import StageResult, run_stage
from harness.results.stats import percentile, summarize
from harness.target.protocol.grpc_client import infer_request
from harness.target.protocol.messages import SERVICE
from harness.target.protocol.tensors import Tensor

SERVER = (os.cpu_count() or 1) - 1
SMALL = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[5.1,3.5,1.4,0.2]}]}'
ANSWER = '{"model_name":"m","outputs":[{"name":"y","datatype":"INT64","shape":[1,1],"data":[0]}],"pad":"%s"}'
LARGE = bytes(602_112)

GRPC_ECHO = """
import asyncio, sys, grpc
async def main():
    server = grpc.aio.server()
    async def infer(request, context):
        return request
    handler = grpc.unary_unary_rpc_method_handler(infer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(sys.argv[1], {'ModelInfer': handler}),))
    port = server.add_insecure_port('127.0.0.1:0')
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()
asyncio.run(main())
"""

STALL_RATE, SERVICE_S, STALL_S, PERIOD_S = 200.0, 0.005, 1.0, 10.0
STALLING = """
import heapq, select, socket, struct, sys, time
STAMP = 35  # SO_TIMESTAMPNS
service, stall, period = (int(float(text) * 1e9) for text in sys.argv[1:4])
listener = socket.create_server(('127.0.0.1', 0), backlog=1024)
listener.setblocking(False)
begun = time.monotonic_ns()
print(listener.getsockname()[1], begun, flush=True)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
sockets, parts, due, number = {}, {}, [], 0
ANSWER = b'HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}'
while True:  # never sleeps: how late it wakes up must not be in what it is the measure of
    now = time.monotonic_ns()
    while due and due[0][0] <= now:
        connection = heapq.heappop(due)[2]
        if connection in sockets:
            sockets[connection].send(ANSWER)
    for descriptor, _ in poll.poll(0):
        if descriptor == listener.fileno():
            one, _ = listener.accept()
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.SOL_SOCKET, STAMP, 1)
            sockets[one.fileno()], parts[one.fileno()] = one, b''
            poll.register(one, select.EPOLLIN)
            continue
        try:
            data, words, _, _ = sockets[descriptor].recvmsg(65536, 128)
        except OSError:
            data = b''
        if not data:
            sockets.pop(descriptor).close()
            continue
        parts[descriptor] += data
        head, end, body = parts[descriptor].partition(b'\\r\\n\\r\\n')
        length = int(head.lower().partition(b'content-length:')[2].split(b'\\r\\n')[0] or 0) if end else 1
        if not end or len(body) < length:
            continue
        parts[descriptor] = b''
        arrived = time.monotonic_ns()
        for level, kind, stamp in words:  # service begins when the kernel has the request, not when Python does
            if level == socket.SOL_SOCKET and kind == STAMP:
                seconds, nanoseconds = struct.unpack('qq', stamp[:16])
                arrived -= max(0, time.time_ns() - seconds * 10**9 - nanoseconds)
        into = (arrived - begun) % period
        ready = arrived + service
        if into >= period - stall:
            ready += period - into
        elif into + service > period - stall:
            ready += stall
        number += 1
        heapq.heappush(due, (ready, number, descriptor))
"""


@contextlib.contextmanager
def stalling_server(stall_s: float = 1.0) -> Iterator[tuple[int, int]]:
    """Its port, and the moment from which its periods count (``time.monotonic_ns``)."""
    times = [str(value) for value in (SERVICE_S, stall_s, PERIOD_S)]
    command = ["taskset", "-c", str(SERVER), sys.executable, "-c", STALLING, *times]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port, begun_ns = map(int, server.stdout.readline().split())
            yield port, begun_ns
        finally:
            server.terminate()


AWAKE = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    pass
"""


@contextlib.contextmanager
def awake(processor: int) -> Iterator[None]:
    """A loop of the lowest priority keeps a processor from sleeping: how long a virtual one takes to wake up is not
    what is measured. Whatever else wants to run takes its place at once."""
    with subprocess.Popen([sys.executable, "-c", AWAKE, str(processor)]) as loop:
        try:
            yield
        finally:
            loop.kill()


@contextlib.contextmanager
def nginx(paths: str = "") -> Iterator[int]:
    """``paths`` are its locations; by default one answer to whatever is asked."""
    program = shutil.which("nginx")
    if program is None:
        raise SystemExit("nginx is needed: it answers faster than any client asks")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    answer = ANSWER % ("0" * (160 - len(ANSWER) + 2))
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "nginx.conf"
        config.write_text(
            f"""
            worker_processes 1; daemon off; pid {name}/pid; error_log {name}/error.log;
            events {{ worker_connections 1024; }}
            http {{
              access_log off; keepalive_requests 1000000000; default_type application/json;
              client_max_body_size 2m; client_body_buffer_size 2m; client_body_temp_path {name}/body;
              server {{ listen 127.0.0.1:{port}; {paths or f"location / {{ return 200 '{answer}'; }}"} }}
            }}
            """
        )
        server = subprocess.Popen(["taskset", "-c", str(SERVER), program, "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                    break
                time.sleep(0.02)
            yield port
        finally:
            server.terminate()
            server.wait(10)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """What is started meanwhile runs on the client's processor."""
    os.sched_setaffinity(0, {CLIENT})
    try:
        yield
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def stage(
    port: int,
    seconds: float,
    body: bytes = SMALL,
    rate: float | None = None,
    protocol: Protocol = "rest",
    **fields: int,
) -> StageResult:
    kind = "application/json" if body is SMALL else "application/octet-stream"
    target = f"/{SERVICE}/ModelInfer" if protocol == "grpc" else "/v2/models/m/infer"
    request = Request(target, {"Content-Type": kind}, "body")
    length_s = 0.0 if rate else seconds + 0.5
    authority = f"127.0.0.1:{port}"
    job = Job(protocol, "127.0.0.1", port, authority, (request,), check_every=1000, duration_s=length_s, **fields)  # type: ignore[arg-type]
    due = due_times("poisson", steady(rate, seconds), seed=1) if rate else None
    with pinned():
        return asyncio.run(run_stage(job, [body], due, lambda progress: None))


def completed(result: StageResult, seconds: float) -> float:
    done = result.columns["done_ns"] / 1e9
    if result.columns["error"].any():
        raise SystemExit(f"errors while measuring: {np.bincount(result.columns['error'])}")
    return float(((done >= 0.5) & (done < 0.5 + seconds) & (result.columns["error"] == 0)).sum() / seconds)


class Table:
    """Figures by name over the rounds."""

    def __init__(self) -> None:
        self.figures: dict[str, list[float]] = {}

    def add(self, name: str, value: float | None) -> None:
        if value is not None:
            self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        return statistics.median(self.figures[name]) if name in self.figures else None

    def show(self, title: str, names: list[str], ours: str) -> None:
        print(f"\n| {title} | requests a second | servecert is × as fast |\n|---|---|---|")
        mine = self.median(ours)
        for name in names:
            value = self.median(name)
            if value is None or mine is None:
                print(f"| {name} | not installed | |")
            else:
                print(f"| {name} | {value:,.0f} | {'' if name == ours else f'{mine / value:.2f}'} |")


def http_round(table: Table, port: int, seconds: int) -> None:
    url = f"http://127.0.0.1:{port}/v2/models/m/infer"
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small.json", Path(name) / "large.bin"
        small.write_bytes(SMALL)
        large.write_bytes(LARGE)
        table.add("servecert", completed(stage(port, seconds, concurrency=16), seconds))
        for peer, measure in PEERS.items():
            table.add(peer, measure(url, small, "application/json", 16, seconds))
        table.add("servecert, 602,112 bytes", completed(stage(port, seconds, LARGE, concurrency=4), seconds))
        for peer in ("wrk", "h2load"):
            kind = "application/octet-stream"
            table.add(f"{peer}, 602,112 bytes", PEERS[peer](url, large, kind, 4, seconds))


def open_loop_round(table: Table, port: int, seconds: int) -> None:
    half = (table.median("servecert") or 0) / 2
    for name, rate in (("half", half), ("1000", 1000.0)):
        columns = stage(port, seconds, rate=rate).columns
        lag_us = np.sort((columns["dispatched_ns"] - columns["due_ns"]) / 1e3)
        span_s = float(columns["sent_ns"].max()) / 1e9
        table.add(f"{name} rate", columns["row"].size / max(span_s, seconds) / rate)
        table.add(f"{name} p50", percentile(lag_us, 0.5))
        table.add(f"{name} p99", percentile(lag_us, 0.99))


def grpc_round(table: Table, seconds: int) -> None:
    """A bare loop and ours against one echo server; the bare loop's clients wait for their answer, as many as ours has
    in flight."""
    array = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
    message = infer_request("m", [Tensor("x", "FP32", (1, 4), array)]).SerializeToString()
    command = ["taskset", "-c", str(SERVER), sys.executable, "-c", GRPC_ECHO, SERVICE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())

            async def bare() -> float:
                count, end = 0, time.monotonic() + seconds
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")

                    async def user() -> None:
                        nonlocal count
                        while time.monotonic() < end:
                            await call(message)
                            count += 1

                    await asyncio.gather(*(user() for _ in range(16)))
                return count / seconds

            with pinned():
                table.add("bare grpc.aio loop", asyncio.run(bare()))
            result = stage(port, seconds, message, protocol="grpc", concurrency=16)
            table.add("servecert, gRPC", completed(result, seconds))
        finally:
            server.terminate()


ANALYTIC = "analytic open loop and the path's own time"


def path_times(port: int, count: int = 1500) -> np.ndarray:
    """What a request takes beyond its service, in seconds: the kernel, waking up, the server's own work.

    Measured by the plainest of clients, one blocking socket that asks, waits, and asks again a little later.
    """
    script = """
import socket, sys, time
port, count, body = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
request = b'POST / HTTP/1.1\\r\\nHost: h\\r\\nContent-Length: %d\\r\\n\\r\\n%b' % (len(body), body)
with socket.create_connection(('127.0.0.1', port)) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(count):
        time.sleep(0.002)
        sent = time.monotonic_ns()
        connection.sendall(request)
        connection.recv(65536)
        print(time.monotonic_ns() - sent)
"""
    command = ["taskset", "-c", str(CLIENT), sys.executable, "-c", script, str(port), str(count), SMALL.decode()]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return np.maximum(np.array(text.split(), np.float64) / 1e9 - SERVICE_S, 0.0)


def await_phase(begun_ns: int, at_s: float) -> None:
    """Returns when so many seconds of a period of the stalling server are over."""
    into_s = (time.monotonic_ns() - begun_ns) / 1e9 % PERIOD_S
    time.sleep((at_s - into_s) % PERIOD_S)


def stall_table(seconds: float = 25.0, begin_s: float = 5.5) -> None:
    """A server with 5 ms of service that stands still for 1 s every 10 s, at 200/s.

    The analytic answer follows from each request's due time alone: whoever is due in a stall waits for its end and is
    served then, whoever is in service when it begins waits a second longer. Every run begins between 5 s and 9 s of a
    period, so that it has three whole stalls, 12 % of its time: p90 and what is above it tell who waited, p50 what the
    path adds. Peers are asked for 200/s as their manuals say; the clients' processor is kept awake for all of them.
    """
    rows: dict[str, dict[str, float]] = {}
    with awake(CLIENT), stalling_server(stall_s=0.0) as (port, _):
        path_s = path_times(port)
    with awake(CLIENT), stalling_server() as (port, begun_ns):
        await_phase(begun_ns, begin_s)
        result = stage(port, seconds, rate=STALL_RATE)
        begun_at_s = (result.start_ns - begun_ns) / 1e9 % PERIOD_S
        if not PERIOD_S - STALL_S >= begun_at_s >= 3 * PERIOD_S - seconds:
            raise SystemExit(f"the stage began at {begun_at_s:.1f} s of a period: not all of three stalls are in it")
        latency = (result.columns["done_ns"] - result.columns["due_ns"]) / 1e9
        into = ((result.start_ns - begun_ns + result.columns["due_ns"]) / 1e9) % PERIOD_S
        begins = PERIOD_S - STALL_S
        analytic = SERVICE_S + np.where(into >= begins, PERIOD_S - into, 0.0)
        analytic += np.where((into < begins) & (into + SERVICE_S > begins), STALL_S, 0.0)
        rows["servecert"] = summarize(np.sort(latency))
        rows["analytic open loop"] = summarize(np.sort(analytic))
        rows[ANALYTIC] = summarize(np.sort(analytic + np.random.default_rng(1).choice(path_s, analytic.size)))
        for name, peer in PACED.items():
            await_phase(begun_ns, begin_s)
            if (reported := peer(f"http://127.0.0.1:{port}/v2/models/m/infer", STALL_RATE, int(seconds))) is not None:
                rows[name] = reported
    print(f"\nA server with 5 ms of service that stands still for 1 s every 10 s, 200/s for {seconds:g} s:\n")
    print("| | p50 | p90 | p99 | p99.9 |\n|---|---|---|---|---|")
    keys = ("p50", "p90", "p99", "p99_9")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{values[key] * 1e3:.2f} ms" for key in keys) + " |")
    for name in ("analytic open loop", ANALYTIC):
        off = " | ".join(f"{rows['servecert'][key] / rows[name][key] - 1:+.2%}" for key in keys)
        print(f"| servecert against {name} | {off} |")


def added_latency(table: Table, port: int, seconds: int) -> None:
    """Median latency at 1,000/s, evenly spaced, beside wrk's at the same rate on as many connections."""
    due = due_times("constant", steady(1000.0, seconds), seed=1)
    request = Request("/v2/models/m/infer", {"Content-Type": "application/json"}, "body")
    job = Job("rest", "127.0.0.1", port, f"127.0.0.1:{port}", (request,), check_every=1000, connections=16)
    with pinned():
        columns = asyncio.run(run_stage(job, [SMALL], due, lambda progress: None)).columns
    table.add("servecert p50 at 1,000/s", summarize(np.sort(columns["done_ns"] - columns["due_ns"]) / 1e3)["p50"])
    table.add(
        "servecert from send at 1,000/s", summarize(np.sort(columns["done_ns"] - columns["sent_ns"]) / 1e3)["p50"]
    )
    if (found := wrk_at(f"http://127.0.0.1:{port}/v2/models/m/infer", 1000, 16, seconds)) is not None:
        rate, median_us = found
        table.add("wrk rate at 1,000/s", rate)
        table.add("wrk p50 at 1,000/s", median_us)


def samples_table() -> None:
    values = np.random.default_rng(1).exponential(0.01, 10_000_000)
    started = time.monotonic()
    summarize(np.sort(values))
    print(f"\nPercentiles of 10 million samples: {time.monotonic() - started:.2f} s; 58 bytes a sample in columns.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    table = Table()
    with nginx() as port:
        for _ in range(arguments.rounds):
            http_round(table, port, arguments.seconds)
            open_loop_round(table, port, arguments.seconds)
            added_latency(table, port, arguments.seconds)
            grpc_round(table, arguments.seconds)
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}"
    print(f"{machine}, Python {platform.python_version()},")
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("uvloop", "httptools", "grpcio", "httpx", "numpy")
    )
    print(f"{versions}; median of {arguments.rounds} rounds of {arguments.seconds} s in turn")
    table.show("small v2 JSON POST, 16 connections, closed loop", ["servecert", *PEERS], "servecert")
    large = [f"{name}, 602,112 bytes" for name in ("servecert", "wrk", "h2load")]
    table.show("binary tensor 1×3×224×224 FP32, 4 connections", large, large[0])
    table.show(
        "gRPC ModelInfer, small tensor, 16 in flight", ["servecert, gRPC", "bare grpc.aio loop"], "servecert, gRPC"
    )
    print("\n| open loop, Poisson | rate held | send lag p50 | send lag p99 |\n|---|---|---|---|")
    for name, title in (("1000", "1,000/s"), ("half", "half of the closed loop's rate")):
        rate, p50, p99 = (table.median(f"{name} {key}") or 0 for key in ("rate", "p50", "p99"))
        print(f"| {title} | {rate:.2%} | {p50:.0f} µs | {p99:.0f} µs |")
    print("\n| 1,000/s, evenly spaced, 16 connections | median latency |\n|---|---|")
    for name, title in (
        ("servecert p50 at 1,000/s", "servecert, from the due time"),
        ("servecert from send at 1,000/s", "servecert, from the send"),
        ("wrk p50 at 1,000/s", f"wrk (at {table.median('wrk rate at 1,000/s') or 0:.0f}/s), from the send"),
    ):
        print(f"| {title} | {table.median(name) or 0:.0f} µs |")
    stall_table()
    samples_table()


if __name__ == "__main__":
    main()
