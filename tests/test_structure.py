"""The rooms of the project, and which of them each may import: each is usable, and testable, without the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

PROJECT = ("harness", "scenarios", "runtimes", "cluster", "reports")
ROOMS = {
    "harness.base": "",
    "harness.results": "harness.base",
    "harness.target": "harness.base harness.results",
    "harness.load": "harness.base",
    "harness.kubernetes": "harness.base harness.results",
    "harness.lint": "harness.base harness.kubernetes",
    "runtimes": "harness.base harness.results",
    "cluster": "harness.base harness.kubernetes harness.load runtimes",
    "reports": "harness.base harness.results",
    "scenarios.model": "harness.base harness.results harness.target harness.load cluster",
    "scenarios.suites": "harness.base harness.results harness.target harness.load harness.kubernetes runtimes"
    " cluster reports scenarios.model",
    "scenarios.file": "harness.base runtimes cluster scenarios.model scenarios.suites",
    "scenarios.engine": "harness.base harness.results harness.target harness.load harness.kubernetes harness.lint"
    " runtimes cluster scenarios.model scenarios.suites scenarios.file",
    "harness.cli": "harness cluster runtimes reports scenarios",
}
"""Each room imports those named here, and itself."""
ALONE = ("runtimes.models", *(f"runtimes.{path.parent.name}" for path in (ROOT / "runtimes").glob("*/runtime.yaml")))
"""What runs in the environment of a runtime imports nothing of the project."""


def within(module: str, rooms: tuple[str, ...]) -> str:
    """The innermost of ``rooms`` that holds ``module``."""
    fits = [room for room in rooms if module == room or module.startswith(room + ".")]
    return max(fits, key=len, default="")


def module_of(path: Path) -> str:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


@cache
def files() -> dict[str, Path]:
    """Every module of the project, by its dotted name."""
    return {module_of(path): path for folder in PROJECT for path in sorted((ROOT / folder).rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of this project that a module imports, wherever in its text."""
    return frozenset(name for name, _ in found_imports(module))


@cache
def found_imports(module: str) -> tuple[tuple[str, bool], ...]:
    """The same, and whether the import is at the top of the text, where it is carried out at once."""
    return tuple(_found_imports(module))


def _found_imports(module: str) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(files()[module].read_text())
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{module}: imports are absolute here"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in files() else node.module for name in below]
        for name in names:
            if name in files() and name != module:
                yield name, node in tree.body


def test_each_module_is_in_a_room() -> None:
    for module in files():
        if module not in ("harness", "scenarios", "scenarios.catalog"):  # only there to hold the rooms
            assert within(module, tuple(ROOMS)), f"{module} is in no room"


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_the_rooms_above_it(room: str) -> None:
    mine = [module for module in files() if within(module, (*ROOMS, *ALONE)) == room]
    assert mine
    allowed = (room, *ROOMS[room].split(), "harness.base")
    wrong = [f"{module} imports {name}" for module in mine for name in imports(module) if not within(name, allowed)]
    assert not wrong


@pytest.mark.parametrize("room", ALONE)
def test_runtime_imports_nothing_of_the_project(room: str) -> None:
    mine = [module for module in files() if within(module, (room,))]
    wrong = [f"{module} imports {name}" for module in mine for name in imports(module) if not within(name, (room,))]
    assert mine
    assert not wrong


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_between_files() -> None:
    assert not circle({module: set(imports(module)) for module in files()})


def test_no_circle_between_packages() -> None:
    """A package is the modules that lie in a folder itself. Its ``__init__`` may look at folders below."""
    graph: dict[str, set[str]] = {}
    for module, path in files().items():
        if path.name == "__init__.py":
            continue
        mine = module.rpartition(".")[0]
        others = {name.rpartition(".")[0] for name in imports(module) if files()[name].name != "__init__.py"}
        graph.setdefault(mine, set()).update(others - {mine})
    assert not circle(graph)
