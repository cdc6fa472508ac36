from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.load.arrivals import Segment, due_times, ramp, sine, spike, steady, steps, trace_times
from harness.load.job import Job, Request
from harness.load.shapes import parse_shape


def rate_in(times: np.ndarray, start_s: float, end_s: float) -> float:
    return float(((times >= start_s * 1e9) & (times < end_s * 1e9)).sum() / (end_s - start_s))


def test_constant_arrivals_are_evenly_spaced() -> None:
    times = due_times("constant", steady(200, 2), seed=1)
    assert times.size == 400
    assert times[0] == 0
    assert np.all(np.diff(times) == 5_000_000)


def test_poisson_arrivals_have_exponential_gaps_and_the_exact_rate() -> None:
    times = due_times("poisson", steady(500, 20), seed=1)
    assert times.size == 10_000
    assert times[0] >= 0
    assert times[-1] < 20e9
    gaps = np.diff(times) / 1e9
    assert stats.kstest(gaps, "expon", args=(0, 1 / 500)).pvalue > 0.001
    assert np.std(gaps) == pytest.approx(1 / 500, rel=0.05)


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 3.0])
def test_gamma_arrivals_have_the_asked_burstiness(burstiness: float) -> None:
    times = due_times("gamma", steady(1000, 30), seed=2, burstiness=burstiness)
    assert times.size == 30_000
    gaps = np.diff(times)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness, rel=0.06)


@pytest.mark.parametrize("kind", ["constant", "poisson", "gamma"])
@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (ramp(0, 1000, 10), [((0, 1), 50), ((4, 6), 500), ((9, 10), 950)]),
        (ramp(1000, 0, 10), [((0, 1), 950), ((9, 10), 50)]),
        (steps([100, 300, 500], 9), [((0, 3), 100), ((3, 6), 300), ((6, 9), 500)]),
        (spike(100, 1000, 2, 10), [((0, 4), 100), ((4, 6), 1000), ((6, 10), 100)]),
        (sine(500, 400, 10, 10), [((2, 3), 890), ((7, 8), 110)]),
    ],
    ids=["ramp up", "ramp down", "steps", "spike", "sine"],
)
def test_every_process_follows_every_rate(
    kind: str, segments: list[Segment], expected: list[tuple[tuple[float, float], float]]
) -> None:
    times = due_times(kind, segments, seed=3, burstiness=1.5)
    assert np.all(np.diff(times) >= 0)
    assert times.size == round(sum(segment.arrivals for segment in segments))
    for (start, end), rate in expected:
        noise = 0.02 if kind == "constant" else 6 / np.sqrt(rate * (end - start))
        assert rate_in(times, start, end) == pytest.approx(rate, rel=max(noise, 0.03)), (kind, start, end)


def test_sine_keeps_its_mean_over_whole_periods() -> None:
    assert sum(segment.arrivals for segment in sine(100, 50, 5, 20)) == pytest.approx(2000, rel=1e-6)


def test_seeds_repeat_and_differ() -> None:
    assert np.array_equal(due_times("poisson", steady(50, 2), 7), due_times("poisson", steady(50, 2), 7))
    assert not np.array_equal(due_times("poisson", steady(50, 2), 7), due_times("poisson", steady(50, 2), 8))


def test_trace_is_replayed_from_its_first_time() -> None:
    times = trace_times(["timestamp_s,model", "100.5,a", "100.75,b", "", "101,c"])
    assert times.tolist() == [0, 250_000_000, 500_000_000]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["1", "0.5"], "line 2: the trace goes backwards"),
        (["time", "1", "soon"], "line 3: expected a time"),
        (["time"], "holds no time"),
        ([], "holds no time"),
        (["1", "nan"], "line 2"),
    ],
)
def test_broken_traces_name_their_line(lines: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trace_times(lines)


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("ramp 10/s to 200/s", [Segment(8, 10, 200)]),
        ("steps 50/s 600/m", [Segment(4, 50, 50), Segment(4, 10, 10)]),
        ("spike 50/s to 500/s for 2s", [Segment(3, 50, 50), Segment(2, 500, 500), Segment(3, 50, 50)]),
    ],
)
def test_shapes_as_people_write_them(text: str, segments: list[Segment]) -> None:
    assert parse_shape(text, 8) == segments


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ramp 10/s",
        "hill 5/s",
        "spike 1/s to 2/s for 9s",
        "sine 10/s +- 20/s every 1s",
        "ramp 10 to 20",
        "steps fast",
    ],
)
def test_broken_shapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|fit"):
        parse_shape(text, 8)


def test_unknown_arrivals_are_refused() -> None:
    with pytest.raises(ValueError, match="constant, poisson, gamma"):
        due_times("bursty", steady(1, 1), 1)
    with pytest.raises(ValueError, match="burstiness"):
        due_times("gamma", steady(1, 1), 1, burstiness=0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"timeout_s": 0}, "timeout"),
        ({"concurrency": 0}, "client"),
        ({"concurrency": 2}, "client"),
        ({"requests": ()}, "request"),
    ],
)
def test_jobs_that_measure_nothing_are_refused(fields: dict[str, object], words: str) -> None:
    values = {"requests": (Request("/", {}, "b"),), **fields}
    with pytest.raises(ValueError, match=words):
        Job("rest", "127.0.0.1", 1, "h", **values)  # type: ignore[arg-type]
