"""Runs over time: levels that change are found, noise is not, and a newest run that is worse is called so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.results.history import Point, Trend, change_points, judged, trends
from harness.results.prediction import chance_of_worse, holm, limit_of
from harness.results.runstore import RunStore, read_run
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


def series(values: list[float], counts: list[tuple[int, int]] | None = None, metric: str = "p99") -> Trend:
    points = (Point(str(n), "", value, counts[n] if counts else None) for n, value in enumerate(values))
    return Trend("svc", "1", metric, "s", False, tuple(points))


def errors(*bad: int, of: int = 1000) -> Trend:
    return series([count / of for count in bad], [(count, of) for count in bad], "errors")


def one(item: Trend, among: int = 1) -> Trend:
    """As it is judged in a night of so many series."""
    return judged([item, *[series([10.0, 10.1, 9.9, 10.05, 9.95, 10.0])] * (among - 1)], 0.05)[0]


def test_the_newest_run_beside_those_since_the_last_change() -> None:
    def told(values: list[float], changes: tuple[int, ...] = (), higher_is_better: bool = False) -> tuple[str, bool]:
        found = one(replace(series(values), changes=changes, higher_is_better=higher_is_better))
        return found.regression, found.judged

    usual = [10.0, 10.1, 9.9, 10.05, 9.95, 10.0]
    assert told([*usual, 10.3]) == ("", True), "within the margin"
    text, judged = told([*usual, 12.0])
    assert judged
    assert text.startswith("12 after 10 in 6 runs, 1.20 times")
    assert told([*usual, 8.0]) == ("", True), "better is no regression"
    assert told([*usual, 8.0], higher_is_better=True)[0], "but of a throughput it is"
    noisy = [10.0, 14.0, 7.0, 12.0, 9.0, 13.0]
    assert told([*noisy, 15.0]) == ("", True), "no further than it always was"
    assert told([10.0, 10.0, 15.0]) == ("", False), "too few to say"
    after = [20.0, *([5.0] * 9), *usual]
    assert told([*after, 11.5], changes=(10,))[0], "beside its own level, not the older one"
    assert told([0.0] * 6 + [1.0])[0], "a check that begins to fail"


def test_few_errors_more_or_less_are_chance_and_many_are_not() -> None:
    assert not one(series([0, 0, 0, 0.001, 0.001, 0.0005])).regression
    assert not one(errors(0, 0, 0, 1, 1, 1)).regression
    assert not one(errors(0, 0, 0, 0, 0, 1)).regression, "1 of 6000: not beyond chance"
    assert one(errors(0, 0, 0, 0, 0, 300)).regression
    assert one(errors(0, 2, 1, 0, 1, 30)).regression
    assert not one(errors(0, 40, 0, 35, 0, 42)).regression, "no more than there were before"
    assert one(errors(0, 0, 0, 0, 0, 9), among=12).limit == pytest.approx(0.004)
    assert not one(errors(0, 0, 0, 0, 0, 3), among=12).regression
    assert one(errors(0, 0, 0, 0, 0, 4), among=12).regression


def test_the_more_series_a_night_has_the_further_off_one_must_be() -> None:
    usual = [10.0, 10.2, 9.8, 10.1, 9.9]
    assert one(series([*usual, 11.0])).regression
    assert not one(series([*usual, 11.0]), among=12).regression
    assert one(series([*usual, 13.0]), among=12).regression
    assert holm([0.03, 0.01, 0.02], 0.05) == [True, True, True]
    assert holm([0.03, 0.02, 0.04], 0.05) == [False, False, False]


def test_what_could_have_been_found_is_said() -> None:
    generator = np.random.default_rng(7)
    for higher in (False, True):
        before = generator.normal(10, 0.2, 8)
        limit = limit_of(before, 0.01, higher)
        step = -1e-6 if higher else 1e-6
        assert chance_of_worse(before, limit + step, higher) < 0.01 < chance_of_worse(before, limit - step, higher)
    steady = one(series([10.0] * 6))
    assert steady.limit == pytest.approx(10.5), "nothing below the margin counts"


def test_capacities_that_came_out_the_same_are_known_no_better_than_a_search_knows_them() -> None:
    def night(newest: float, among: int = 1) -> Trend:
        item = series([1000.0] * 5 + [newest], metric="capacity")
        return one(replace(item, higher_is_better=True), among)

    assert not night(957.0).regression, "one step of the search"
    assert not night(900.0, among=12).regression
    assert night(500.0, among=12).regression
    limit = night(1000.0, among=12).limit
    assert limit is not None
    assert limit < 950, "beyond the margin"
    assert not night(limit * 1.001, among=12).regression
    few = np.array([10.0, 10.0, 10.0])
    assert chance_of_worse(few, 20.0) == 1.0, "three values that are the same tell of no spread"


def test_one_night_that_went_wrong_hides_nothing_afterwards() -> None:
    usual = list(np.random.default_rng(8).normal(10, 0.2, 20))
    usual[7] = 30.0
    assert one(series([*usual, 13.0]), among=12).regression
    assert not one(series([*usual, 10.4]), among=12).regression


def test_a_percentile_that_failed_is_worse_than_any_number() -> None:
    usual = [10.0, 10.1, 9.9, 10.05, 9.95]
    found = one(series([*usual, np.inf]), among=12)
    assert found.regression.startswith("inf after 10 in 5 runs")
    assert not one(series([*usual, np.inf, np.inf])).regression, "one of six failed before as well"
    assert not one(series([np.inf, *usual, 10.0])).regression
    assert not one(series([*[np.inf] * 4, 10.0, 10.0])).judged
    assert not one(series([*usual, np.nan])).judged
    assert change_points(np.array([np.inf] * 12)) == []


def make(folder: Path, number: int, p99: float, failed: bool = False, **fields: Any) -> None:
    """A run of night ``number``."""
    from harness.results.records import Outcome

    store = RunStore(folder / f"night-{number:02d}", "nightly", seed=1)
    store.info["started"] = f"2026-11-{number:02d}T02:00:00+00:00"
    store.add(load_result({"p50": p99 / 4, "p95": p99 / 1.3, "p99": p99}, **fields))
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


def test_a_newest_run_that_lacks_what_the_one_before_had_is_no_success(nights: Path) -> None:
    make(nights, 13, 0.014, valid=False, invalid_reason="the generator was late")
    gate = servecert("history", str(nights), "--fail-on", "regression")
    assert gate.returncode == 1
    assert "4 metrics that were judged before cannot be judged now" in gate.stderr
    assert "p99 of svc, 1: the newest run's stage is not valid: the generator was late" in gate.stderr
    assert "1 judged, 0 worse in the newest run, 4 not judged" in gate.stdout


def test_a_metric_that_was_lost_stays_lost_the_night_after(nights: Path) -> None:
    """For as long as one of the five runs before had it: then it is a scenario that no longer measures it."""
    for number in range(13, 19):
        make(nights, number, 0.014, step="2")
        runs = [read_run(path) for path in sorted(nights.iterdir())]
        lost = [item for item in trends(runs) if item.missing]
        assert bool(lost) is (number < 18)
        assert all(
            item.unjudged == "the newest run did not measure it, and one of the 5 before it did" for item in lost
        )
        if number == 14:
            gate = servecert("history", str(nights), "--fail-on", "regression")
            assert gate.returncode == 1
            assert "p99 of svc, 1: the newest run did not measure it" in gate.stderr


def test_a_percentile_that_failed_in_the_newest_run(nights: Path) -> None:
    make(nights, 13, float("inf"), errors=400)
    result = servecert("history", str(nights), "--fail-on", "regression", "--json", "-")
    assert result.returncode == 1
    found = {item["metric"]: item for item in json.loads(result.stdout)["trends"]}
    assert found["p99"]["points"][-1]["value"] == "inf"
    assert found["p99"]["regression"].startswith("inf after")
    assert found["errors"]["regression"]
    assert servecert("site", str(nights), "--out", str(nights.parent / "site")).returncode == 0


def test_a_newer_run_that_was_interrupted_is_not_passed_over(nights: Path) -> None:
    store = RunStore(nights / "night-13", "nightly", seed=1)
    store.info["started"] = "2026-11-13T02:00:00+00:00"
    store.save_info()
    store.close()
    gate = servecert("history", str(nights), "--fail-on", "regression")
    assert gate.returncode == 1
    assert "the newest run, night-13, was interrupted" in gate.stderr


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
