"""Writes every report of a run into its directory."""

from __future__ import annotations

import json
from pathlib import Path

from harness.base.errors import RunStoreError
from harness.base.files import write_atomic
from harness.results.runstore import Run, read_run
from harness.results.verdict import Verdict, judge
from reports.histogram import histogram_log
from reports.html import html
from reports.junit import junit
from reports.markdown import markdown
from reports.results import results
from reports.stages import StageView, per_second, view
from reports.tables import stages


def write_reports(directory: Path) -> Verdict:
    """Raises RunStoreError where the directory cannot be read or written."""
    run = read_run(directory)
    verdict = judge(run)
    write_atomic(directory / "results.json", json.dumps(results(run, verdict), indent=1, ensure_ascii=False) + "\n")
    write_atomic(directory / "junit.xml", junit(run, verdict))
    write_atomic(directory / "summary.md", markdown(run, verdict))
    page, plots = html(run, verdict, _stages(run))
    write_atomic(directory / "report.html", page)
    for name, content in plots.items():
        _write_below(directory, name, content)
    return verdict


def _stages(run: Run) -> list[StageView]:
    """Views of the stages that the report shows; every stage's timeline is written on the way, so that its samples,
    which may be many, are read once and by one stage at a time."""
    shown = {id(load) for load in stages(run)}
    views = []
    for load in run.loads:
        batch = run.samples(load)
        if batch is None:
            continue
        if id(load) in shown:
            views.append(view(load, batch, run.events))
            table = views[-1].seconds
        else:
            table = per_second(batch)
        stem = Path(load.samples).stem
        _write_below(run.directory, f"timelines/{stem}.csv", table.to_csv(index=False, float_format="%.9g"))
        _write_below(run.directory, f"timelines/{stem}.hlog", histogram_log(load, batch))
    return views


def _write_below(directory: Path, name: str, content: str | bytes) -> None:
    path = directory / name
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunStoreError(f"could not create {path.parent}: {error.strerror}") from error
    write_atomic(path, content)
