"""Numbers of a report, worked out once more from the raw samples by other code: pandas on the CSV and Parquet files.

Nearest rank is pandas' quantile with ``interpolation="higher"`` at (n q - 1) / (n - 1) places, which is written out
here as the rank itself.
"""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from harness.base.units import format_duration
from harness.load.recording import ERRORS
from harness.load.runner import StageResult
from harness.results.records import LoadResult, TimelineEvent
from harness.results.runstore import RunStore, read_run
from harness.results.slo import parse_slo
from harness.target.endpoint import Endpoint
from reports.junit import junit
from reports.write import write_reports
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.results import StageEnd, batch_of, judge, seen_of, summarize_stage
from tests.helpers import servecert
from tests.records import check

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
SECONDS, RATE = 20, 100
SECOND = 10**9


def known_columns() -> dict[str, Any]:
    """A second of warm-up and 20 s at 100/s, evenly spaced. The k-th measured request takes k + 1 µs more than 1 ms, in
    an order that is drawn; every hundredth fails (reset), every 500th is never answered in time (timeout)."""
    count = (SECONDS + 1) * RATE
    due = np.arange(count, dtype=np.int64) * (SECOND // RATE)
    latency = np.full(count, 5_000_000, np.int64)
    measured = count - RATE
    latency[RATE:] = 1_000_000 + 1_000 * (1 + np.random.default_rng(7).permutation(measured))
    dispatched = due + 20_000
    sent = dispatched + 10_000
    done = due + latency
    error = np.zeros(count, np.int16)
    error[RATE::100] = ERRORS.index("reset")
    error[RATE + 50 :: 500] = ERRORS.index("timeout")
    first = np.where(error == 0, done - 1_000, -1)
    status = np.where(error == 0, 200, 0).astype(np.int32)
    size = np.where(error == 0, 160, 0).astype(np.int64)
    names = ("due_ns", "dispatched_ns", "sent_ns", "first_byte_ns", "done_ns", "status", "bytes", "error", "row")
    return dict(zip(names, (due, dispatched, sent, first, done, status, size, error, np.arange(count)), strict=True))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Through everything that lies between a generator and a report."""
    plan = Plan(
        name="1-load-svc",
        duration_s=float(SECONDS),
        rate_per_s=float(RATE),
        arrivals="constant",
        warmup_s=1.0,
        objectives=(parse_slo("p99 < 2ms"), parse_slo("errors < 5%")),
    )
    endpoint = Endpoint(service="svc", runtime="reference@1.0.0", url="http://127.0.0.1:1", model="m")
    columns = known_columns()
    stage = StageResult(columns, {0: b"", 1: b""}, 0.25, False, 0.001, start_ns=5 * SECOND)
    store = RunStore(tmp_path_factory.mktemp("figures") / "run", "figures", seed=1)
    store.info["services"] = {"svc": {"runtime": "reference@1.0.0", "model": "m", "ready_s": 1.25}}
    batch = batch_of(endpoint, plan, columns)
    result = summarize_stage(endpoint, plan, columns, batch, stage, store.samples_name("svc", "1-load-svc"))
    store.add(batch)
    store.add(result)
    end = StageEnd(plan, result, seen_of(plan, columns, batch, stage), columns, batch, {})
    for item in judge(endpoint, end, [], [0], 1.0):
        store.add(item)
    store.add(check(step="0"))
    for source, moment_s in (("kubernetes", 7.5), ("kubernetes", 100.0), ("servecert", 8.0)):
        store.add(TimelineEvent(source, "pod/a", "Killing", monotonic_s=moment_s))
    store.finish(0)
    store.close()
    write_reports(store.directory)
    return store.directory


@pytest.fixture(scope="module")
def samples(directory: Path) -> pd.DataFrame:
    """Of the Parquet file, by pandas."""
    (path,) = (directory / "samples").glob("*.parquet")
    return pd.read_parquet(path)


def nearest_rank(values: pd.Series[float], q: float) -> float:
    return float(values.sort_values().iloc[math.ceil(q * len(values)) - 1])


def latency_of(samples: pd.DataFrame) -> pd.Series[float]:
    """Infinite where the request failed."""
    return ((samples["done_ns"] - samples["due_ns"]) / 1e9).where(samples["error"] == 0, math.inf)


def load_of(directory: Path) -> dict[str, Any]:
    (load,) = json.loads((directory / "results.json").read_text())["loads"]
    assert isinstance(load, dict)
    return load


def test_a_known_sample_gives_known_numbers(directory: Path) -> None:
    """Latencies are 1.001 ms, 1.002 ms … 3 ms, each once, and 24 of 2000 requests fail: percentiles of all can be said
    beforehand to a few places, and from the 98.8th on there is none."""
    load = load_of(directory)
    assert load["requests"] == 2000
    assert load["latency_s"]["p50"] == pytest.approx(0.002, rel=0.02)
    assert load["latency_s"]["p90"] == pytest.approx(0.0028, rel=0.02)
    assert [load["latency_s"][name] for name in ("p99", "p99_9", "max", "mean")] == ["inf"] * 4
    assert load["success_latency_s"]["p99"] == pytest.approx(0.00298, rel=0.01)
    assert load["success_latency_s"]["max"] == pytest.approx(0.003, rel=0.01)
    assert load["success_latency_s"]["mean"] == pytest.approx(0.0020005, rel=0.01)
    assert load["errors_by_class"] == {"reset": 20, "timeout": 4}
    assert load["send_lag_s"]["p99"] == pytest.approx(20e-6)
    assert load["service_time_s"]["max"] == pytest.approx(0.00297)
    for text in ((directory / "report.html").read_text(), (directory / "summary.md").read_text()):
        for shown in ("never", "3 ms", "24 of 2000 (20 reset, 4 timeout)", "of those that succeeded"):
            assert shown in text, shown


def test_every_number_of_a_stage_comes_out_of_pandas_too(directory: Path, samples: pd.DataFrame) -> None:
    load, latency = load_of(directory), latency_of(samples)
    assert load["requests"] == len(samples)
    fine = samples[samples["error"] == 0]
    for key, values in (("latency_s", latency), ("success_latency_s", latency_of(fine))):
        for name, q in QUANTILES.items():
            assert float(load[key][name]) == pytest.approx(nearest_rank(values, q), rel=1e-12)
        assert float(load[key]["max"]) == pytest.approx(values.max())
        assert float(load[key]["mean"]) == pytest.approx(values.mean())
    service, lag = fine["done_ns"] - fine["sent_ns"], samples["dispatched_ns"] - samples["due_ns"]
    for key, values in (("service_time_s", service), ("send_lag_s", lag)):
        for name, q in QUANTILES.items():
            assert load[key][name] == pytest.approx(nearest_rank(values / 1e9, q), rel=1e-9)
    failed = samples["error"] != 0
    assert load["errors"] == failed.sum()
    # What was due in the warm-up and answered in the measured time is no sample, and counts for the throughput.
    whole = pd.DataFrame(known_columns())
    window = whole["done_ns"].between(SECOND, (SECONDS + 1) * SECOND, inclusive="left") & (whole["error"] == 0)
    assert load["achieved_rate_per_s"] == pytest.approx(window.sum() / SECONDS)
    within = ((latency <= 0.002) & ~failed).sum() / SECONDS
    assert load["goodput_per_s"] == {"p99 < 2ms": pytest.approx(within)}
    # Failures are evenly spaced, so that they say at least as much as independent ones: Clopper and Pearson's interval
    # of as many, and somewhat wider, since that is known from this sample alone.
    count, n = int(failed.sum()), len(samples)
    exact = [scipy_stats.beta.ppf(0.025, count, n - count + 1), scipy_stats.beta.ppf(0.975, count + 1, n - count)]
    low, high = load["error_rate_ci"]
    assert 0.5 * exact[0] <= low <= exact[0]
    assert exact[1] <= high <= 1.5 * exact[1]


def test_intervals_of_percentiles_hold_what_they_promise(directory: Path, samples: pd.DataFrame) -> None:
    """By resampling: at least 95 % of bootstrap percentiles lie in the interval, within what 2000 resamples tell, and
    it is no wider than ten standard deviations. What has no end has no interval."""
    load, latency = load_of(directory), latency_of(samples).to_numpy()
    drawn = np.sort(np.random.default_rng(1).choice(latency, size=(2000, latency.size)), axis=1)
    for name in ("p50", "p90"):
        low, high = load["latency_ci_s"][name]
        found = drawn[:, math.ceil(QUANTILES[name] * latency.size) - 1]
        assert np.mean((found >= low) & (found <= high)) >= 0.93, name
        assert high - low <= 10 * found.std(), name
    assert "p99" not in load["latency_ci_s"]


def test_table_by_the_second_comes_out_of_pandas_too(directory: Path, samples: pd.DataFrame) -> None:
    (path,) = (directory / "timelines").glob("*.csv")
    table = pd.read_csv(path).set_index("second")
    samples = samples.assign(
        latency=latency_of(samples), second=samples["due_ns"] // SECOND, ended=samples["done_ns"] // SECOND
    )
    assert table["due"].to_dict() == samples.groupby("second").size().to_dict()
    fine = samples[samples["error"] == 0].groupby("ended").size().reindex(table.index, fill_value=0)
    assert table["completed"].tolist() == fine.tolist()
    for second, rows in samples.groupby("second"):
        answered = rows[rows["error"] == 0]
        for name, q in QUANTILES.items():
            assert table.loc[second, f"{name}_s"] == pytest.approx(nearest_rank(answered["latency"], q), rel=1e-8)
    assert table["in_flight"].iloc[-1] == 0


def test_page_and_summary_show_what_pandas_says(directory: Path, samples: pd.DataFrame) -> None:
    latency = latency_of(samples)
    expected = [format_duration(nearest_rank(latency, q)) for q in QUANTILES.values()] + [
        format_duration(latency.max())
    ]
    (row,) = [
        line for line in (directory / "summary.md").read_text().splitlines() if line.startswith("| 1-load-svc | 100")
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3:9] == expected
    page = (directory / "report.html").read_text()
    load_table = page[page.index('id="load"') : page.index("Objectives and self-checks")]
    shown = re.findall(r'<td class="num">([^<]+)<', load_table)
    assert shown[1:7] == expected
    assert shown[7] == str(len(samples))
    assert f"<div><b>{len(samples)}</b>requests under load</div>" in page
    classes = samples["error"].map(dict(enumerate(ERRORS)))
    for name, count in classes[classes != ""].value_counts().items():
        share = 100 * count / len(samples)
        assert re.search(rf'<td>{name}</td><td class="num">{count}</td><td class="num">{share:.3g} %', page), name


def test_counts_of_checks_are_those_of_the_records(directory: Path) -> None:
    lines = [json.loads(line) for line in (directory / "checks.jsonl").read_text().splitlines()]
    page = (directory / "report.html").read_text()
    passed = sum(line["outcome"] == "passed" for line in lines)
    failed = sum(line["outcome"] in ("failed", "error") for line in lines)
    assert (passed, failed) == (5, 1), "of half of the requests the latency is above the 2 ms of the p99"
    assert f"<div><b>{passed}</b>checks passed</div>" in page
    assert f"<div><b>{failed}</b>decide against</div>" in page
    xml = junit(read_run(directory), write_reports(directory))
    assert f'tests="{len(lines)}"' in xml
    assert 'failures="1"' in xml


def test_samples_as_csv_are_the_same_samples(directory: Path, samples: pd.DataFrame, tmp_path: Path) -> None:
    listed = servecert("samples", str(directory))
    assert listed.returncode == 0
    assert "1-load-svc\tsvc\t2000 requests\tsamples/1-load-svc-svc.parquet" in listed.stdout
    written = servecert("samples", str(directory), "1-load-svc")
    table = pd.read_csv(io.StringIO(written.stdout), keep_default_na=True)
    assert len(table) == len(samples)
    for name in ("due_ns", "dispatched_ns", "sent_ns", "done_ns", "status", "bytes"):
        assert table[name].tolist() == samples[name].tolist()
    assert table["first_byte_ns"].isna().sum() == (samples["first_byte_ns"] < 0).sum() == 24
    latency = table["latency_s"].fillna(math.inf).to_numpy()
    assert latency == pytest.approx(latency_of(samples).to_numpy()), "a request that failed has none"
    assert table["error"].fillna("").tolist() == [ERRORS[kind] for kind in samples["error"]]
    copied = servecert("samples", str(directory), "1-load-svc", "--format", "parquet", "--out", str(tmp_path / "copy"))
    assert copied.returncode == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "copy"), samples)
    unknown = servecert("samples", str(directory), "nothing")
    assert unknown.returncode == 2
    assert "no stage of load is called 'nothing'; there are: 1-load-svc" in unknown.stderr


def test_timeline_marks_what_happened_on_the_cluster_meanwhile(directory: Path) -> None:
    """The stage began at 5 s of the clock that events have."""
    page = (directory / "report.html").read_text()
    assert re.findall(r"<li>([\d.]+ s: [^<]+)</li>", page) == ["2.5 s: pod/a: Killing"]


def test_plots_draw_the_samples(directory: Path, samples: pd.DataFrame) -> None:
    from reports.stages import view

    run = read_run(directory)
    (load,) = run.loads
    assert isinstance(load, LoadResult)
    batch = run.samples(load)
    assert batch is not None
    one, latency = view(load, batch, run.events), latency_of(samples)
    assert one.bar_counts.sum() == (samples["error"] == 0).sum()
    for low, high, count in zip(one.bar_edges_s, one.bar_edges_s[1:], one.bar_counts, strict=False):
        assert count == ((latency >= low) & (latency < high)).sum()
    for share, value in zip(one.curve_share, one.curve_s, strict=True):
        assert share == pytest.approx((latency <= value).mean(), abs=1e-9)
    assert one.bins.errors.sum() == (samples["error"] != 0).sum()
    seconds = len(samples) / RATE
    assert float(np.mean(one.bins.due_per_s)) == pytest.approx(len(samples) / seconds, rel=0.01)
    assert one.bins.max_s.max() == pytest.approx(latency[latency < math.inf].max())
    assert one.curve_share[-1] == pytest.approx(1 - 24 / 2000), "the curve ends where only failed ones are left"
    for name in ("percentiles", "distributions", "1-load-svc-timeline"):
        assert (directory / "plots" / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert (directory / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
