"""Figures that somebody else published stand beside ours, and decide nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.results.records import Measurement, TimelineEvent
from harness.results.runstore import RunStore, read_run
from reports.tables import PUBLISHED, beside_rows
from reports.write import write_reports
from scenarios.suites.load.model import LoadStep
from tests.records import check, load_result


def test_ours_and_theirs_stand_side_by_side(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", "beside", seed=1)
    store.info["steps"] = [{"name": "1", "suite": "load", "service": "svc", "state": "done"}]
    store.add(check("load.valid", suite="load", step="1"))
    store.add(load_result(errors=10))
    store.add(Measurement("published.p99", 0.0076, "s", 1, "svc", "1"))
    store.add(Measurement("published.success", 1.0, "share", 1, "svc", "1"))
    store.add(TimelineEvent("servecert", "1", PUBLISHED, "a paper, on a cluster of eight nodes"))
    store.finish(0)
    store.close()
    (row,) = beside_rows(read_run(store.directory))
    assert row.figures == [("p99", "40 ms", "7.6 ms"), ("success", "99.00%", "100.00%")]
    assert write_reports(store.directory).passed
    assert "40 ms (7.6 ms)" in (store.directory / "summary.md").read_text()
    page = (store.directory / "report.html").read_text()
    assert "theirs 7.6 ms" in page
    assert "a paper, on a cluster of eight nodes" in page


def test_published_figures_need_a_source() -> None:
    values = {"suite": "load", "service": "m", "rate": "5/s", "duration": "5s", "published": {"p99": "7ms"}}
    with pytest.raises(ValidationError, match="source"):
        LoadStep.model_validate(values)
