"""Counting requests by revision from what pods expose."""

from __future__ import annotations

import pytest

from harness.base.errors import MeasurementError
from scenarios.suites.shared.counters import Reading, total

TEXT = """# TYPE request_predict_seconds histogram
request_predict_seconds_bucket{le="0.1",model_name="m"} 3.0
request_predict_seconds_bucket{le="+Inf",model_name="m"} 5.0
request_predict_seconds_count{model_name="m"} 5.0
request_predict_seconds_sum{model_name="m"} 0.5
request_predict_seconds_count{model_name="other"} 2.0
request_predict_seconds_bucket{le="+Inf",model_name="other"} 2.0
request_predict_seconds_sum{model_name="other"} 0.1
"""


def test_samples_of_all_labels_are_added_up() -> None:
    assert total(TEXT, "request_predict_seconds_count") == 7


def test_a_metric_that_is_not_there_is_not_zero() -> None:
    with pytest.raises(MeasurementError, match="expected samples of requests_total, got none"):
        total(TEXT, "requests_total")


def test_counts_are_differences_by_revision() -> None:
    before = Reading({"a": ("r1", 10.0), "b": ("r1", 4.0), "gone": ("r0", 9.0)})
    after = Reading({"a": ("r1", 15.0), "b": ("r1", 4.0), "c": ("r2", 7.0)})
    assert after.since(before) == {"r1": 5, "r2": 7}


def test_a_counter_that_fell_was_restarted() -> None:
    with pytest.raises(MeasurementError, match="fell from 10 to 2"):
        Reading({"a": ("r1", 2.0)}).since(Reading({"a": ("r1", 10.0)}))
