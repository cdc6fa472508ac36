"""``servecert samples``: every request of a stage of load, as CSV or Parquet."""

from __future__ import annotations

import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

import typer

from harness.base.columns import let_go, pieces
from harness.base.errors import UsageError
from harness.base.files import atomic_file
from harness.results.records import LoadResult, SampleBatch
from harness.results.runstore import Run, read_run


class Format(StrEnum):
    CSV = "csv"
    PARQUET = "parquet"


def samples_command(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")],
    stage: Annotated[str, typer.Argument(metavar="[STAGE]", help="a stage of load; without it, they are listed")] = "",
    form: Annotated[Format, typer.Option("--format", help="csv or parquet")] = Format.CSV,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="standard output by default")] = None,
) -> None:
    """Writes the samples of a stage of load, a row a request, or lists the stages that have some."""
    run = read_run(directory)
    if not stage:
        for load in run.loads:
            print(f"{load.step}\t{load.service}\t{load.requests} requests\t{load.samples or 'no samples'}")
        return
    load = _find(run, stage)
    if not load.samples or not (run.directory / load.samples).exists():
        raise UsageError(f"{directory}: the samples of {stage!r} are not there; expected {load.samples or 'a file'}")
    if out is None:
        _write(run, load, form, sys.stdout.buffer)
    else:
        with atomic_file(out) as file:
            _write(run, load, form, file)


def _find(run: Run, stage: str) -> LoadResult:
    found = [load for load in run.loads if load.step == stage]
    if not found:
        there = ", ".join(dict.fromkeys(load.step for load in run.loads)) or "none"
        raise UsageError(f"{run.directory}: no stage of load is called {stage!r}; there are: {there}")
    return found[0]


def _write(run: Run, load: LoadResult, form: Format, file: IO[bytes]) -> None:
    if form is Format.PARQUET:
        with (run.directory / load.samples).open("rb") as source:
            shutil.copyfileobj(source, file)
        return
    batch = run.samples(load)
    if batch is not None:
        write_csv(batch, file)


def write_csv(batch: SampleBatch, file: IO[bytes]) -> None:
    """A heading and a row a request, in the order of the due times. Moments are nanoseconds from the start of the stage
    and empty where they never came; ``latency_s`` counts from the due time, and is empty where the request failed;
    ``error`` is a class, empty for none."""
    import numpy as np
    import pandas as pd

    classes = np.array(batch.error_classes, dtype=object)
    for number, part in enumerate(pieces(len(batch))):
        moments = {
            name: pd.array(getattr(batch, name)[part], dtype="Int64")
            for name in ("due_ns", "dispatched_ns", "sent_ns", "first_byte_ns", "done_ns")
        }
        for values in moments.values():
            values[values < 0] = pd.NA
        table = pd.DataFrame(
            {
                **moments,
                "latency_s": np.where(batch.error[part] == 0, (batch.done_ns[part] - batch.due_ns[part]) / 1e9, np.nan),
                "status": batch.status[part],
                "bytes": batch.bytes[part],
                "error": classes[batch.error[part]],
            }
        )
        file.write(table.to_csv(index=False, header=number == 0).encode())
        let_go(batch.due_ns, batch.done_ns, batch.dispatched_ns, batch.sent_ns, batch.first_byte_ns)
