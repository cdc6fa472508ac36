"""Runs over time: levels that change are found, noise is not, and a newest run that is worse is called so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.history import change_points, regression_of, trends
from harness.runstore import RunStore, read_run
from reports.write import write_reports
from tests.helpers import servecert
from tests.records import check, load_result


def test_a_change_of_level_is_found_where_it_is_and_noise_is_none() -> None:
    generator = np.random.default_rng(5)
    false = sum(bool(change_points(generator.normal(10, 1, 30), seed)) for seed in range(60))
    assert false <= 3
    found = 0
    for place in [10, 15, 20] * 10:
        values = np.concatenate([generator.normal(10, 0.5, place), generator.normal(13, 0.5, 30 - place)])
        places = change_points(values)
        found += len(places) == 1 and abs(places[0] - place) <= 1
    assert found >= 27
    steps = np.concatenate([generator.normal(level, 0.2, 12) for level in (10, 12, 9)])
    assert len(change_points(steps)) == 2
    assert change_points(np.ones(40)) == []


def test_the_newest_run_beside_those_since_the_last_change() -> None:
    usual = [10.0, 10.1, 9.9, 10.05, 9.95, 10.0]
    assert regression_of(np.array([*usual, 10.3]), [], 0.05, False) == ("", True), "within the margin"
    text, judged = regression_of(np.array([*usual, 12.0]), [], 0.05, False)
    assert judged
    assert text.startswith("12 after 10 in 6 runs, 1.20 times")
    assert regression_of(np.array([*usual, 8.0]), [], 0.05, False) == ("", True), "better is no regression"
    assert regression_of(np.array([*usual, 8.0]), [], 0.05, True)[0], "but of a throughput it is"
    noisy = [10.0, 14.0, 7.0, 12.0, 9.0, 13.0]
    assert regression_of(np.array([*noisy, 15.0]), [], 0.05, False) == ("", True), "no further than it always was"
    assert regression_of(np.array([10.0, 10.0, 15.0]), [], 0.05, False) == ("", False), "too few to say"
    after = [20.0, *([5.0] * 9), *usual]
    assert regression_of(np.array([*after, 11.5]), [10], 0.05, False)[0], "beside its own level, not the older one"
    assert regression_of(np.array([0.0] * 6 + [1.0]), [], 0.05, False)[0], "a check that begins to fail"


def make(folder: Path, number: int, p99: float, failed: bool = False) -> None:
    """A run of night ``number``."""
    from harness.records import Outcome

    store = RunStore(folder / f"night-{number:02d}", "nightly", seed=1)
    store.info["started"] = f"2026-11-{number:02d}T02:00:00+00:00"
    store.add(load_result({"p50": p99 / 4, "p95": p99 / 1.3, "p99": p99}))
    store.add(check(outcome=Outcome.FAILED if failed else Outcome.PASSED))
    store.finish(1 if failed else 0)
    store.close()


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    generator = np.random.default_rng(6)
    for number in range(1, 13):
        level = 0.010 if number <= 6 else 0.014
        make(folder, number, float(level * np.exp(generator.normal(0, 0.01))))
    return folder


def test_the_command(nights: Path) -> None:
    fine = servecert("history", str(nights), "--fail-on", "regression", "--json", "-")
    assert fine.returncode == 0, fine.stderr
    data = json.loads(fine.stdout)
    assert len(data["runs"]) == 12
    p99 = next(item for item in data["trends"] if item["metric"] == "p99")
    assert p99["changes"] == [6]
    assert p99["judged"] is True
    make(nights, 13, 0.030, failed=True)
    worse = servecert("history", str(nights), "--fail-on", "regression")
    assert worse.returncode == 1
    assert "p99 of svc" in worse.stdout
    assert "worse: 0.03 after" in worse.stdout
    assert "failed checks of svc" in worse.stdout
    assert "night-07" in worse.stdout, "where it changed"
    only = servecert("history", str(nights), "--metric", "errors", "--fail-on", "regression")
    assert only.returncode == 0


def test_too_few_runs_are_no_success(tmp_path: Path) -> None:
    make(tmp_path / "runs", 1, 0.01)
    make(tmp_path / "runs", 2, 0.01)
    gate = servecert("history", str(tmp_path / "runs"), "--fail-on", "regression")
    assert gate.returncode == 1
    assert "no metric has enough runs" in gate.stderr
    assert servecert("history", str(tmp_path / "runs")).returncode == 0
    (tmp_path / "none").mkdir()
    empty = servecert("history", str(tmp_path / "none"))
    assert empty.returncode == 1
    assert "expected finished runs" in empty.stderr
    assert servecert("history", str(tmp_path / "nowhere")).returncode == 2


def test_interrupted_runs_are_left_out_and_named(nights: Path) -> None:
    store = RunStore(nights / "cut", "nightly", seed=1)
    store.add(load_result({"p99": 9.0}))
    store.close()
    shown = servecert("history", str(nights))
    assert "cut was interrupted" in shown.stdout
    assert len(trends([read_run(path) for path in sorted(nights.iterdir()) if path.name != "cut"])) >= 4


def test_a_site_to_publish(nights: Path, tmp_path: Path) -> None:
    make(nights, 13, 0.030)
    write_reports(nights / "night-13")
    out = tmp_path / "site"
    result = servecert("site", str(nights), "--out", str(out), "--title", "Nights <of> ours")
    assert result.returncode == 0, result.stderr
    page = (out / "index.html").read_text()
    assert "Nights &lt;of&gt; ours" in page
    assert "Worse than before" in page
    assert 'href="runs/night-13/report.html"' in page
    assert (out / "runs" / "night-13" / "report.html").read_bytes() == (
        nights / "night-13" / "report.html"
    ).read_bytes()
    assert page.count("<svg") >= 4
    assert 'src="http' not in page, "no network"
    assert 'href="http' not in page


def test_a_bucket_is_read_as_a_folder_is(nights: Path) -> None:
    result = servecert("history", f"file://{nights}", "--json", "-")
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["runs"]) == 12
    missing = servecert("history", "s3://nobody/nothing")
    assert missing.returncode == 2
    assert "cannot read s3://nobody/nothing" in missing.stderr


def test_one_run_is_no_trend_and_says_so(tmp_path: Path) -> None:
    make(tmp_path, 1, 0.04)
    result = servecert("history", str(tmp_path))
    assert result.returncode == 0
    assert "one finished run, night-01: a trend needs two" in result.stdout
    gate = servecert("history", str(tmp_path), "--fail-on", "regression")
    assert gate.returncode == 1, "nothing was judged, which is no pass"
