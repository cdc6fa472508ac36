"""Who may import whom: what keeps each part usable, and testable, without the rest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers import ROOT

PARTS = ("harness", "scenarios", "runtimes", "cluster", "reports")
TOP = {
    "cli",
    "cli_run",
    "cli_checks",
    "cli_cluster",
    "cli_compare",
    "cli_history",
    "cli_samples",
    "cli_tools",
    "deployment",
    "engine",
    "session",
    "steps",
}
"""The modules of ``harness`` that put everything together."""


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in PARTS}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("harness/load", ("harness.load", "harness.columns", "harness.shown")),
        ("harness/protocol", ("harness.protocol", "harness.errors", "harness.records")),
        ("scenarios", ("scenarios", "harness")),
        ("cluster", ("cluster", "harness")),
        ("reports", ("reports", "harness")),
        ("runtimes/reference", ("runtimes.reference",)),
        ("runtimes/models", ()),
        ("runtimes/mlserver", ()),
        ("runtimes/kserve", ()),
        ("runtimes/triton", ()),
        ("runtimes/torchserve", ()),
        ("runtimes/sklearn", ()),
        ("runtimes/xgboost", ()),
        ("runtimes/huggingface", ()),
        ("runtimes/vllm", ()),
    ],
)
def test_folder_imports_only_what_it_may(folder: str, allowed: tuple[str, ...]) -> None:
    paths = files(folder)
    assert paths
    for path in paths:
        for name in imports(path):
            fits = any(name == part or name.startswith(part + ".") for part in allowed)
            assert fits, f"{path.relative_to(ROOT)} imports {name}"


def test_core_of_the_harness_stands_alone() -> None:
    for path in files("harness"):
        if path.stem in TOP and path.parent.name == "harness":
            continue
        others = {name for name in imports(path) if not name.startswith("harness")}
        assert not others, f"{path.relative_to(ROOT)} imports {', '.join(others)}"
        above = {name for name in imports(path) if name.split(".")[-1] in TOP}
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(above)}"


def test_other_parts_do_not_import_the_top() -> None:
    for part in ("scenarios", "cluster", "reports"):
        for path in files(part):
            above = {name for name in imports(path) if name.startswith("harness.") and name.split(".")[1] in TOP}
            assert not above, f"{path.relative_to(ROOT)} imports {', '.join(above)}"
