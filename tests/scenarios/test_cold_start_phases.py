"""Phases of a cold start from the changes of a pod, and clocks that do not agree."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import MeasurementError, UsageError
from harness.kubernetes.podwatch import EventChange, PodChange
from harness.results.records import Measurement, Outcome, Series
from harness.results.runstore import RunStore, read_run
from harness.results.sides import measured
from harness.target.endpoint import Endpoint
from reports.plots import waterfall
from reports.write import write_reports
from scenarios.suites import suites
from scenarios.suites.cold_start.budgets import judge_budget
from scenarios.suites.cold_start.figures import columns_of, figures
from scenarios.suites.cold_start.model import ColdStartStep
from scenarios.suites.cold_start.phases import (
    PHASES,
    UNKNOWN,
    Span,
    Trial,
    clock_conflicts,
    exactly,
    node_ready,
    phase_ends,
    pulled,
    settled,
    stamped,
)
from scenarios.suites.cold_start.suite import answers_check, warm_check
from scenarios.suites.cold_start.warm import Warm
from scenarios.suites.probes.pods import readiness_changes
from scenarios.suites.shared.judging import Judge
from scenarios.suites.shared.suite import Target, Task
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
    ends = phase_ends(CHANGES, exactly(104.5), begun_s=100.0, first_byte_s=109.5)
    assert list(ends) == list(PHASES)
    trial = Trial(ends)
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
    ends = phase_ends(CHANGES, exactly(104.5), begun_s=100.0, first_byte_s=107.0)
    trial = Trial(ends)
    assert trial.phases_s["ready"] == pytest.approx(2.0)
    assert trial.phases_s["first_byte"] == 0
    assert sum(trial.phases_s.values()) == pytest.approx(7.0)
    assert trial.ready_late_s == pytest.approx(2.0)


def test_an_image_that_was_there_takes_no_time() -> None:
    ends = phase_ends(CHANGES, None, begun_s=100.0, first_byte_s=109.5)
    assert Trial(ends).phases_s["image"] == 0


def test_a_node_that_was_added_for_the_pod_is_a_phase() -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(41)}
    slow = [change(0.2, pod(), "ADDED"), *(change(item.at_s - 100 + 40, item.pod) for item in CHANGES[1:])]
    node = {"metadata": {"name": "n", "creationTimestamp": stamp(30)}, "status": {"conditions": [ready]}}
    at = node_ready(node, slow[0], (-0.5, 0.5))
    assert at is not None
    # Cut to the second, by a clock that is half a second ahead or behind: within a second of 141.5 s.
    assert at == pytest.approx((140.5, 142.5))
    # A cluster whose clock is a minute ahead says the same of itself a minute later.
    behind = PodChange(slow[0].at_s, slow[0].wall_s - 60, "ADDED", slow[0].pod)
    assert node_ready(node, behind, (59.5, 60.5)) == pytest.approx((140.5, 142.5))
    late = [*slow[:1], *(change(item.at_s - 100 + 42, item.pod) for item in CHANGES[1:])]
    trial = Trial(phase_ends(late, None, 100.0, 152.0, at))
    assert trial.phases_s["node"] == pytest.approx((40.5 + 42.3) / 2 - 0.2), "it was scheduled at 42.3 s"
    assert trial.phases["node"] == pytest.approx((40.3, 42.1))
    assert trial.phases["scheduled"] == pytest.approx((0.0, 1.8)), "what one may be shorter the next may be longer"
    assert sum(trial.phases_s.values()) == pytest.approx(52.0)
    old = {**node, "metadata": {"name": "n", "creationTimestamp": stamp(-500)}}
    assert node_ready(old, slow[0], (-0.5, 0.5)) is None, "it was there before"


def test_a_stamp_is_as_exact_as_it_is_written() -> None:
    assert stamped(stamp(5), (-0.25, 0.75)) == Span(START + 4.25, START + 6.25)
    exact = datetime.fromtimestamp(START + 5.5, UTC).isoformat()
    assert stamped(exact, (-0.25, 0.75)) == Span(START + 4.75, START + 5.75)


def told(at: float, reason: str, message: str = "", of: str = "m-1", stamped_at: float | None = None) -> EventChange:
    about = {"kind": "Pod", "name": of}
    event = {"involvedObject": about, "reason": reason, "message": message, "firstTimestamp": stamp(stamped_at or at)}
    return EventChange(100 + at, START + at, "ADDED", event)


PRESENT = 'Container image "i" already present on machine'
FETCHED = 'Successfully pulled image "i" in 2.4s'


def test_an_image_is_there_when_the_event_of_that_arrives() -> None:
    of_another = told(9, "Pulled", FETCHED, of="m-2")
    events = [told(2.0, "Pulled", PRESENT), told(2.1, "Pulling"), told(4.625, "Pulled", FETCHED), of_another]
    assert pulled(events, "m-1") == exactly(104.625)
    assert pulled(events[:1], "m-1") is None, "nobody had to fetch it"


@pytest.mark.parametrize("events", [[], [told(2.0, "Pulled", PRESENT), told(2.1, "Pulling")]])
def test_an_image_of_which_nothing_was_heard_is_not_measured(events: list[EventChange]) -> None:
    assert pulled(events, "m-1") == UNKNOWN
    trial = Trial(phase_ends(CHANGES, pulled(events, "m-1"), 100.0, 109.5))
    assert trial.phases["image"] == pytest.approx((0.0, 3.0)), "between the model's download and the process's start"
    assert trial.phases["started"] == pytest.approx((0.0, 3.0))
    assert trial.phases["ready"] == pytest.approx((4.0, 4.0))
    assert sum(trial.phases_s.values()) == pytest.approx(9.5)


def test_images_are_waited_for_until_each_container_has_its_own() -> None:
    two = {**CHANGES[-1].pod, "spec": {"initContainers": [{}], "containers": [{}]}}
    events = [told(2.0, "Pulled", PRESENT), told(2.1, "Pulling")]
    assert not settled(events, two)
    assert settled([*events, told(4.5, "Pulled", FETCHED)], two)


def test_an_end_that_was_never_seen_is_no_measurement() -> None:
    with pytest.raises(MeasurementError, match="never seen ready"):
        phase_ends(CHANGES[:-1], None, 100.0, 109.5)


def test_clocks_that_agree_and_clocks_that_do_not() -> None:
    assert clock_conflicts(CHANGES, (-0.5, 0.5)) == ""
    # A cluster whose clock is a minute ahead, and known to be.
    ahead = [PodChange(item.at_s, item.wall_s - 60, item.type, item.pod) for item in CHANGES]
    assert clock_conflicts(ahead, (59.5, 60.5)) == ""
    assert "Kubernetes says" in clock_conflicts(ahead, (-0.5, 0.5))


def test_events_that_arrive_long_after_their_stamp_are_a_conflict() -> None:
    assert clock_conflicts(CHANGES, (-0.5, 0.5), [told(4.6, "Pulled", FETCHED)]) == ""
    late = [told(9.6, "Pulled", FETCHED, stamped_at=4.0)]
    assert clock_conflicts(CHANGES, (-0.5, 0.5), late).startswith("image: Kubernetes says")


def test_a_pod_without_timestamps_does_not_agree() -> None:
    bare = [PodChange(item.at_s, item.wall_s, item.type, {"metadata": {"name": "m-1"}}) for item in CHANGES]
    assert "no timestamp" in clock_conflicts(bare, (-0.5, 0.5))


NEVER = exactly(float("inf"))


@pytest.mark.parametrize(
    ("taken", "outcome"),
    [
        ([3.0], Outcome.UNDECIDED),
        ([30.0], Outcome.UNDECIDED),
        ([3.0, 3.1, 3.2], Outcome.PASSED),
        ([3.0, 6.0, 9.0], Outcome.UNDECIDED),
        ([30.0, 31.0, 32.0], Outcome.FAILED),
        ([9.0, 9.5, 10.5], Outcome.UNDECIDED),
        ([9.9] * 4 + [5.0], Outcome.PASSED),
        ([9.9] * 4 + [11.0], Outcome.UNDECIDED),
        ([9.9] * 7 + [11.0], Outcome.PASSED),
        ([11.0] * 5, Outcome.FAILED),
        ([9.0] * 10 + [11.0] * 10, Outcome.UNDECIDED),
        ([0.0, 0.0, 0.0], Outcome.PASSED),
    ],
)
def test_a_budget_is_met_or_not_or_too_few_trials_say(taken: list[float], outcome: Outcome) -> None:
    judged = judge_budget([exactly(value) for value in taken], 10.0)
    assert judged.outcome is outcome, judged
    assert bool(judged.reason) is (outcome is Outcome.UNDECIDED)


def test_an_undecided_budget_says_what_would_decide_it() -> None:
    def reason(*taken: float) -> str:
        return judge_budget([exactly(value) for value in taken], 10.0).reason

    assert reason(3.0).startswith("5 trials")
    assert reason(9.0, 9.1, 9.2, 9.3, 11.0).startswith("13 trials would decide, if 80% of them")
    assert "too close" in reason(9.0, 11.0)


def test_a_trial_without_an_answer_is_beyond_every_budget() -> None:
    assert judge_budget([exactly(3.0)] * 4 + [NEVER], 10.0).outcome is Outcome.UNDECIDED
    assert judge_budget([NEVER] * 5, 10.0).outcome is Outcome.FAILED


def test_what_is_nearer_to_the_budget_than_it_is_measured_is_undecided() -> None:
    rough = [Span(9.4, 10.4)] * 5
    judged = judge_budget(rough, 10.0)
    assert judged.outcome is Outcome.UNDECIDED
    assert "±0.5 s" in judged.reason
    assert judge_budget(rough, 10.5).outcome is Outcome.PASSED
    assert judge_budget(rough, 9.0).outcome is Outcome.FAILED


def recorded(trials: list[Trial]) -> tuple[Series, dict[str, Measurement]]:
    judge = Judge("cold-start", Endpoint("m", "custom", "http://127.0.0.1:1", "m"), "cold")
    series, *rest = figures(judge, "m", trials, Warm((0.01,) * 10, 10, "", 10))
    assert isinstance(series, Series)
    return series, {item.name.removeprefix("cold-start."): item for item in rest if isinstance(item, Measurement)}


def test_trials_without_an_answer_are_in_every_figure(tmp_path: Path) -> None:
    """Two cold starts took three seconds, and three were never answered: the median is no three seconds."""
    fine = Trial({name: exactly(3.0) for name in PHASES}, done_s=3.1, sent=4)
    never = Trial({}, done_s=15.0, sent=4, lost=4)
    series, found = recorded([fine, never, never, fine, never])
    assert (found["first_byte.p50"].value, found["first_byte.p50"].n) == (math.inf, 5)
    assert found["last_answer"].value == found["cold_over_warm"].value == found["first_byte.max"].value == math.inf
    assert (found["phase.created"].value, found["phase.created"].n) == (3.0, 2), "as far as it is known"
    assert [sum(row) for row in zip(*series.columns.values(), strict=True)] == pytest.approx(
        [3.0, math.nan, math.nan, 3.0, math.nan], nan_ok=True
    )
    store = RunStore(tmp_path / "run", "cold", seed=1)
    for record in (series, *found.values()):
        store.add(record)
    store.finish(1)
    store.close()
    run = read_run(tmp_path / "run")
    side = measured(run)
    assert side.values["m", "cold"]["cold_start"] == math.inf
    assert side.blocks["m", "cold"]["cold_start"] == [3.0, math.inf, math.inf, 3.0, math.inf]
    assert {item.name: item.value for item in run.measurements}["cold-start.first_byte.p50"] == math.inf
    shown = [text.get_text() for text in waterfall(series).axes[0].texts]
    assert shown == ["no answer"] * 3
    write_reports(tmp_path / "run")


@pytest.mark.parametrize(
    ("inspected", "outcome", "words"),
    [
        (8, Outcome.PASSED, "8 of 8 answers inspected, all right"),
        (3, Outcome.PASSED, "3 of 8 answers inspected, all right"),
        (0, Outcome.UNDECIDED, "0 of 8 answers inspected"),
    ],
)
def test_answers_that_were_not_inspected_are_not_called_right(inspected: int, outcome: Outcome, words: str) -> None:
    judge = Judge("cold-start", Endpoint("m", "custom", "http://127.0.0.1:1", "m"), "cold")
    result = answers_check(judge, [Trial({}, sent=8, inspected=inspected)], known=True)
    assert (result.outcome, words in result.observed) == (outcome, True)
    result = warm_check(judge, Warm((0.01,) * 8, 8, "", inspected))
    assert result.outcome is outcome
    assert (f"{inspected} of them inspected" in result.observed) is (inspected < 8)


def test_a_median_beside_trials_without_an_answer() -> None:
    fine = Trial({name: exactly(3.0) for name in PHASES}, done_s=3.1, sent=4)
    slow = Trial({name: exactly(5.0) for name in PHASES}, done_s=9.0, sent=4, lost=1)
    _, found = recorded([fine, fine, slow, Trial({}, sent=4, lost=4)])
    assert found["first_byte.p50"].value == pytest.approx(4.0)
    assert found["first_byte.max"].value == math.inf
    _, found = recorded([Trial({}, sent=4, lost=4)])
    assert found["first_byte.p50"].value == math.inf
    assert "phase.created" not in found
    assert columns_of([fine])["created"] == [3.0]


def test_flapping_is_counted_and_leaving_is_not() -> None:
    up, down = pod(Ready=1), pod()
    changes = [change(0, up, "ADDED"), change(1, down), change(2, up), change(3, pod(deleted=True))]
    assert readiness_changes(changes, since_s=100) == ["m-1"]
    assert readiness_changes(changes, since_s=102) == []


async def test_a_step_that_needs_a_cluster_says_so_without_one() -> None:
    step = ColdStartStep.model_validate({"suite": "cold-start", "service": "m"})
    target = Target(Endpoint(service="m", runtime="custom", url="http://127.0.0.1:1", model="m"))
    with pytest.raises(UsageError, match="run it as a step of a scenario"):
        suites()["cold-start"].run(step, Task("cold", target, 1, Silent(), str, lambda name, text: name))
