"""Load generators that others wrote, each a function from a target to requests a second; None where not installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CLIENT = 0
"""The processor that every client is pinned to."""


def _pinned(command: list[str], timeout_s: float = 120) -> str:
    result = subprocess.run(
        ["taskset", "-c", str(CLIENT), *command], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return result.stdout or result.stderr


def _program(name: str) -> str | None:
    """Of a PyPI package beside this Python, or of the system."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"expected {pattern!r} in: {text[-1500:]}")
    return float(match[1].replace(",", ""))


def wrk(url: str, body: Path, kind: str, connections: int, seconds: int) -> float | None:
    if not shutil.which("wrk"):
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f"local f=io.open('{body}','rb'); wrk.body=f:read('*a'); wrk.method='POST'\n"
            f"wrk.headers['Content-Type']='{kind}'\n"
        )
        script.flush()
        text = _pinned(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script.name, url])
    return _number(r"Requests/sec:\s+([\d.]+)", text)


def h2load(url: str, body: Path, kind: str, connections: int, seconds: int) -> float | None:
    if not shutil.which("h2load"):
        return None
    command = ["h2load", "--h1", "-t1", f"-c{connections}", f"-D{seconds}", "-d", str(body)]
    return _number(r"finished in [^,]+, ([\d.]+) req/s", _pinned([*command, "-H", f"content-type: {kind}", url]))


def hey(url: str, body: Path, kind: str, connections: int, seconds: int) -> float | None:
    if not shutil.which("hey"):
        return None
    command = ["hey", "-cpus", "1", "-c", str(connections), "-z", f"{seconds}s", "-m", "POST", "-T", kind]
    return _number(r"Requests/sec:\s+([\d.]+)", _pinned([*command, "-D", str(body), url]))


def k6(url: str, body: Path, kind: str, connections: int, seconds: int) -> float | None:
    program = _program("k6")
    if not program:
        return None
    with tempfile.TemporaryDirectory() as name:
        script, summary = Path(name) / "script.js", Path(name) / "summary.json"
        script.write_text(
            "import http from 'k6/http';\n"
            f"const body = open('{body}');\n"
            f"export default function () {{ http.post('{url}', body, {{headers: {{'Content-Type': '{kind}'}}}}); }}\n"
        )
        command = [
            program,
            "run",
            "--quiet",
            "--no-usage-report",
            "--vus",
            str(connections),
            "--duration",
            f"{seconds}s",
        ]
        text = _pinned([*command, "--summary-export", str(summary), str(script)])
        if not summary.exists():
            raise SystemExit(f"k6 left no summary: {text[-1500:]}")
        return float(json.loads(summary.read_text())["metrics"]["http_reqs"]["rate"])


def _locust(user: str) -> Callable[[str, Path, str, int, int], float | None]:
    def run(url: str, body: Path, kind: str, connections: int, seconds: int) -> float | None:
        program = _program("locust")
        if not program:
            return None
        host, _, path = url.removeprefix("http://").partition("/")
        with tempfile.TemporaryDirectory() as name:
            script = Path(name) / "locustfile.py"
            script.write_text(
                f"from locust import {user}, task\n"
                f"BODY = open({str(body)!r}, 'rb').read()\n"
                f"class User({user}):\n"
                f"    host = 'http://{host}'\n"
                "    @task\n"
                "    def ask(self):\n"
                f"        self.client.post('/{path}', data=BODY, headers={{'Content-Type': '{kind}'}})\n"
            )
            command = [program, "-f", str(script), "--headless", "--only-summary", "-u", str(connections)]
            text = _pinned([*command, "-r", str(connections), "-t", f"{seconds}s", "--json"])
        found, _ = json.JSONDecoder().raw_decode(text[text.index("[\n") :])
        return float(sum(item["num_requests"] for item in found) / seconds)

    return run


fast_http_user = _locust("FastHttpUser")
http_user = _locust("HttpUser")

_PYTHON_LOOP = """
import asyncio, sys, time
url, body, kind = sys.argv[1], open(sys.argv[2], 'rb').read(), sys.argv[3]
connections, seconds = int(sys.argv[4]), float(sys.argv[5])
headers = {'Content-Type': kind}
async def users(ask):
    count, end = 0, time.monotonic() + seconds
    async def user():
        nonlocal count
        while time.monotonic() < end:
            await ask()
            count += 1
    await asyncio.gather(*(user() for _ in range(connections)))
    print('rate', count / seconds)
async def aiohttp_main():
    import aiohttp
    async with aiohttp.ClientSession() as session:
        async def ask():
            async with session.post(url, data=body, headers=headers) as answer:
                await answer.read()
        await users(ask)
async def httpx_main():
    import httpx
    async with httpx.AsyncClient(trust_env=False) as client:
        async def ask():
            await client.post(url, content=body, headers=headers)
        await users(ask)
import uvloop
uvloop.run({'aiohttp': aiohttp_main, 'httpx': httpx_main}[sys.argv[6]]())
"""


