"""The run directory: records written as they happen, readable after a crash at any moment.

Files: ``run.json`` (what, when, versions, host, seeds, exit), ``scenario.yaml`` (as resolved), ``events.jsonl``,
``checks.jsonl``, ``measurements.jsonl``, ``loads.jsonl``, ``parity.jsonl``, ``series.jsonl``, ``samples/*.parquet``,
``manifests/``, ``logs/``. Whole files appear by atomic rename; lines are appended whole, and a torn last line is
ignored by the reader.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from harness.base.columns import PIECE_ROWS, gathered, let_go, pieces
from harness.base.errors import DeployError, RunStoreError, ServecertError
from harness.base.files import atomic_file, write_atomic
from harness.base.gpus import describe_gpus
from harness.results.records import (
    CheckResult,
    Comparison,
    LoadResult,
    Measurement,
    ParityResult,
    Record,
    SampleBatch,
    Series,
    TimelineEvent,
    check_from_json,
    comparison_from_json,
    load_from_json,
    measurement_from_json,
    parity_from_json,
    series_from_json,
    to_json,
)

_T = TypeVar("_T")
_LINES: dict[type, str] = {
    CheckResult: "checks.jsonl",
    Measurement: "measurements.jsonl",
    TimelineEvent: "events.jsonl",
    LoadResult: "loads.jsonl",
    ParityResult: "parity.jsonl",
    Series: "series.jsonl",
    Comparison: "comparisons.jsonl",
}
RECORDS = tuple(_LINES.values())
"""The files that hold what was learnt, samples apart."""
_COLUMNS = ["due_ns", "dispatched_ns", "sent_ns", "first_byte_ns", "done_ns", "status", "bytes", "error"]


def describe_host() -> dict[str, Any]:
    import psutil

    return {
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "gpus": describe_gpus(),
    }


def package_versions(
    names: tuple[str, ...] = ("servecert", "numpy", "httpx", "grpcio", "protobuf", "kubernetes"),
) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


class RunStore:
    """Writes one run. Every write is on disk (as far as the kernel) when the call returns."""

    def __init__(self, directory: Path, name: str, *, seed: int, command: list[str] | None = None) -> None:
        """Raises RunStoreError when the directory cannot be made, written, or already holds a run."""
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for part in ("samples", "manifests", "logs"):
                (directory / part).mkdir(exist_ok=True)
        except OSError as error:
            raise RunStoreError(
                f"cannot write the run directory {directory}: {error.strerror}; choose another with --out"
            ) from error
        if (directory / "run.json").exists():
            raise RunStoreError(f"{directory} already holds a run; choose another directory with --out or remove it")
        self._files: dict[str, IO[bytes]] = {}
        self.info: dict[str, Any] = {
            "format": 1,
            "name": name,
            "command": command or sys.argv,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": None,
            "exit_code": None,
            "seed": seed,
            "host": describe_host(),
            "versions": package_versions(),
            "runtimes": {},
            "services": {},
            "errors": [],
            "steps": [],
        }
        self.save_info()

    def save_info(self) -> None:
        self.write_text("run.json", json.dumps(self.info, indent=2, default=str) + "\n")

    def write_text(self, name: str, text: str) -> None:
        write_atomic(self.directory / name, text)

    def write_manifest(self, name: str, manifest: dict[str, Any]) -> None:
        text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True)
        self.write_text(f"manifests/{_slug(name)}.yaml", text)

    def add_error(self, error: ServecertError, service: str = "") -> None:
        """What kept the run, or one service of it, from being measured."""
        self.info["errors"].append(
            {
                "kind": type(error).__name__,
                "message": str(error).partition("\nlast log lines:\n")[0],
                "exit_code": error.exit_code,
                "service": service,
                "log": error.logs if isinstance(error, DeployError) else "",
            }
        )
        self.save_info()

    def writable(self) -> bool:
        """Whether the directory still takes writes."""
        try:
            self.save_info()
        except RunStoreError:
            return False
        return True

    def add(self, record: Record) -> None:
        """Appends one record. Raises RunStoreError on a full disk: a run that cannot be recorded is not a run."""
        if isinstance(record, SampleBatch):
            self._write_samples(record)
            return
        name = _LINES[type(record)]
        line = json.dumps(to_json(record), ensure_ascii=False).encode() + b"\n"
        path = self.directory / name
        try:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = path.open("ab", buffering=0)
            written = file.write(line)
        except OSError as error:
            raise RunStoreError(
                f"could not write {path}: {error.strerror}; what was measured up to here is kept,"
                f" `servecert report {self.directory}` reads it"
            ) from error
        if written != len(line):
            raise RunStoreError(f"could not write {path}: no space left; free some space or choose another --out")

    def save(self, name: str, text: str) -> str:
        """Keeps a text in the run directory; its place there. Raises RunStoreError."""
        place = f"artifacts/{_slug(name)}"
        try:
            (self.directory / "artifacts").mkdir(exist_ok=True)
        except OSError as error:
            raise RunStoreError(f"could not create {self.directory / 'artifacts'}: {error.strerror}") from error
        self.write_text(place, text)
        return place

    def samples_name(self, service: str, step: str) -> str:
        return f"samples/{_slug(step)}-{_slug(service)}.parquet"

    def _write_samples(self, batch: SampleBatch) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        metadata = {"error_classes": json.dumps(batch.error_classes), "service": batch.service, "step": batch.step}
        columns = {name: getattr(batch, name) for name in _COLUMNS}
        schema = pa.schema([(name, pa.from_numpy_dtype(values.dtype)) for name, values in columns.items()], metadata)
        # Moments rise from row to row, which is what this encoding is for: a third less than without, and faster.
        encodings = {name: "DELTA_BINARY_PACKED" for name in _COLUMNS if name.endswith("_ns")}
        options = {"use_dictionary": ["status", "bytes", "error"], "column_encoding": encodings}
        with (
            atomic_file(self.directory / self.samples_name(batch.service, batch.step)) as file,
            pq.ParquetWriter(file, schema, compression="zstd", **options) as writer,
        ):
            for part in pieces(len(batch)):
                writer.write_table(pa.table([_arrow(values[part]) for values in columns.values()], schema=schema))
                let_go(*columns.values())

    def finish(self, exit_code: int) -> None:
        self.info["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.info["exit_code"] = exit_code
        self.save_info()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def _arrow(values: npt.NDArray[Any]) -> Any:
    """The same numbers. ``pa.array`` would look for pandas first, which takes half a second to import."""
    import pyarrow as pa

    whole = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(whole.dtype), whole.size, [None, pa.py_buffer(whole)])


@dataclass(frozen=True)
class Run:
    """A run directory as read back, whatever state it was left in."""

    directory: Path
    info: dict[str, Any]
    checks: list[CheckResult] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    events: list[TimelineEvent] = field(default_factory=list)
    loads: list[LoadResult] = field(default_factory=list)
    parity: list[ParityResult] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        return self.info.get("exit_code") is None or self.info.get("exit_code") == 130

    def samples(self, load: LoadResult) -> SampleBatch | None:
        """The samples behind a load result; None where there are none (a run that was killed). Many rows lie in
        files without a name, which are gone with the arrays."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.directory / load.samples
        if not path.exists():
            return None
        try:
            with pq.ParquetFile(path) as file:
                classes = tuple(json.loads(file.schema_arrow.metadata[b"error_classes"]))
                rows = file.metadata.num_rows
                parts = (
                    {name: part[name].to_numpy() for name in _COLUMNS}
                    for part in file.iter_batches(PIECE_ROWS, columns=_COLUMNS)
                )
                columns = gathered(parts, rows) if rows else {}
        except (OSError, pa.ArrowException) as error:
            raise RunStoreError(f"could not read {path}: {error}") from error
        if not columns:
            return None
        return SampleBatch(service=load.service, step=load.step, error_classes=classes, **columns)


def read_run(directory: Path) -> Run:
    """Raises RunStoreError when ``directory`` is not a run directory; a torn last line is left out."""
    path = directory / "run.json"
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunStoreError(f"{directory} is not a run directory: expected a file run.json in it") from error
    except (OSError, ValueError) as error:
        raise RunStoreError(f"could not read {path}: {error}") from error
    return Run(
        directory=directory,
        info=info,
        checks=_read_lines(directory / "checks.jsonl", check_from_json),
        measurements=_read_lines(directory / "measurements.jsonl", measurement_from_json),
        events=_read_lines(directory / "events.jsonl", lambda data: TimelineEvent(**data)),
        loads=_read_lines(directory / "loads.jsonl", load_from_json),
        parity=_read_lines(directory / "parity.jsonl", parity_from_json),
        series=_read_lines(directory / "series.jsonl", series_from_json),
        comparisons=_read_lines(directory / "comparisons.jsonl", comparison_from_json),
    )


def _read_lines(path: Path, build: Callable[[dict[str, Any]], _T]) -> list[_T]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(build(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise RunStoreError(f"{path}:{number}: not a record of this version of servecert: {error}") from error
    return records


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-") or "unnamed"
