"""What probes' suite makes of pods and events, and how long its load has to last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.kubernetes.events import Happened, last_stamp, likely_offset_s, more_often, times
from harness.kubernetes.podwatch import PodChange
from harness.load.recording import ERRORS
from scenarios.suites.probes.pods import needed_s, of_service, restarts, told
from scenarios.suites.shared.stage.background import Traffic

LIVE = "Liveness probe failed: timeout"


def test_an_event_that_happens_again_is_noticed_though_the_list_does_not_grow() -> None:
    before = {"a": Happened(3, "m-1", LIVE), "b": Happened(1, "m-1", "Readiness probe failed: 503")}
    after = {**before, "a": Happened(5, "m-1", LIVE), "c": Happened(1, "other-1", LIVE)}
    seen = more_often(before, after)
    assert seen == [Happened(2, "m-1", LIVE), Happened(1, "other-1", LIVE)]
    assert of_service(seen, "m", "Liveness") == [Happened(2, "m-1", LIVE)]
    assert told(of_service(seen, "m", "Liveness")) == f"m-1: {LIVE} (×2)"
    assert more_often(after, after) == []


@pytest.mark.parametrize(
    ("event", "count", "last"),
    [
        ({"count": 4, "firstTimestamp": "a", "lastTimestamp": "b"}, 4, "b"),
        ({"eventTime": "a", "count": None, "series": {"count": 7, "lastObservedTime": "c"}}, 7, "c"),
        ({"eventTime": "a"}, 1, "a"),
    ],
)
def test_events_count_in_both_of_kubernetes_ways(event: dict[str, Any], count: int, last: str) -> None:
    assert times(event) == count
    assert last_stamp(event) == last


def test_clocks_that_may_agree_do() -> None:
    assert likely_offset_s((-0.3, 0.6)) == 0
    assert likely_offset_s((59.5, 60.5)) == 60


def pod(name: str, count: int, initial: int = 0) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {
            "containerStatuses": [{"name": "c", "restartCount": count}],
            "initContainerStatuses": [{"name": "sidecar", "restartCount": initial}],
        },
    }


def test_restarts_are_counted_from_what_there_was() -> None:
    changes = [
        PodChange(1, 1, "ADDED", pod("m-1", 2)),
        PodChange(5, 5, "MODIFIED", pod("m-1", 4)),
        PodChange(6, 6, "ADDED", pod("m-2", 0)),
        PodChange(7, 7, "MODIFIED", pod("m-2", 1, initial=1)),
        PodChange(8, 8, "DELETED", pod("m-2", 1, initial=1)),
    ]
    assert restarts(changes, since_s=3) == {"m-1/c": 2, "m-2/c": 1, "m-2/sidecar": 1}
    assert restarts(changes[:1], since_s=3) == {}


def probed(**probes: Any) -> dict[str, Any]:
    running = {"startedAt": "2026-01-01T00:00:00Z"}
    return {
        "metadata": {"name": "m-1"},
        "spec": {"containers": [{"name": "c", **probes}]},
        "status": {"containerStatuses": [{"name": "c", "state": {"running": running}}]},
    }


AT_S = 1767225600.0 + 20
"""Twenty seconds after the container started."""


def test_a_load_lasts_until_a_probe_could_have_failed() -> None:
    late = probed(livenessProbe={"initialDelaySeconds": 30, "periodSeconds": 10, "timeoutSeconds": 2})
    assert needed_s([late], "livenessProbe", 1, AT_S) == pytest.approx(10 + 10 + 2)
    assert needed_s([late], "livenessProbe", 1, AT_S + 500) == pytest.approx(12)
    assert needed_s([probed(readinessProbe={})], "readinessProbe", None, AT_S) == pytest.approx(31)
    assert needed_s([late], "readinessProbe", None, AT_S) is None
    assert needed_s([], "readinessProbe", None, AT_S) is None


def test_a_wrong_answer_is_lost() -> None:
    error = np.array([0, ERRORS.index("reset"), 0], dtype=np.int16)
    moments = np.arange(3.0)
    traffic = Traffic(
        moments,
        moments,
        error,
        np.array([""] * 3),
        {1: "its id", 2: "its numbers"},
        np.zeros(3, np.int32),
        0.0,
        {},
        inspected=np.array([True, False, True]),
        compared=np.array([True, False, True]),
    )
    assert traffic.inspected_text() == "", "both answers were"
    assert traffic.lost.tolist() == [False, True, True]
    assert traffic.errors_text(traffic.lost) == "1 reset, 1 wrong_answer"
    assert traffic.failed.tolist() == [False, True, False]
