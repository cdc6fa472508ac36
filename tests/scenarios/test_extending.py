"""The page about extending is true: its suite and its runtime, put where it says, run and are reported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT, SERVECERT

BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the project, and in it each file that the page shows."""
    copy = tmp_path / "project"
    for part in ("harness", "cluster", "reports", "runtimes", "scenarios"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shown = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
    assert {"scenarios/suites/steady_metadata/run.py", "runtimes/toy/runtime.yaml", "toy.yaml"} <= {
        at for at, _ in shown
    }
    for at, text in shown:
        assert not (copy / at).exists()
        (copy / at).parent.mkdir(exist_ok=True)
        (copy / at).write_text(text)
    return copy


def servecert(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.run(
        [*SERVECERT, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )


def test_suite_and_runtime_of_the_page_run_and_are_reported(extended: Path) -> None:
    ended = servecert(extended, "run", "toy.yaml", "--out", "out")
    assert ended.returncode == 0, ended.stderr
    results = json.loads((extended / "out" / "results.json").read_text())
    (check,) = results["checks"]
    assert (check["id"], check["outcome"]) == ("steady-metadata.same", "passed")
    assert check["observed"] == "1 in 20 answers"
    assert "steady-metadata.slowest" in {item["name"] for item in results["measurements"]}
    page = (extended / "out" / "report.html").read_text()
    assert "Steady metadata of toy" in page
    assert "metadata: each column over request" in page
    assert "1 passed" in ended.stderr


def test_suite_of_the_page_is_in_the_schema_and_in_messages(extended: Path) -> None:
    assert "SteadyMetadataStep" in servecert(extended, "schema").stdout
    (extended / "toy.yaml").write_text((extended / "toy.yaml").read_text().replace("times", "often"))
    ended = servecert(extended, "run", "toy.yaml")
    assert ended.returncode == 2
    assert "steps.0.often: unknown field; allowed here: suite, service, name, times" in ended.stderr