def _python(library: str) -> Callable[[str, Path, str, int, int], float | None]:
    def run(url: str, body: Path, kind: str, connections: int, seconds: int) -> float | None:
        probe = subprocess.run([sys.executable, "-c", f"import {library}"], capture_output=True, check=False)
        if probe.returncode:
            return None
        arguments = [url, str(body), kind, str(connections), str(seconds), library]
        return _number(r"rate ([\d.]+)", _pinned([sys.executable, "-c", _PYTHON_LOOP, *arguments]))

    return run


PEERS: dict[str, Callable[[str, Path, str, int, int], float | None]] = {
    "wrk": wrk,
    "h2load": h2load,
    "hey": hey,
    "k6": k6,
    "aiohttp with uvloop": _python("aiohttp"),
    "Locust FastHttpUser": fast_http_user,
    "Locust HttpUser": http_user,
    "httpx with uvloop": _python("httpx"),
}


def wrk_at(url: str, rate: int, connections: int, seconds: int) -> tuple[float, float] | None:
    """wrk has no rate; a pause before each request of each connection comes near to one. The rate that came of it, and
    the median latency in microseconds."""
    if not shutil.which("wrk"):
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            "wrk.method='POST'; wrk.headers['Content-Type']='application/json'\n"
            'wrk.body=\'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[5.1,3.5,1.4,0.2]}]}\'\n'
            f"function delay() return {connections * 1000 // rate} end\n"
        )
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url]
        text = _pinned(command)
    match = re.search(r"50%\s+([\d.]+)(us|ms)", text)
    if match is None:
        raise SystemExit(f"expected a median in: {text[-1500:]}")
    return _number(r"Requests/sec:\s+([\d.]+)", text), float(match[1]) * (1000 if match[2] == "ms" else 1)


Percentiles = dict[str, float]
POINTS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}


def _k6_paced(scenario: str, url: str, seconds: int) -> Percentiles | None:
    program = _program("k6")
    if not program:
        return None
    with tempfile.TemporaryDirectory() as name:
        script, summary = Path(name) / "script.js", Path(name) / "summary.json"
        script.write_text(
            "import http from 'k6/http'; import { sleep } from 'k6';\n"
            f"export const options = {{scenarios: {{paced: {scenario}}}}};\n"
            f"export default function () {{ http.post('{url}', '{{}}'); }}\n"
            f"export function user() {{ const begun = Date.now(); http.post('{url}', '{{}}');"
            " sleep(Math.max(0, 0.1 - (Date.now() - begun) / 1000)); }\n"
        )
        stats = ",".join(f"p({point:g})" for point in POINTS.values())
        command = [program, "run", "--quiet", "--no-usage-report", "--summary-trend-stats", stats]
        text = _pinned([*command, "--summary-export", str(summary), str(script)], timeout_s=seconds + 60)
        if not summary.exists():
            raise SystemExit(f"k6 left no summary: {text[-1500:]}")
        durations = json.loads(summary.read_text())["metrics"]["http_req_duration"]
    return {key: durations[f"p({point:g})"] / 1e3 for key, point in POINTS.items()}


def k6_arrivals(url: str, rate: float, seconds: int) -> Percentiles | None:
    """k6's open model, with virtual users enough for the stall."""
    scenario = (
        f"{{executor: 'constant-arrival-rate', rate: {rate:g}, timeUnit: '1s', duration: '{seconds}s',"
        " preAllocatedVUs: 300}"
    )
    return _k6_paced(scenario, url, seconds)


def k6_users(url: str, rate: float, seconds: int) -> Percentiles | None:
    """k6's closed model: users that each send ten requests a second, when they can."""
    users = round(rate / 10)
    return _k6_paced(f"{{executor: 'constant-vus', vus: {users}, duration: '{seconds}s', exec: 'user'}}", url, seconds)


def locust_users(url: str, rate: float, seconds: int) -> Percentiles | None:
    """Locust's ``constant_throughput``: users that each send ten requests a second, when they can."""
    program = _program("locust")
    if not program:
        return None
    users = round(rate / 10)
    host, _, path = url.removeprefix("http://").partition("/")
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "locustfile.py"
        script.write_text(
            "from locust import FastHttpUser, constant_throughput, task\n"
            "class User(FastHttpUser):\n"
            f"    host = 'http://{host}'\n"
            "    wait_time = constant_throughput(10)\n"
            "    @task\n"
            "    def ask(self):\n"
            f"        self.client.post('/{path}', data=b'{{}}')\n"
        )
        command = [program, "-f", str(script), "--headless", "--only-summary", "-u", str(users), "-r", str(users)]
        text = _pinned([*command, "-t", f"{seconds}s", "--json"], timeout_s=seconds + 60)
    (found,), _ = json.JSONDecoder().raw_decode(text[text.index("[\n") :])
    counts = sorted((float(value), int(count)) for value, count in found["response_times"].items())
    total = sum(count for _, count in counts)
    reported: Percentiles = {}
    for key, point in POINTS.items():
        seen = 0
        for value, count in counts:
            seen += count
            if seen >= point / 100 * total:
                reported[key] = value / 1e3
                break
    return reported


PACED: dict[str, Callable[[str, float, int], Percentiles | None]] = {
    "k6, constant-arrival-rate": k6_arrivals,
    "k6, paced users": k6_users,
    "Locust, constant_throughput": locust_users,
}
