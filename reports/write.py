"""Writes every report of a run into its directory."""

from __future__ import annotations

import json
from pathlib import Path

from harness.runstore import read_run, write_atomic
from harness.verdict import Verdict, judge
from reports.html import html
from reports.junit import junit
from reports.markdown import markdown
from reports.results import results


def write_reports(directory: Path) -> Verdict:
    """Raises RunStoreError where the directory cannot be read or written."""
    run = read_run(directory)
    verdict = judge(run)
    write_atomic(directory / "results.json", json.dumps(results(run, verdict), indent=1, ensure_ascii=False) + "\n")
    write_atomic(directory / "junit.xml", junit(run, verdict))
    write_atomic(directory / "summary.md", markdown(run, verdict))
    write_atomic(directory / "report.html", html(run, verdict))
    return verdict
