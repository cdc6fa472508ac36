"""``servecert history`` and ``servecert site``: runs over time."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from harness.base.errors import EXIT_FAILED, MeasurementError, RunStoreError, UsageError
from harness.base.files import write_atomic
from harness.base.units import format_duration
from harness.cli.options import Json, share_of
from harness.cli.output import emit_json
from harness.results.history import Trend, finished, trends
from harness.results.records import plain
from harness.results.runstore import RECORDS, Run, read_run

Where = Annotated[str, typer.Argument(metavar="DIR", help="a folder of run directories, or a bucket of them (s3://…)")]
Margin = Annotated[str, typer.Option(help="what must be exceeded to count as worse, beside what chance explains")]
WIDTH = 200
"""Of a table that goes to a file or a pipe, in characters."""
NEWER = "the newest run, "
"""How it begins what is said of a run that is newer than those that finished."""
FILES = ("run.json", *RECORDS, "report.html", "summary.md")


def _margin(text: str) -> float:
    share = share_of("--margin", text)
    if not 0 <= share < 1:
        raise UsageError(f"--margin: expected a share below 1, got {text!r}")
    return share


@contextlib.contextmanager
def fetched(where: str) -> Iterator[Path]:
    """A folder on this machine with what a history needs of each run; a bucket's is copied. Raises UsageError."""
    if "://" not in where:
        folder = Path(where)
        if not folder.is_dir():
            raise UsageError(f"{where}: expected a folder of run directories")
        yield folder
        return
    import fsspec

    with tempfile.TemporaryDirectory(prefix="servecert-history-") as name:
        try:
            system, root = fsspec.core.url_to_fs(where)
            for path in system.glob(f"{root.rstrip('/')}/*/run.json"):
                remote = str(path).rpartition("/")[0]
                local = Path(name) / remote.rpartition("/")[2]
                local.mkdir()
                for file in FILES:
                    if system.exists(f"{remote}/{file}"):
                        system.get_file(f"{remote}/{file}", str(local / file))
        except Exception as error:  # each file system has its own kinds
            raise UsageError(f"cannot read {where}: {type(error).__name__}: {error}") from error
        yield Path(name)


def read_all(folder: Path) -> tuple[list[Run], list[str]]:
    """Runs oldest first, and what is to be said of folders that could not be read. Raises MeasurementError for none."""
    runs, problems = [], []
    for path in sorted(folder.iterdir()):
        if not (path / "run.json").exists():
            continue
        try:
            runs.append(read_run(path))
        except RunStoreError as error:
            problems.append(str(error))
    whole = finished(runs)
    problems += [f"{run.directory.name} was interrupted, and is left out" for run in runs if run.interrupted]
    last = max((str(run.info.get("started")) for run in whole), default="")
    later = [run.directory.name for run in runs if run.interrupted and str(run.info.get("started")) > last]
    problems[:0] = [f"{NEWER}{name}, was interrupted: nothing is said of it" for name in later]
    if not whole:
        raise MeasurementError(
            f"{folder}: expected finished runs, found none" + "".join(f"\n{text}" for text in problems)
        )
    return whole, problems


def history_command(
    where: Where,
    margin: Margin = "5%",
    metric: Annotated[list[str] | None, typer.Option(help="only these, such as p99 or capacity")] = None,
    fail_on: Annotated[str, typer.Option(metavar="regression", help="exit code 1 where the newest run is worse")] = "",
    json: Json = "",
) -> None:
    """Each metric of the runs in a folder over time: where it changed, whether the newest run is worse, and what would
    have been called so. A night in which nothing changed is called worse in at most one of twenty, over all metrics."""
    if fail_on not in ("", "regression"):
        raise UsageError(f"--fail-on {fail_on!r}: expected regression")
    with fetched(where) as folder:
        runs, problems = read_all(folder)
        found = [item for item in trends(runs, _margin(margin)) if not metric or item.metric in metric]
    if json:
        data = [{**asdict(item), "title": item.title} for item in found]
        emit_json(json, plain({"runs": [run.directory.name for run in runs], "problems": problems, "trends": data}))
    if json != "-":
        _print(runs, found, problems)
    if fail_on:
        _gate(runs, found, problems)


def _gate(runs: list[Run], found: list[Trend], problems: list[str]) -> None:
    """Green because nothing could be compared would be a lie. Raises MeasurementError for it, and Exit for what is
    worse."""
    if any(item.regression for item in found):
        raise typer.Exit(EXIT_FAILED)
    if not any(item.judged for item in found):
        raise MeasurementError(f"no metric has enough runs before the newest to judge it by ({len(runs)} runs)")
    if missing := [item for item in found if item.missing]:
        texts = "".join(f"\n{item.title}: {item.unjudged}" for item in missing)
        raise MeasurementError(f"{len(missing)} metrics that were judged before cannot be judged now{texts}")
    if newer := [text for text in problems if text.startswith(NEWER)]:
        raise MeasurementError(newer[0])


def shown(trend: Trend, value: float) -> str:
    if trend.unit == "s":
        return format_duration(value)
    return f"{value:.2%}" if trend.unit == "share" else f"{value:.4g}{trend.unit}"


def _print(runs: list[Run], found: list[Trend], problems: list[str]) -> None:
    if len(runs) == 1:
        print(f"one finished run, {runs[0].directory.name}: a trend needs two of the same scenario or more")
        for text in problems:
            print(f"left out: {text}")
        return
    table = Table(
        "metric", "runs", "first", "newest", "changed at", "newest run", "worse from", box=None, pad_edge=False
    )
    for item in found:
        changed = ", ".join(item.points[place].run for place in item.changes) or "–"
        verdict = f"worse: {item.regression}" if item.regression else "as before" if item.judged else "not judged"
        first, newest = item.points[0].value, item.points[-1].value
        from_ = shown(item, item.limit) if item.limit is not None else "–"
        table.add_row(
            item.title, str(len(item.points)), shown(item, first), shown(item, newest), changed, verdict, from_
        )
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH).print(table)
    for reason, items in groupby(sorted(found, key=lambda item: item.unjudged), lambda item: item.unjudged):
        if reason:
            print(f"not judged, {reason}: {', '.join(item.title for item in items)}")
    for text in problems:
        print(f"left out: {text}")
    worse, judged = sum(bool(item.regression) for item in found), sum(item.judged for item in found)
    print(
        f"{len(runs)} runs, {len(found)} metrics: {judged} judged, {worse} worse in the newest run,"
        f" {len(found) - judged} not judged"
    )


def site_command(
    where: Where,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where to write it; what is there is kept")],
    margin: Margin = "5%",
    title: Annotated[str, typer.Option(help="of the pages")] = "servecert",
) -> None:
    """A static site of the runs in a folder: index, trends, scorecard, and each run's report."""
    from reports.site import site

    with fetched(where) as folder:
        runs, problems = read_all(folder)
        found = trends(runs, _margin(margin))
        pages: dict[str, Any] = site(runs, found, problems, title)
        try:
            for name, content in pages.items():
                path = out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content)
        except OSError as error:
            raise RunStoreError(f"cannot write {out}: {error.strerror}") from error
    print(f"{out / 'index.html'}: {len(runs)} runs, {len(found)} metrics")
