"""Which Python an environment is built with: this one, or another where a runtime has no release for it.

Looked for are ``python3.N`` on PATH, and what ``uv`` has or brings. An interpreter counts where it runs and can make
environments.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from harness.base.errors import EnvironmentError_, RuntimeSpecError

NEWEST, OLDEST = 14, 9
"""Minor versions of Python 3 that are looked for, the newest first."""
_TELL = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Interpreter:
    path: Path
    version: str
    """Major and minor."""


@functools.cache
def find_interpreter(name: str, wanted: str) -> Interpreter:
    """For ``name``, which runs on the Pythons ``wanted`` (such as ``>=3.9,<3.13``; empty for any). Raises
    EnvironmentError_ where there is none, RuntimeSpecError for what is no range of versions."""
    try:
        fits = SpecifierSet(wanted)
    except InvalidSpecifier as error:
        raise RuntimeSpecError(f"{name}: python: expected versions such as '>=3.9,<3.13', got {wanted!r}") from error
    if HERE in fits:
        return Interpreter(Path(sys.executable), HERE)
    for version in (f"3.{minor}" for minor in range(NEWEST, OLDEST - 1, -1)):
        if version in fits:
            for path in _candidates(version):
                if _version_of(path) == version:
                    return Interpreter(path, version)
    raise EnvironmentError_(
        f"{name} runs on Python {wanted}, and this is Python {HERE}; found no other on PATH that can make environments:"
        " install one (with its venv module), or uv, which brings its own"
    )


def _candidates(version: str) -> Iterator[Path]:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if folder and (found := shutil.which(f"python{version}", path=folder)):
            yield Path(found)
    if uv := shutil.which("uv"):
        for command in ([uv, "python", "find", version], [uv, "python", "install", version]):
            if _output(command) and (path := _output([uv, "python", "find", version])):
                yield Path(path)


def _version_of(path: Path) -> str:
    """Empty where it does not run, or cannot make environments."""
    return _output([str(path), "-c", _TELL])


def _output(command: list[str]) -> str:
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
