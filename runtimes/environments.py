"""Python environments of runtimes: built once with venv and pip, keyed by the hash of what they are made of.

On the embedded cluster such an environment is an image, and building it is the image pull.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.base.errors import EnvironmentError_
from runtimes.interpreters import Interpreter, find_interpreter

Progress = Callable[[str], None]


def cache_directory() -> Path:
    """``$SERVECERT_CACHE``, else ``$XDG_CACHE_HOME/servecert``, else ``~/.cache/servecert``."""
    if explicit := os.environ.get("SERVECERT_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "servecert"


def unwritable(path: Path, error: OSError) -> EnvironmentError_:
    return EnvironmentError_(
        f"cannot write {path}: {error.strerror}; free some space or point SERVECERT_CACHE elsewhere"
    )


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes away with its holder, however that ends. Raises EnvironmentError_."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise unwritable(path.parent, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def environment_path(name: str, requirements: str, python: str = "") -> Path:
    """``python`` are the versions that it runs on. Raises EnvironmentError_ where this machine has none of them."""
    made_of = f"{find_interpreter(name, python).version}\n{requirements}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return cache_directory() / "environments" / f"{name}-{digest}"


def is_built(path: Path) -> bool:
    return (path / "complete").exists()


def build_environment(
    name: str,
    requirements: str,
    progress: Progress = lambda line: None,
    stop: threading.Event | None = None,
    python: str = "",
) -> Path:
    """The environment's directory, built if it is not there yet. ``requirements`` is the text of a requirements file,
    ``python`` the versions that it runs on.

    Raises EnvironmentError_ with pip's last lines; nothing half-built is left behind. ``stop`` ends the build early.
    """
    path = environment_path(name, requirements, python)
    if is_built(path):
        return path
    with exclusive(path.with_suffix(".lock")):
        if is_built(path):
            return path
        shutil.rmtree(path, ignore_errors=True)
        try:
            interpreter = find_interpreter(name, python)
            _build(path, name, requirements, interpreter, progress, stop or threading.Event())
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    return path


def _build(
    path: Path, name: str, requirements: str, python: Interpreter, progress: Progress, stop: threading.Event
) -> None:
    progress(f"creating the environment of {name}, with Python {python.version}")
    lines: list[str] = []
    try:
        path.mkdir(parents=True)
        _run([str(python.path), "-m", "venv", str(path)], lines, progress, stop)
        pins = path / "requirements.txt"
        pins.write_text(requirements)
        pip = [str(path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        # Compiling every module ahead takes as long as unpacking them; Python compiles the few that it imports.
        _run([*pip, "install", "--no-compile", "--progress-bar", "off", "-r", str(pins)], lines, progress, stop)
        (path / "complete").touch()
    except OSError as error:
        raise EnvironmentError_(
            f"could not build the environment of {name} in {path}: {error.strerror};"
            " free some space or point SERVECERT_CACHE elsewhere"
        ) from error


def _run(command: list[str], lines: list[str], progress: Progress, stop: threading.Event) -> None:
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.2):
                if stop.is_set():
                    process.terminate()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.startswith(("Collecting", "Downloading", "Installing", "Building")):
                    progress(line.strip())
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
            ended.set()
            watcher.join()
    if process.returncode != 0:
        tail = "\n".join(lines[-12:])
        raise EnvironmentError_(
            f"{' '.join(command[1:5])} failed with exit code {process.returncode}; its last lines:\n{tail}"
        )
