"""An hour of load: how much memory the harness takes, and how long its report.

    PYTHONPATH=. python benchmarks/long_run.py --duration 3600 --rate 5000

The server is nginx with fixed v2 answers. Memory is the proportional set size (PSS) of the command and all its
processes, every two seconds (reading it holds them up a little); of files in the page cache only what is mapped counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.loadgen import nginx

METADATA = {
    "name": "m",
    "versions": ["1"],
    "platform": "fixed",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1]}],
}
ANSWER = {"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}]}
PATHS = f"""
    location = /v2 {{ return 200 '{{"name": "nginx", "version": "1", "extensions": []}}'; }}
    location /v2/health/ {{ return 200 '{{}}'; }}
    location = /v2/models/m/ready {{ return 200 '{{}}'; }}
    location = /v2/models/m {{ return 200 '{json.dumps(METADATA)}'; }}
    location = /v2/models/m/infer {{ return 200 '{json.dumps(ANSWER)}'; }}
"""


class Memory:
    """Follows a process and what it starts."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        while not self._over.wait(2):
            total = 0
            with contextlib.suppress(psutil.Error):
                for process in [self._root, *self._root.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, total)

    def end(self) -> int:
        self._over.set()
        self._thread.join()
        return self.peak_bytes


@contextlib.contextmanager
def measured(command: list[str]) -> Iterator[tuple[int, float, int]]:
    """Exit code, seconds, and peak memory in bytes."""
    started = time.monotonic()
    with subprocess.Popen(command) as process:
        memory = Memory(process.pid)
        code = process.wait()
        seconds = time.monotonic() - started
        yield code, seconds, memory.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=3600, help="seconds")
    parser.add_argument("--rate", type=float, default=5000, help="requests a second")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    servecert = [sys.executable, "-m", "harness.cli"]
    with tempfile.TemporaryDirectory(prefix="servecert-long-run-") as name, nginx(PATHS) as port:
        run = Path(name) / "run"
        load = [
            *servecert, "load", f"http://127.0.0.1:{port}", "--model", "m", "--rate", f"{arguments.rate:g}/s",
            "--duration", f"{arguments.duration:g}s", "--processes", str(arguments.processes), "--out", str(run),
        ]  # fmt: skip
        with measured(load) as (code, seconds, peak):
            print(f"load: exit code {code}, {seconds:.1f} s, at most {peak / 2**20:.0f} MiB")
        with measured([*servecert, "report", str(run)]) as (_, seconds, peak):
            print(f"report: {seconds:.1f} s, at most {peak / 2**20:.0f} MiB")
        loads = [json.loads(line) for line in (run / "loads.jsonl").read_text().splitlines()]
        for load_result in loads:
            lag, latency = load_result["send_lag_s"], load_result["latency_s"]
            print(
                f"{load_result['requests']} requests, {load_result['achieved_rate_per_s']:.1f}/s,"
                f" {load_result['errors']} errors, p50 {latency['p50'] * 1e6:.0f} µs, p99 {latency['p99'] * 1e6:.0f} µs"
                f", send lag p99 {lag['p99'] * 1e6:.0f} µs, valid: {load_result['valid']}"
            )
        for path in sorted(path for path in run.rglob("*") if path.is_file()):
            if (size := path.stat().st_size) > 50_000:
                print(f"{size / 2**20:8.2f} MiB  {path.relative_to(run)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
