"""The checks as pytest tests of whoever develops a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from runtimes.catalog import BuiltModel
from scenarios.suites.conformance.suite import select
from tests.helpers import Reference, reference_server


def collect(place: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """What pytest says, and what became of each test."""
    report = place / "junit.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--pyargs",
        "scenarios.suites.conformance",
        f"--junit-xml={report}",
    ]
    result = subprocess.run(
        [*command, "-k", "not mib", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=place,
    )
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else []:
        children = [child.tag if child.get("type") != "pytest.xfail" else "xfail" for child in case]
        outcomes[case.get("name", "").partition("[")[2].rstrip("]")] = next(iter(children), "passed")
    return result, outcomes


def test_every_check_is_a_test(reference: Reference, tmp_path: Path) -> None:
    arguments = ["--v2-url", reference.url, "--v2-model", "identity", "--v2-grpc", reference.grpc]
    result, outcomes = collect(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout[-2000:]
    assert set(outcomes) == {check.id for check in select(["rest", "grpc"]) if "mib" not in check.id}
    assert set(outcomes.values()) == {"passed", "skipped"}


def test_a_must_fails_and_a_known_deviation_does_not(identity: BuiltModel, tmp_path: Path) -> None:
    baseline = tmp_path / "known.yaml"
    baseline.write_text("- {checks: [rest.infer.model_version], reason: as we know}\n")
    with reference_server(identity.artifacts, mutant="model_version_is_null") as server:
        arguments = ["--v2-url", server.url, "--v2-model", "identity", "--v2-profile", "rest"]
        result, outcomes = collect(tmp_path, *arguments)
        assert result.returncode == 1
        assert [name for name, outcome in outcomes.items() if outcome == "failure"] == ["rest.infer.model_version"]
        assert "curl" in result.stdout
        assert "inference_rest.md" in result.stdout
        result, outcomes = collect(tmp_path, *arguments, "--v2-baseline", str(baseline))
        assert result.returncode == 0, result.stdout[-2000:]
        assert outcomes["rest.infer.model_version"] == "xfail"


def test_without_a_server_there_is_no_green(tmp_path: Path) -> None:
    result, _ = collect(tmp_path)
    assert result.returncode not in (0, 5)
    assert "--v2-url: expected where the server is" in result.stdout + result.stderr
    result, _ = collect(tmp_path, "--v2-url", "http://127.0.0.1:9", "--v2-model", "m")
    assert result.returncode == 3
    assert "is the server up" in result.stdout + result.stderr
