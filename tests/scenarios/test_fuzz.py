"""Fuzz: nothing is found in a sound server; what is found in another is small, kept, and can be repeated with curl."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.base.errors import MeasurementError
from harness.results.records import CheckResult, Outcome
from harness.target.endpoint import Endpoint
from runtimes.catalog import BuiltModel
from scenarios.suites.conformance.fuzz import fuzz
from tests.helpers import Reference, reference_server, tool


async def hunt(server: Reference, place: Path, seconds: float = 8.0) -> dict[str, CheckResult]:
    def save(name: str, text: str) -> str:
        (place / name).write_text(text)
        return name

    endpoint = Endpoint("identity", "reference", server.url, "identity")
    found = fuzz(endpoint, seconds, 1, save, lambda text: None)
    return {result.id: result async for result in found}


def repeat(script: Path) -> str:
    return subprocess.run(["sh", str(script)], capture_output=True, text=True, timeout=10, check=True).stdout


async def test_nothing_is_found_in_a_sound_server(reference: Reference, tmp_path: Path) -> None:
    results = await hunt(reference, tmp_path)
    assert {result.outcome for result in results.values()} == {Outcome.PASSED}, results
    assert set(results) == {"fuzz.valid", "fuzz.refused", "fuzz.answered", "fuzz.alive"}
    valid, spoilt = (int(part.split()[0]) for part in results["fuzz.valid"].observed.split(", "))
    assert valid > 10
    assert spoilt > 10
    assert not any("kept in" in result.observed for result in results.values())


async def test_a_fault_is_shrunk_and_repeated_by_curl(identity: BuiltModel, tmp_path: Path) -> None:
    tool("curl")
    with reference_server(identity.artifacts, mutant="inputs_missing_is_500") as server:
        results = await hunt(server, tmp_path)
        refused = results["fuzz.refused"]
        assert refused.outcome is Outcome.FAILED
        assert "status 500" in refused.observed
        assert "fuzz.refused.sh" in refused.observed
        text = (tmp_path / "fuzz.refused.sh").read_text()
        assert len(text) < 1000, "shrunk to its core"
        again = repeat(tmp_path / "fuzz.refused.sh")
    assert "HTTP/1.1 500" in again
    assert results["fuzz.valid"].outcome is Outcome.PASSED


async def test_a_wrong_value_is_found_among_valid_requests(identity: BuiltModel, tmp_path: Path) -> None:
    with reference_server(identity.artifacts, mutant="int64_is_read_as_a_double") as server:
        results = await hunt(server, tmp_path)
    assert results["fuzz.valid"].outcome is Outcome.FAILED
    assert "OUTPUT_INT64" in results["fuzz.valid"].expected
    assert results["fuzz.refused"].outcome is Outcome.PASSED


async def test_a_server_that_refuses_the_request_to_begin_with(identity: BuiltModel, tmp_path: Path) -> None:
    with (
        reference_server(identity.artifacts, mutant="infer_is_201") as server,
        pytest.raises(MeasurementError, match="answered 201"),
    ):
        await hunt(server, tmp_path)
