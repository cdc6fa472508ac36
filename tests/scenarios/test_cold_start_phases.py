"""Phases of a cold start from the changes of a pod, and clocks that do not agree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from harness.endpoint import Endpoint
from harness.errors import MeasurementError, UsageError
from harness.podwatch import PodChange
from harness.scenario_model import ColdStartStep
from harness.steps import Target, records_of
from scenarios.suites.cold_start import PHASES, Trial, clock_conflicts, node_ready_s, phase_ends
from scenarios.suites.probes import readiness_changes
from tests.faults.cluster_runs import Silent

START = 1_700_000_000.0


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(START + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(created: float = 0.0, deleted: bool = False, runs: bool = False, **conditions: float) -> dict[str, Any]:
    metadata = {"name": "m-1", "creationTimestamp": stamp(created)}
    if deleted:
        metadata["deletionTimestamp"] = stamp(0)
    found = [{"type": kind, "status": "True", "lastTransitionTime": stamp(at)} for kind, at in conditions.items()]
    states = [{"name": "c", "state": {"running": {}} if runs else {"waiting": {}}}]
    return {"metadata": metadata, "status": {"conditions": found, "containerStatuses": states}}


def change(at: float, item: dict[str, Any], kind: str = "MODIFIED") -> PodChange:
    return PodChange(100 + at, START + at, kind, item)


CHANGES = [
    change(0.2, pod(), "ADDED"),
    change(0.3, pod(PodScheduled=0)),
    change(2.0, pod(PodScheduled=0, Initialized=2)),
    change(5.0, pod(PodScheduled=0, Initialized=2, runs=True)),
    change(9.0, pod(PodScheduled=0, Initialized=2, runs=True, Ready=9)),
]


def test_each_phase_ends_with_the_change_that_ends_it() -> None:
    ends = phase_ends(CHANGES, pulled_s=104.5, begun_s=100.0, first_byte_s=109.5)
    assert list(ends) == list(PHASES)
    trial = Trial(ends, 10.0, 4, 0, "", {}, "")
    expected = {
        "created": 0.2,
        "node": 0.0,
        "scheduled": 0.1,
        "storage": 1.7,
        "image": 2.5,
        "started": 0.5,
        "ready": 4.0,
        "first_byte": 0.5,
    }
    assert trial.phases_s == pytest.approx(expected)
    assert sum(trial.phases_s.values()) == pytest.approx(9.5)


def test_an_answer_before_the_pod_is_called_ready_ends_the_phases() -> None:
    """As on Knative, whose activator does not wait for Kubernetes."""
    ends = phase_ends(CHANGES, pulled_s=104.5, begun_s=100.0, first_byte_s=107.0)
    trial = Trial(ends, 10.0, 4, 0, "", {}, "")
    assert trial.phases_s["ready"] == pytest.approx(2.0)
    assert trial.phases_s["first_byte"] == 0
    assert sum(trial.phases_s.values()) == pytest.approx(7.0)
    assert trial.ready_late_s == pytest.approx(2.0)


def test_an_image_that_was_there_takes_no_time() -> None:
    ends = phase_ends(CHANGES, pulled_s=None, begun_s=100.0, first_byte_s=109.5)
    assert Trial(ends, 10.0, 4, 0, "", {}, "").phases_s["image"] == 0


def test_a_node_that_was_added_for_the_pod_is_a_phase() -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(41)}
    slow = [change(0.2, pod(), "ADDED"), *(change(item.at_s - 100 + 40, item.pod) for item in CHANGES[1:])]
    node = {"metadata": {"name": "n", "creationTimestamp": stamp(30)}, "status": {"conditions": [ready]}}
    at = node_ready_s(node, slow[0], (-0.5, 0.5))
    assert at == pytest.approx(141.0)
    # A cluster whose clock is a minute ahead says the same of itself a minute later.
    behind = PodChange(slow[0].at_s, slow[0].wall_s - 60, "ADDED", slow[0].pod)
    assert node_ready_s(node, behind, (59.5, 60.5)) == pytest.approx(141.0)
    late = [*slow[:1], *(change(item.at_s - 100 + 42, item.pod) for item in CHANGES[1:])]
    trial = Trial(phase_ends(late, None, 100.0, 152.0, at), 1.0, 1, 0, "", {}, "")
    assert trial.phases_s["node"] == pytest.approx(40.8)
    assert trial.phases_s["scheduled"] == pytest.approx(1.3)
    old = {**node, "metadata": {"name": "n", "creationTimestamp": stamp(-500)}}
    assert node_ready_s(old, slow[0], (-0.5, 0.5)) is None, "it was there before"


def test_an_end_that_was_never_seen_is_no_measurement() -> None:
    with pytest.raises(MeasurementError, match="never seen ready"):
        phase_ends(CHANGES[:-1], None, 100.0, 109.5)


def test_clocks_that_agree_and_clocks_that_do_not() -> None:
    assert clock_conflicts(CHANGES, (-0.5, 0.5)) == ""
    # A cluster whose clock is a minute ahead, and known to be.
    ahead = [PodChange(item.at_s, item.wall_s - 60, item.type, item.pod) for item in CHANGES]
    assert clock_conflicts(ahead, (59.5, 60.5)) == ""
    assert "Kubernetes says" in clock_conflicts(ahead, (-0.5, 0.5))


def test_flapping_is_counted_and_leaving_is_not() -> None:
    up, down = pod(Ready=1), pod()
    changes = [change(0, up, "ADDED"), change(1, down), change(2, up), change(3, pod(deleted=True))]
    assert readiness_changes(changes, since_s=100) == ["m-1"]
    assert readiness_changes(changes, since_s=102) == []


async def test_a_step_that_needs_a_cluster_says_so_without_one() -> None:
    step = ColdStartStep.model_validate({"suite": "cold-start", "service": "m"})
    target = Target(Endpoint(service="m", runtime="custom", url="http://127.0.0.1:1", model="m"))
    with pytest.raises(UsageError, match="run it as a step of a scenario"):
        records_of(step, "cold", target, 1, str, lambda name, text: name, Silent())
