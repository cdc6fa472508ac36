from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import RunStoreError
from harness.base.files import write_atomic
from harness.results.records import Measurement, Outcome, ParityResult, SampleBatch, TimelineEvent
from harness.results.runstore import RunStore, read_run
from tests.records import check, load_result


def batch(count: int = 5) -> SampleBatch:
    due = np.arange(count, dtype=np.int64) * 1_000_000
    ones = np.ones(count, np.int32)
    return SampleBatch(
        "svc",
        "1",
        due,
        due,
        due + 1,
        due + 2,
        due + 5,
        ones * 200,
        ones.astype(np.int64),
        (ones * 0).astype(np.int16),
        ("", "timeout"),
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run", "test", seed=3)


def test_records_survive_the_round_trip(store: RunStore) -> None:
    parity = ParityResult(
        "svc", "r", "golden.rest", "out", "FP32", 4, math.inf, 0.5, 3, None, (0, 1), "1.0", "nan", "exact", False, "1"
    )
    records = [
        check(outcome=Outcome.FAILED, deviation="because"),
        Measurement("ready", 1.5, "s", 1, "svc", ci_low=1.0),
        TimelineEvent("servecert", "x", "up"),
        load_result(),
        parity,
    ]
    for record in records:
        store.add(record)
    store.add(batch())
    store.finish(0)
    run = read_run(store.directory)
    assert [*run.checks, *run.measurements, *run.events, *run.loads, *run.parity] == records
    samples = run.samples(load_result(samples=store.samples_name("svc", "1")))
    assert samples is not None
    assert np.array_equal(samples.latency_s, batch().latency_s)
    assert samples.error_classes == ("", "timeout")


def test_run_that_was_killed_is_readable_and_interrupted(store: RunStore) -> None:
    store.add(check())
    with (store.directory / "checks.jsonl").open("ab") as file:
        file.write(b'{"id": "rest.infer.st')  # a line that never became whole
    run = read_run(store.directory)
    assert run.interrupted
    assert len(run.checks) == 1


def test_other_directories_are_not_runs(tmp_path: Path) -> None:
    with pytest.raises(RunStoreError, match=r"run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunStoreError, match="could not read"):
        read_run(tmp_path)


def test_second_run_does_not_overwrite_the_first(store: RunStore) -> None:
    with pytest.raises(RunStoreError, match="already holds a run"):
        RunStore(store.directory, "again", seed=1)


def test_unwritable_directory_says_what_to_do() -> None:
    with pytest.raises(RunStoreError, match="--out"):
        RunStore(Path("/proc/nowhere"), "x", seed=1)


def test_full_disk_is_an_error_and_keeps_what_was_written(tmp_path: Path, store: RunStore) -> None:
    store.add(check())
    store.close()
    os.remove(store.directory / "checks.jsonl")
    os.symlink("/dev/full", store.directory / "checks.jsonl")
    with pytest.raises(RunStoreError, match="No space left"):
        store.add(check())
    assert json.loads((store.directory / "run.json").read_text())["name"] == "test"


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RunStoreError):
        write_atomic(tmp_path / "missing" / "file", "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
