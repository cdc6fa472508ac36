"""The command line as its users meet it: exit codes, files, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from harness.results.runstore import read_run
from tests.helpers import (
    ROOT,
    SERVECERT,
    Reference,
    free_port,
    processes_mentioning,
    scripted_server,
    servecert,
    servecert_undisturbed,
    wait_until,
)

IDENTITY = {"runtime": "reference", "model": "identity"}


def scenario(tmp_path: Path, steps: list[dict[str, Any]] | None = None, **services: Any) -> Path:
    path = tmp_path / "scenario.yaml"
    data = {
        "name": "small",
        "services": services or {"echo": IDENTITY},
        "steps": steps or [{"suite": "parity", "service": name} for name in services or {"echo": IDENTITY}],
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


# A whole run


@pytest.mark.alone
def test_run_passes_and_leaves_everything_needed_to_argue_about_it(tmp_path: Path) -> None:
    steps = [
        {"suite": "conformance", "service": "echo", "profiles": ["grpc"]},
        {"suite": "parity", "service": "echo"},
        {
            "suite": "load",
            "service": "echo",
            "rate": "50/s",
            "duration": "2s",
            "warmup": "500ms",
            "slo": ["errors <= 0%"],
        },
    ]
    out = tmp_path / "run"
    result = servecert_undisturbed(
        *["run", str(scenario(tmp_path, steps)), "--json", "-", "--junit", str(tmp_path / "j.xml")], out=out
    )
    assert result.returncode == 0, result.stderr
    for name in (
        "run.json",
        "scenario.yaml",
        "events.jsonl",
        "checks.jsonl",
        "report.html",
        "summary.md",
        "junit.xml",
        "results.json",
    ):
        assert (out / name).stat().st_size > 0, name
    assert sorted(path.name for path in (out / "manifests").iterdir()) == [
        "echo-inferenceservice.yaml",
        "echo-servingruntime.yaml",
    ]
    assert any("listens on" in path.read_text() for path in (out / "logs").iterdir())
    printed = json.loads(result.stdout)
    assert printed["verdict"] == "passed"
    assert {check["suite"] for check in printed["checks"]} == {"conformance", "parity", "load"}
    events = read_run(out).events
    assert {"Scheduled", "Started", "InferenceServiceReady"} <= {event.what for event in events}
    tree = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert int(tree.get("tests", "0")) == len(printed["checks"])
    again = servecert("report", str(out), "--json", "-")
    assert again.returncode == 0
    assert json.loads(again.stdout)["checks"] == printed["checks"]
    token = "token"
    assert not any(token in path.read_text() for path in out.glob("*.json*")), "no secret belongs into a run directory"
    second = servecert("run", str(tmp_path / "scenario.yaml"), "--out", str(out))
    assert second.returncode == 3
    assert "already holds a run" in second.stderr


@pytest.mark.alone
def test_failed_objective_is_exit_1_and_named(tmp_path: Path) -> None:
    step = {"suite": "load", "service": "echo", "rate": 20, "duration": "1s", "warmup": "100ms", "slo": ["p50 < 1us"]}
    result = servecert("run", str(scenario(tmp_path, [step])), "--out", str(tmp_path / "run"))
    assert result.returncode == 1
    assert "p50 < 1us" in result.stderr
    assert "FAILED" in result.stderr


def test_runtime_that_crashes_at_start_is_exit_3_with_its_last_log_lines(tmp_path: Path) -> None:
    broken = {**IDENTITY, "predictor": {"model": {"storageUri": f"file://{tmp_path / 'empty'}"}}}
    (tmp_path / "empty").mkdir()
    steps = [{"suite": "parity", "service": "broken"}, {"suite": "parity", "service": "sound"}]
    path = scenario(tmp_path, steps, broken=broken, sound=IDENTITY)
    result = servecert("run", str(path), "--out", str(tmp_path / "run"))
    assert result.returncode == 3
    assert "model.json" in result.stderr
    assert "crashes at start" in result.stderr
    report = (tmp_path / "run" / "report.html").read_text()
    assert "crashes at start" in report
    assert "model.json" in report
    run = read_run(tmp_path / "run")
    assert {check.service for check in run.checks} == {"sound"}, "the other service is still measured"
    assert [step["state"] for step in run.info["steps"]] == ["not run", "done"]


def test_model_that_never_becomes_ready_is_exit_3_after_its_time(tmp_path: Path) -> None:
    probe = {"httpGet": {"path": "/v2/models/other/ready", "port": 8080}, "periodSeconds": 1}
    slow = {**IDENTITY, "ready_within": "4s", "predictor": {"model": {"readinessProbe": probe}}}
    result = servecert("run", str(scenario(tmp_path, slow=slow)), "--out", str(tmp_path / "run"))
    assert result.returncode == 3
    assert "not ready within 4 s" in result.stderr


def test_image_that_nobody_knows_is_exit_3(tmp_path: Path) -> None:
    manifest = {
        "kind": "InferenceService",
        "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "x.test/y:1"}]}},
    }
    steps = [{"suite": "conformance", "service": "odd"}]
    result = servecert(
        "run", str(scenario(tmp_path, steps, odd={"manifest": manifest})), "--out", str(tmp_path / "run")
    )
    assert result.returncode == 3
    assert "x.test/y:1" in result.stderr


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "quickstart"]),
        (["run", "quickstart", "--set", "steps.0.rate=5"], ["steps.0", "rate"]),
        (["run", "quickstart", "--provider", "moon"], ["moon", "local"]),
        (["conformance", "http://[::1", "--model", "m"], ["http://127.0.0.1:8080", "[::1"]),
        (["conformance", "http://127.0.0.1:99999", "--model", "m"], ["99999"]),
        (["conformance", "ftp://x", "--model", "m"], ["http://127.0.0.1:8080", "ftp"]),
        (["conformance", "http://127.0.0.1:1", "--model", "m", "--profile", "soap"], ["profile", "soap"]),
        (["conformance", "http://127.0.0.1:1", "--model", "m", "--profile", "grpc"], ["--grpc"]),
        (["conformance", "http://127.0.0.1:1", "--model", "m", "--grpc", "here"], ["HOST:PORT"]),
        (["conformance", "http://127.0.0.1:1"], ["--model"]),
        (["load", "http://127.0.0.1:1", "--model", "m", "--duration", "10"], ["unit"]),
        (["load", "http://127.0.0.1:1", "--model", "m", "--duration", "1s"], ["rate", "concurrency"]),
        (
            ["load", "http://127.0.0.1:1", "--model", "m", "--duration", "1s", "--rate", "5", "--slo", "p98 < 1"],
            ["p98"],
        ),
        (
            ["load", "http://127.0.0.1:1", "--model", "m", "--duration", "1s", "--rate", "5", "--payload", "/none"],
            ["/none"],
        ),
        (["parity", "http://127.0.0.1:1", "--model", "m", "--golden", "/none.npz"], ["/none.npz", "golden"]),
        (["checks", "show", "rest.nothing"], ["rest.nothing", "checks list"]),
        (["runtimes", "serve", "tritium", "--model", "iris"], ["tritium", "mlserver"]),
        (["runtimes", "serve", "reference@9", "--model", "identity"], ["9", "1.0.0"]),
        (["run", "quickstart", "--frobnicate"], ["--frobnicate"]),
    ],
)
def test_usage_errors_are_exit_2_and_say_what_is_expected(arguments: list[str], words: list[str]) -> None:
    result = servecert(*arguments)
    assert result.returncode == 2, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_scenario_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\nservices:\n  a: {runtime: reference, model: identity, colour: red}\n"
        "steps:\n  - {suite: parity, service: b}\n"
    )
    result = servecert("run", str(path))
    assert result.returncode == 2
    assert f"{path}:3: services.a.colour: unknown field" in result.stderr


# Servers that are already there


def test_conformance_of_a_server_started_by_hand(reference: Reference, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    result = servecert(
        "conformance",
        reference.url,
        "--model",
        "identity",
        "--grpc",
        reference.grpc,
        "--json",
        "-",
        "--junit",
        str(junit),
    )
    assert result.returncode == 0, result.stderr
    checks = json.loads(result.stdout)["checks"]
    assert len(checks) >= 60
    assert {check["id"].split(".")[0] for check in checks} == {"rest", "grpc"}
    for check in checks:
        assert {"id", "level", "outcome", "expected", "observed", "source"} <= set(check)
        assert check["level"] in ("must", "should", "may")
        assert check["outcome"] in ("passed", "failed", "skipped", "error")
    cases = ElementTree.parse(junit).getroot().findall(".//testcase")
    assert len(cases) == len(checks)


@pytest.mark.alone
def test_load_on_a_server_started_by_hand(reference: Reference, tmp_path: Path) -> None:
    command = ["load", reference.url, "--model", "identity", "--rate", "100", "--duration", "2s"]
    result = servecert_undisturbed(*command, "--slo", "errors <= 0%", "--json", "-", out=tmp_path / "run")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["requests"] == 200
    assert data["errors"] == 0
    assert data["achieved_rate_per_s"] == pytest.approx(100, rel=0.1)
    for key in ("latency_s", "service_time_s", "send_lag_s"):
        assert {"p50", "p90", "p95", "p99", "p99_9", "max", "mean"} <= set(data[key])
    assert data["latency_s"]["p50"] <= data["latency_s"]["p99"] <= data["latency_s"]["max"]
    assert data["valid"] is True


def test_baseline_turns_known_failures_into_known_deviations(tmp_path: Path) -> None:
    from runtimes.catalog import build_model
    from tests.helpers import reference_server

    baseline = tmp_path / "baseline.yaml"
    baseline.write_text("- {checks: [rest.infer.model_version], reason: fixed in the next release}\n")
    with reference_server(build_model("identity").artifacts, mutant="model_version_is_null") as server:
        result = servecert(
            "conformance", server.url, "--model", "identity", "--profile", "rest", "--baseline", str(baseline)
        )
    assert result.returncode == 0, result.stderr
    assert "1 known" in result.stderr
    # What the same server is called without the list, tests/faults shows.


def test_unreachable_server_is_exit_3_and_says_how_to_look(tmp_path: Path) -> None:
    port = free_port()
    for command in (["conformance"], ["load", "--rate", "5", "--duration", "1s"]):
        result = servecert(command[0], f"http://127.0.0.1:{port}", "--model", "m", *command[1:])
        assert result.returncode == 3, result.stderr
        assert str(port) in result.stderr
        assert "Traceback" not in result.stderr


def _html(connection: socket.socket, data: bytes) -> None:
    body = b"<html><body>Welcome to nginx</body></html>"
    while data:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        data = connection.recv(1 << 16)


def _not_http(connection: socket.socket, data: bytes) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.mark.parametrize(("answer", "codes"), [(_html, {1}), (_not_http, {1, 3})])
def test_targets_that_are_no_inference_server_fail_without_a_crash(answer: Any, codes: set[int]) -> None:
    with scripted_server(answer) as port:
        result = servecert("conformance", f"http://127.0.0.1:{port}", "--model", "m", "--json", "-", timeout_s=120)
    assert result.returncode in codes, result.stderr
    assert "Traceback" not in result.stderr
    data = json.loads(result.stdout)
    assert data["passed"] is False
    assert not any(check["outcome"] == "error" for check in data["checks"]), (
        "a lying server fails checks, it breaks none"
    )


def test_runtimes_serve_runs_in_the_foreground_and_ends_on_sigterm() -> None:
    http, grpc = free_port(), free_port()
    command = [
        *SERVECERT,
        "runtimes",
        "serve",
        "reference",
        "--model",
        "identity",
        "--http-port",
        str(http),
        "--grpc-port",
        str(grpc),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "listens on" in process.stdout.readline()
        result = servecert(
            "load", f"http://127.0.0.1:{http}", "--model", "identity", "--rate", "20", "--duration", "1s", "--quiet"
        )
        assert result.returncode == 0
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    wait_until(lambda: not processes_mentioning(f"--http-port {http}"), 10, "the end of the server")


def test_port_in_use_is_named_by_the_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = servecert(
            "runtimes", "serve", "reference", "--model", "identity", "--http-port", str(port), "--grpc-port", "0"
        )
    assert result.returncode != 0
    assert "in use" in result.stderr


def test_lists(tmp_path: Path) -> None:
    runtimes = json.loads(servecert("runtimes", "list", "--json", "-").stdout)
    assert {"reference@1.0.0", "mlserver@1.7.1", "kserve@0.21.0"} <= {item["runtime"] for item in runtimes}
    checks = json.loads(servecert("checks", "list", "--group", "rest.health", "--json", "-").stdout)
    assert {check["group"] for check in checks} == {"rest.health"}
    assert "source" in servecert("checks", "show", "rest.infer.id_echo").stdout
    assert servecert("--version").stdout.startswith("servecert ")


# Ends that nobody planned


def _started(tmp_path: Path) -> subprocess.Popen[str]:
    """A run that is in the middle of a long load step."""
    step = {"suite": "load", "service": "echo", "rate": "20/s", "duration": "5m"}
    path = scenario(tmp_path, [{"suite": "parity", "service": "echo"}, step])
    process = subprocess.Popen(
        [*SERVECERT, "run", str(path), "--out", str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )

    def loading() -> bool:
        try:
            steps = read_run(tmp_path / "run").info["steps"]
        except Exception:
            return False
        return bool(len(steps) == 2 and steps[1]["state"] == "running" and processes_mentioning("harness.load.worker"))

    try:
        wait_until(loading, 60, "the load step")
    except BaseException:
        process.kill()
        raise
    return process


def _nothing_left(tmp_path: Path) -> None:
    wait_until(lambda: not processes_mentioning(str(tmp_path)), 15, "the end of every process")

    def left() -> list[str]:
        return [
            str(path)
            for path in tmp_path.rglob("*")
            if path.relative_to(tmp_path).parts[0] not in ("scenario.yaml", "run")
        ]

    deadline = time.monotonic() + 15
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() == []


@pytest.mark.alone
def test_ctrl_c_cleans_up_writes_the_report_and_is_exit_130(tmp_path: Path) -> None:
    process = _started(tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "INTERRUPTED" in errors
    assert "interrupted" in (tmp_path / "run" / "summary.md").read_text()
    _nothing_left(tmp_path)


@pytest.mark.alone
def test_ctrl_c_twice_leaves_at_once_and_nothing_behind(tmp_path: Path) -> None:
    process = _started(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)  # two signals that come together are one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert process.returncode == 130
    _nothing_left(tmp_path)


@pytest.mark.alone
def test_sigkill_leaves_a_directory_that_report_reads_and_no_process(tmp_path: Path) -> None:
    process = _started(tmp_path)
    process.kill()
    process.communicate(timeout=15)
    _nothing_left(tmp_path)
    result = servecert("report", str(tmp_path / "run"))
    assert result.returncode == 130
    assert "INTERRUPTED" in result.stderr
    assert "parity 5 passed" in result.stderr
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.alone
def test_full_disk_is_exit_3_and_keeps_what_was_measured(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        if os.environ.get("SERVECERT_REQUIRE_TOOLS"):
            pytest.fail(f"cannot mount a small disk: {mounted.stderr.decode()}")
        pytest.skip("mounting a small disk needs root")
    try:
        steps = [{"suite": "conformance", "service": "echo", "profiles": ["rest"]}]
        result = servecert("run", str(scenario(tmp_path, steps)), "--out", str(disk / "run"))
        assert result.returncode == 3, result.stderr
        assert "No space left" in result.stderr
        assert "Traceback" not in result.stderr
        assert len(read_run(disk / "run").checks) > 10
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_unwritable_directory_is_exit_3() -> None:
    result = servecert("run", "quickstart", "--out", "/proc/servecert-run")
    assert result.returncode == 3
    assert "--out" in result.stderr


def test_unwritable_cache_is_exit_3_and_names_the_way_out(tmp_path: Path) -> None:
    environment = {**os.environ, "SERVECERT_CACHE": "/proc/servecert"}
    path = scenario(tmp_path)
    for command in (
        ["run", str(path), "--out", str(tmp_path / "run")],
        ["runtimes", "serve", "reference", "--model", "identity"],
        ["cluster", "up"],
    ):
        result = servecert(*command, env=environment)
        assert result.returncode == 3, result.stderr
        assert "/proc/servecert" in result.stderr
        assert "Traceback" not in result.stderr


def test_closed_standard_output_does_not_end_in_a_traceback() -> None:
    with subprocess.Popen(
        [*SERVECERT, "checks", "list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
        reader.start()
        process.wait(30)
        reader.join(5)
    assert b"Traceback" not in errors[0]
