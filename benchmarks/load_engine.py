"""The load engine beside its peers, in one run on one machine: ``python benchmarks/load_engine.py [--seconds 5]``.

A fixed 160-byte JSON answer from nginx, pinned to the last processor; each client is pinned to the first. Peers that
are not installed are named as such. Prints a Markdown table of requests a second, as ratios to wrk, and the open loop's
send lag. Traffic goes to loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import numpy as np

from harness.load.job import Job, Request
from harness.load.runner import StageResult, run_stage

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[5.1,3.5,1.4,0.2]}]}'
ANSWER = '{"model_name":"m","outputs":[{"name":"y","datatype":"INT64","shape":[1,1],"data":[0]}],"pad":"%s"}'
CONNECTIONS = 16
CLIENT, SERVER = 0, (os.cpu_count() or 1) - 1


@contextlib.contextmanager
def nginx() -> Iterator[int]:
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
              access_log off; keepalive_requests 1000000000; client_body_temp_path {name}/body;
              default_type application/json;
              server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{answer}'; }} }}
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


def stage(port: int, **fields: float) -> StageResult:
    request = Request("/v2/models/m/infer", {"Content-Type": "application/json"}, "body")
    job = Job("rest", "127.0.0.1", port, f"127.0.0.1:{port}", (request,), check_every=1000, **fields)  # type: ignore[arg-type]
    os.sched_setaffinity(0, {CLIENT})
    try:
        return asyncio.run(run_stage(job, [BODY], lambda progress: None))
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def ours(port: int, seconds: float) -> float:
    result = stage(port, duration_s=seconds, concurrency=CONNECTIONS, warmup_s=0.5)
    done = result.columns["done_ns"] / 1e9
    return float(((done >= 0.5) & (done < 0.5 + seconds) & (result.columns["error"] == 0)).sum() / seconds)


def wrk(port: int, seconds: float) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body='{BODY.decode()}'\nwrk.headers['Content-Type']='application/json'\n")
        script.flush()
        command = [
            "taskset",
            "-c",
            str(CLIENT),
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds:.0f}s",
            "-s",
            script.name,
        ]
        output = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/v2/models/m/infer"], capture_output=True, text=True, check=True
        ).stdout
    match = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert match, output
    return float(match[1])


def httpx_loop(port: int, seconds: float) -> float:
    async def run() -> int:
        count = 0
        end = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

            async def user() -> None:
                nonlocal count
                while time.monotonic() < end:
                    await client.post("/v2/models/m/infer", content=BODY, headers={"Content-Type": "application/json"})
                    count += 1

            await asyncio.gather(*(user() for _ in range(CONNECTIONS)))
        return count

    os.sched_setaffinity(0, {CLIENT})
    try:
        return asyncio.run(run()) / seconds
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    peers = {"servecert, closed loop": ours, "wrk": wrk, "httpx.AsyncClient": httpx_loop}
    rates: dict[str, list[float]] = {name: [] for name in peers}
    lags = []
    with nginx() as port:
        for _ in range(arguments.rounds):  # in turn, so that a slow minute of the machine is everybody's
            for name, measure in peers.items():
                if name != "wrk" or shutil.which("wrk"):
                    rates[name].append(measure(port, arguments.seconds))
            for rate in (1000, 10_000):
                columns = stage(port, duration_s=arguments.seconds, rate_per_s=rate).columns
                lag_us = (columns["dispatched_ns"] - columns["due_ns"]) / 1e3
                lags.append((rate, float(np.percentile(lag_us, 50)), float(np.percentile(lag_us, 99))))
    base = statistics.median(rates["wrk"]) if rates["wrk"] else None
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}"
    print(f"{machine}, Python {platform.python_version()},")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("uvloop", "httptools", "httpx", "numpy"))
    rounds = f"median of {arguments.rounds} rounds of {arguments.seconds:g} s in turn"
    print(f"{versions}; {CONNECTIONS} connections, {rounds}\n")
    print("| client | requests a second | of wrk |\n|---|---|---|")
    for name, found in rates.items():
        if not found:
            print(f"| {name} | not installed | |")
            continue
        middle = statistics.median(found)
        print(f"| {name} | {middle:,.0f} | {f'{middle / base:.2f}' if base else ''} |")
    print("\n| open loop, Poisson | send lag p50 | send lag p99 |\n|---|---|---|")
    for rate in (1000, 10_000):
        mine = [(p50, p99) for at, p50, p99 in lags if at == rate]
        p50, p99 = (statistics.median(column) for column in zip(*mine, strict=True))
        print(f"| {rate:,}/s | {p50:.0f} µs | {p99:.0f} µs |")


if __name__ == "__main__":
    main()
