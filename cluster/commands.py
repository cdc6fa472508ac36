"""Command-line tools as this project runs them: every command is known before any of them runs, is written to a log,
and fails with what it printed last.

A plan is a list of commands made by pure functions from a scenario, so that what is printed is what is run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from harness.base.errors import ClusterError

Progress = Callable[[str], None]
LAST_LINES = 15
RETRY_S = 5.0
"""Before the second attempt, and twice as long before the third; ``SERVECERT_RETRY_S`` says otherwise."""
KILL_S = 20.0
"""How long a tool may take to end in order when it is told to stop."""


@dataclass(frozen=True)
class Command:
    """One invocation. ``stdin`` is given to it; ``tolerate`` matches what it prints when there was nothing to do."""

    argv: tuple[str, ...]
    does: str
    stdin: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 1800.0
    tolerate: str = ""
    attempts: int = 1
    """For what fails now and then for reasons of the network, and is safe to repeat."""

    def shown(self) -> str:
        """As one could paste it into a shell."""
        variables = "".join(f"{key}={shlex.quote(value)} " for key, value in self.environment.items())
        text = variables + shlex.join(self.argv)
        return f"{text} <<'EOF'\n{self.stdin.rstrip()}\nEOF" if self.stdin else text


def missing_tools(commands: Iterable[Command]) -> list[str]:
    """The programs that the commands need and that are not on PATH."""
    return sorted({command.argv[0] for command in commands if shutil.which(command.argv[0]) is None})


_INSTALL = {
    "kind": "https://kind.sigs.k8s.io",
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "gke-gcloud-auth-plugin": "gcloud components install gke-gcloud-auth-plugin",
    "eksctl": "https://eksctl.io",
    "az": "https://learn.microsoft.com/cli/azure/install-azure-cli",
    "helm": "https://helm.sh/docs/intro/install",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
}


def require_tools(commands: Iterable[Command]) -> None:
    """Raises ClusterError that names every program that is missing, and where it comes from."""
    if missing := missing_tools(commands):
        named = ", ".join(f"{name} ({_INSTALL[name]})" if name in _INSTALL else name for name in missing)
        raise ClusterError(f"not on PATH: {named}; install it and start again. Nothing was created")


def numbered(commands: list[Command], progress: Progress) -> Iterator[Command]:
    """One after the other; which it is, of how many, is told before each."""
    for number, command in enumerate(commands, 1):
        progress(f"{number} of {len(commands)}: {command.does}")
        yield command


def run(command: Command, log: Path, stop: threading.Event, progress: Progress = lambda line: None) -> str:
    """What the command printed on standard output. Both of its outputs go to ``log`` as well, and its last line to
    ``progress``. Raises ClusterError; with ``stop`` set the command is ended, in order if it will."""
    for attempt in range(1, command.attempts + 1):
        try:
            return _run_once(command, log, stop, progress)
        except _FailedError as error:
            if attempt == command.attempts or stop.is_set():
                raise ClusterError(str(error)) from None
            progress(f"once more, as it failed: {command.does}")
            if stop.wait(float(os.environ.get("SERVECERT_RETRY_S", RETRY_S)) * attempt):
                raise ClusterError(str(error)) from None
    raise AssertionError


class _FailedError(Exception):
    pass


def _run_once(command: Command, log: Path, stop: threading.Event, progress: Progress) -> str:
    if stop.is_set():
        raise ClusterError(f"stopped before it could {command.does}")
    started = time.monotonic()
    program = shutil.which(command.argv[0])
    if program is None:
        raise ClusterError(f"could not {command.does}: {command.argv[0]} is not on PATH")
    try:
        # A session of its own: Ctrl-C is for the harness, which then ends the tool and takes down what it made.
        process = subprocess.Popen(
            with_parent([program, *command.argv[1:]]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **command.environment},
            start_new_session=True,
        )
    except OSError as error:
        raise ClusterError(f"could not {command.does}: {command.argv[0]}: {error.strerror}") from error
    said: list[str] = []
    printed: list[str] = []
    with _open_log(log) as file, process:
        _note(file, f"\n$ {command.shown()}\n")
        readers = [
            threading.Thread(
                target=_read, args=(process.stdout, file, [said, printed], lambda line: None), daemon=True
            ),
            threading.Thread(target=_read, args=(process.stderr, file, [said], progress), daemon=True),
        ]
        for reader in readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write(command.stdin)
            process.stdin.close()
        why = ""
        while process.poll() is None:
            if stop.wait(0.05):
                why = "it was stopped"
            elif time.monotonic() - started > command.timeout_s:
                why = f"it took longer than {command.timeout_s:g} s"
            if why:
                _end(process)
                break
        for reader in readers:
            reader.join(5)
        _note(file, f"# exit {process.returncode} after {time.monotonic() - started:.1f} s\n")
    text = "".join(said)
    if process.returncode == 0 and not why:
        return "".join(printed)
    if command.tolerate and re.search(command.tolerate, text):
        return "".join(printed)
    last = "\n".join(text.strip().splitlines()[-LAST_LINES:])
    why = why or f"exit code {process.returncode}"
    raise _FailedError(f"could not {command.does}: {why}\n$ {shlex.join(command.argv)}\n{last}\nall of it: {log}")


def with_parent(command: list[str]) -> list[str]:
    """The command, ended by the kernel when this process is: after a SIGKILL nobody else would. Source: setpriv(1)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", *command] if setpriv else command


def _open_log(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a")
    except OSError as error:
        raise ClusterError(f"cannot write {path}: {error.strerror}") from error


def _note(file: IO[str], text: str) -> None:
    # A full disk must not keep a cluster from being taken down.
    with contextlib.suppress(OSError):
        file.write(text)
        file.flush()


def _read(stream: IO[str] | None, log: IO[str], into: list[list[str]], progress: Progress) -> None:
    assert stream is not None
    for line in stream:
        for kept in into:
            kept.append(line)
        _note(log, line)
        if line.strip():
            progress(line.strip())


def _end(process: subprocess.Popen[str]) -> None:
    """The tool and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(KILL_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
