from __future__ import annotations

import pytest

from harness.base.errors import UsageError
from harness.base.units import format_duration, parse_duration, parse_rate
from harness.results.records import LoadResult
from harness.results.slo import parse_slo
from tests.records import load_result


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("250ms", 0.25), ("1m30s", 90), ("10us", 1e-5), ("1.5h", 5400), (" 2 s ", 2)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["30", "", "s", "3 parsecs", "1s and more", "-1s"])
def test_durations_without_a_proper_unit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "rate"), [("200/s", 200), ("600/m", 10), (200, 200), ("7200/h", 2), ("5", 5)])
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["0/s", "-5", "many", "5/d", True, "nan"])
def test_rates_that_are_none_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        parse_rate(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (250, "250 s"), (42e-6, "42 µs")])
def test_durations_are_shown_in_a_fitting_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


RESULT: LoadResult = load_result(
    latency_s={"p50": 0.01, "p99": 0.049, "p99_9": 0.2}, requests=1000, errors=1, achieved=198.5
)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("p99 < 50ms", True),
        ("p99 < 49ms", False),
        ("p99 <= 49ms", True),
        ("p99.9 < 100ms", False),
        ("errors < 0.1%", False),
        ("errors <= 0.1%", True),
        ("rate >= 99% of 200/s", True),
        ("rate >= 200/s", False),
        ("p50 > 1ms", True),
    ],
)
def test_objectives(text: str, met: bool) -> None:
    assert parse_slo(text).met(RESULT) is met


@pytest.mark.parametrize("text", ["p99", "p98 < 5ms", "p99 < 5", "errors < many", "rate > fast", "p99 = 5ms"])
def test_broken_objectives_say_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match="SLO"):
        parse_slo(text)
