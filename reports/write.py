"""Writes every report of a run into its directory."""

from __future__ import annotations

import json
from pathlib import Path

from harness.errors import RunStoreError
from harness.runstore import Run, read_run, write_atomic
from harness.verdict import Verdict, judge
from reports.html import html
from reports.junit import junit
from reports.markdown import markdown
from reports.results import results
from reports.series import histogram_log, per_second


def write_reports(directory: Path) -> Verdict:
    """Raises RunStoreError where the directory cannot be read or written."""
    run = read_run(directory)
    verdict = judge(run)
    write_atomic(directory / "results.json", json.dumps(results(run, verdict), indent=1, ensure_ascii=False) + "\n")
    write_atomic(directory / "junit.xml", junit(run, verdict))
    write_atomic(directory / "summary.md", markdown(run, verdict))
    write_atomic(directory / "report.html", html(run, verdict))
    _write_series(run)
    return verdict


def _write_series(run: Run) -> None:
    for load in run.loads:
        batch = run.samples(load)
        if batch is None or not len(batch):
            continue
        place = run.directory / "timelines" / Path(load.samples).stem
        try:
            place.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise RunStoreError(f"could not create {place.parent}: {error.strerror}") from error
        write_atomic(place.with_suffix(".csv"), per_second(batch).to_csv(index=False, float_format="%.9g"))
        write_atomic(place.with_suffix(".hlog"), histogram_log(load, batch))
