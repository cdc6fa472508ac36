"""Load stages over time: recomputed by other means from the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from harness.results.records import SampleBatch
from reports.histogram import histogram_log
from reports.stages import per_second
from tests.records import load_result


def batch(count: int = 5000, seconds: float = 10.0) -> SampleBatch:
    random = np.random.default_rng(3)
    due = np.sort(random.uniform(1e9, (1 + seconds) * 1e9, count)).astype(np.int64)
    due = due[(due < 4 * 10**9) | (due > 6 * 10**9)]  # two seconds in which nothing was due
    done = due + random.exponential(2e7, due.size).astype(np.int64)
    error = (random.random(due.size) < 0.02).astype(np.int16)
    zeros = np.zeros(due.size, np.int64)
    return SampleBatch(
        "s", "load", due, due, due + 1000, done, done, zeros.astype(np.int32), zeros, error, ("", "reset")
    )


def test_every_second_is_there_and_nothing_is_counted_twice() -> None:
    samples = batch()
    table = per_second(samples)
    assert table["second"].tolist() == list(range(1, int(samples.done_ns.max() // 10**9) + 1))
    assert table["due"].sum() == len(samples)
    assert table["completed"].sum() + table["errors"].sum() == len(samples)
    assert table["errors"].sum() == (samples.error != 0).sum()
    assert table["in_flight"].iloc[-1] == 0
    quiet = table[table["second"].isin([4, 5])]
    assert (quiet["due"] == 0).all()
    assert quiet["p99_s"].isna().all()
    second = table[table["second"] == 7].iloc[0]
    mine = [
        (done - due) / 1e9
        for due, done, error in zip(
            samples.due_ns.tolist(), samples.done_ns.tolist(), samples.error.tolist(), strict=True
        )
        if due // 10**9 == 7 and not error
    ]
    assert second["due"] == ((samples.due_ns // 10**9) == 7).sum() > len(mine)
    assert second["max_s"] == pytest.approx(max(mine))
    assert second["p50_s"] == pytest.approx(sorted(mine)[-(-len(mine) // 2) - 1])


def test_histogram_log_is_read_by_hdrhistogram_and_adds_up(tmp_path: Path) -> None:
    samples = batch()
    path = tmp_path / "load.hlog"
    path.write_text(histogram_log(load_result(), samples))
    total = HdrHistogram(1, 3600 * 10**9, 3)
    reader = HistogramLogReader(str(path), total)
    intervals = 0
    while (one := reader.get_next_interval_histogram()) is not None:
        total.add(one)
        intervals += 1
    assert intervals == 10
    fine = samples.error == 0
    assert total.get_total_count() == fine.sum() < len(samples), "what failed has no latency"
    exact = np.sort((samples.done_ns - samples.due_ns)[fine])
    for q in (50, 90, 99, 99.9):
        wanted = exact[int(q / 100 * exact.size + 0.5) - 1]  # the rank that HdrHistogram takes
        assert total.get_value_at_percentile(q) == pytest.approx(wanted, rel=1e-3)
