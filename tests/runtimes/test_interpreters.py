"""Which Python an environment is built with. Other versions are stand-ins on PATH, since no machine has them all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base.errors import EnvironmentError_, RuntimeSpecError
from runtimes.catalog import find_runtime
from runtimes.interpreters import HERE, find_interpreter

OTHER = "3.12" if HERE != "3.12" else "3.11"


@pytest.fixture(autouse=True)
def unremembered() -> Iterator[None]:
    find_interpreter.cache_clear()
    yield
    find_interpreter.cache_clear()


def stand_in(folder: Path, version: str, says: str, code: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"python{version}"
    path.write_text(f"#!/bin/sh\necho {says}\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_this_python_is_taken_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_interpreter("r", "").path == find_interpreter("r", f"=={HERE}").path == Path(sys.executable)


def test_another_one_is_taken_where_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not run, as a shim of an inactive version, is passed over."""
    stand_in(tmp_path / "shims", OTHER, "no such version", code=127)
    fine = stand_in(tmp_path / "bin", OTHER, OTHER)
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}:/bin")
    found = find_interpreter("r", f"=={OTHER}")
    assert (found.path, found.version) == (fine, OTHER)


def test_uv_is_asked_where_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = stand_in(tmp_path / "theirs", OTHER, OTHER)
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\n[ "$2 $3" = "find {OTHER}" ] && echo {theirs}\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_interpreter("r", f"=={OTHER}").path == theirs


def test_where_there_is_none_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentError_, match=f"r runs on Python ==3.1, and this is Python {HERE}.*install one"):
        find_interpreter("r", "==3.1")
    with pytest.raises(RuntimeSpecError, match="expected versions such as"):
        find_interpreter("r", "three")


@pytest.mark.parametrize("name", ["mlserver", "mlserver@1.6.1", "kserve"])
def test_runtimes_say_which_pythons_they_run_on(name: str) -> None:
    runtime = find_runtime(name)
    assert runtime.spec.versions[runtime.version].python.startswith(">=3")
