"""What was created and has not been taken down yet: one file a cluster, written before anything is created.

A run that is killed leaves its file behind; ``servecert cluster down --all`` takes down what the files name. They hold
no secret, and are for their owner only.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.processes import boot_id, start_ticks
from harness.base.errors import ClusterError, ServecertError
from harness.base.files import write_atomic

LOGS_KEPT = 50


def state_directory() -> Path:
    """``SERVECERT_STATE``, else below ``XDG_STATE_HOME``. Unlike a cache it must not be lost."""
    if chosen := os.environ.get("SERVECERT_STATE"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "servecert"


@dataclass(frozen=True)
class Entry:
    """``spec`` is the scenario's cluster section, from which the commands that take it down are made again. ``kept``
    says that it was meant to outlive the command that made it."""

    provider: str
    name: str
    spec: dict[str, Any]
    created_s: float
    expires_s: float
    kept: bool
    state: str = "creating"
    pid: int = field(default_factory=os.getpid)
    boot: str = field(default_factory=boot_id)
    started: int = 0

    @property
    def key(self) -> str:
        return f"{self.provider}-{self.name}"

    @property
    def directory(self) -> Path:
        """Kubeconfig and what else is the cluster's own."""
        return state_directory() / "clusters" / self.key

    @property
    def log(self) -> Path:
        """What the commands printed. It stays when the cluster is gone, for those who ask why."""
        stamp = datetime.fromtimestamp(self.created_s, UTC).strftime("%Y%m%d-%H%M%S")
        return state_directory() / "logs" / f"{self.key}-{stamp}.log"

    @property
    def expired(self) -> bool:
        return time.time() > self.expires_s

    @property
    def owner_lives(self) -> bool:
        """Whether the command that made it still runs."""
        return self.boot == boot_id() and start_ticks(self.pid) == self.started

    def describe(self) -> str:
        left = self.expires_s - time.time()
        when = f"{left / 3600:.1f} h left" if left > 0 else f"expired {-left / 3600:.1f} h ago"
        if self.owner_lives:
            owner = f"used by process {self.pid}"
        else:
            owner = "kept" if self.kept and self.state == "up" else "left behind: the command that made it is gone"
        return f"{self.key}: {self.state}, {when}, {owner}"


def _path(key: str) -> Path:
    return state_directory() / "clusters" / f"{key}.json"


def _text(entry: Entry) -> str:
    return json.dumps(asdict(entry), indent=1) + "\n"


def begin(provider: str, name: str, spec: dict[str, Any], ttl_s: float, *, kept: bool) -> Entry:
    """Writes down that a cluster is about to be created. Raises ClusterError where one of that name is known."""
    now = time.time()
    entry = Entry(provider, name, spec, now, now + ttl_s, kept, started=start_ticks(os.getpid()))
    path = _path(entry.key)
    draft = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(draft, _text(entry), 0o600)
        os.link(draft, path)  # fails where it exists: of two commands that begin at once, one does
        entry.directory.mkdir(exist_ok=True, mode=0o700)
    except FileExistsError:
        known = find(entry.key)
        raise ClusterError(
            f"there is a cluster already: {known.describe() if known else entry.key}; choose another name, or take it"
            f" down first: servecert cluster down {entry.key}"
        ) from None
    except (OSError, ServecertError) as error:
        raise ClusterError(f"cannot write {path}, so nothing is created: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return entry


def mark(entry: Entry, state: str) -> Entry:
    changed = replace(entry, state=state)
    _path(entry.key).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(_path(entry.key), _text(changed), 0o600)
    return changed


def find(key: str) -> Entry | None:
    """Raises ClusterError for a file that is there and cannot be read: it may name something that costs money."""
    path = _path(key)
    if not path.exists():
        return None
    try:
        return Entry(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(f"{path}: expected what is known of a cluster: {error}; look for it by hand") from error


def entries() -> list[Entry]:
    """All that is known, oldest first. Raises ClusterError."""
    folder = state_directory() / "clusters"
    found = [find(path.stem) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.created_s)


def forget(entry: Entry) -> None:
    """The cluster is gone: its file and its directory go. Of the logs the newest few stay."""
    _path(entry.key).unlink(missing_ok=True)
    shutil.rmtree(entry.directory, ignore_errors=True)
    logs = sorted((state_directory() / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
    for path in logs[:-LOGS_KEPT]:
        path.unlink(missing_ok=True)
