"""The pod autoscaler against decisions of Knative's own, recorded in ``kpa/`` (Serving 1.23 line, a tick a second)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.local.controllers.autoscaler import TraceError, replay
from harness.kubernetes.kpa import Autoscaler, Buckets, Spec
from tests.helpers import ROOT

TRACES = sorted((Path(__file__).parent / "kpa").glob("*.json"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_recorded_decisions_are_ours_too(path: Path) -> None:
    trace = json.loads(path.read_text())
    decided = 0
    for theirs, ours in zip(trace["ticks"], replay(trace), strict=True):
        assert ours[:3] == theirs[:3]
        assert ours[3] == pytest.approx(theirs[3], abs=1e-6), f"stable average at {theirs[0]} s"
        assert ours[4] == pytest.approx(theirs[4], abs=1e-6), f"panic average at {theirs[0]} s"
        if theirs[5]:
            decided += 1
            assert ours[6] is theirs[6], f"validity at {theirs[0]} s"
            if theirs[6]:
                assert ours[7:] == theirs[7:], f"desired pods and excess burst capacity at {theirs[0]} s"
    assert decided >= len(trace["ticks"]) // 2


def test_traces_are_there() -> None:
    assert len(TRACES) == 9


def run(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.local.controllers.autoscaler", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def test_a_trace_is_printed_with_our_own_outputs_in_the_same_columns() -> None:
    recorded = json.loads(TRACES[0].read_text())
    result = run(TRACES[0])
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["columns"] == recorded["columns"]
    assert printed["ticks"] == recorded["ticks"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "Expecting"),
        ('{"spec": {}, "columns": [], "ticks": []}', "that is not empty"),
        ('{"spec": {"windov": 1}, "columns": ["t_s"], "ticks": [[0]]}', "unknown windov"),
        ('{"spec": {}, "columns": ["t_s"], "ticks": [[0]]}', "observed_concurrency, ready_pods, decided is missing"),
        (
            '{"spec": {"target_value": 0}, "columns": ["t_s", "observed_concurrency", "ready_pods", "decided"],'
            ' "ticks": [[0, 1, 1, true]]}',
            "target_value: expected a number above 0",
        ),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content)
    result = run(path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_replay_of_damaged_ticks_is_an_error() -> None:
    trace = json.loads(TRACES[0].read_text())
    trace["ticks"][5] = [5]
    with pytest.raises(TraceError, match="cannot be replayed"):
        replay(trace)


LOADS = st.lists(st.one_of(st.none(), st.integers(0, 500)), min_size=1, max_size=120)


@given(LOADS, st.integers(2, 20))
@settings(max_examples=150, deadline=None)
def test_averages_are_those_of_a_plain_list(loads: list[int | None], window_s: int) -> None:
    buckets = Buckets(window_s)
    written: dict[int, int] = {}
    first: int | None = None
    for second, load in enumerate(loads):
        if load is not None:
            last = max(written, default=None)
            if last is None or second - last >= window_s:
                first = second  # nothing was written for a whole window: it begins anew
            written[second] = load
            buckets.record(second + 0.3, load)
        last = max(written, default=None)
        if last is None or first is None or second - last >= window_s:
            assert buckets.average(second + 0.9) == 0
            continue
        inside = [load for at, load in written.items() if second - window_s < at and at >= first]
        count = min(last - first + 1, window_s - (second - last))
        assert buckets.average(second + 0.9) == pytest.approx(sum(inside) / count, abs=1e-6)


@given(LOADS, st.integers(0, 30), st.sampled_from([1.5, 2.0, 1000.0]))
@settings(max_examples=150, deadline=None)
def test_decisions_keep_their_bounds(loads: list[int | None], ready: int, rate: float) -> None:
    spec = Spec(target_value=3.5, total_value=5, max_scale_up_rate=rate)
    autoscaler = Autoscaler(spec, ready)
    before: int | None = None
    for second, load in enumerate(loads):
        if load is not None:
            autoscaler.record(second, load)
        if second % 2:
            continue
        panicked = autoscaler.panic_since_s is not None
        decision = autoscaler.decide(second, ready)
        if not decision.valid:
            assert not any(item is not None for item in loads[max(0, second - 59) : second + 1])
            continue
        if panicked and autoscaler.panic_since_s is not None and before is not None:
            assert decision.desired >= before, "never down while panicking"
        assert decision.desired <= max(math.ceil(rate * max(1, ready)), ready)
        before = decision.desired
        _, panic = autoscaler.averages(second)
        assert decision.excess_burst_capacity == math.floor(ready * 5 - 211 - panic)


def test_spec_is_checked() -> None:
    for fields in ({"stable_window_s": 0}, {"max_scale_down_rate": -1}, {"scale_down_delay_s": -1}):
        with pytest.raises(ValueError, match="expected a"):
            Spec(**fields)  # type: ignore[arg-type]
