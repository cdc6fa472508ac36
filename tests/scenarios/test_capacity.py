"""The search for capacity: its decisions as pure functions, and a real server whose capacity is known."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.results.records import CheckResult, LoadResult, Measurement, Outcome
from harness.results.slo import parse_slo
from harness.target.endpoint import Endpoint
from harness.target.golden import read_payload
from scenarios.suites.shared.search import Search, Trial, bracket, capacity, contradictions, knee, next_rate
from scenarios.suites.shared.stage import Plan
from tests.helpers import read_request, scripted_server
from tests.scenarios.test_load_answers import REQUEST, infer_answer


def search(**fields: Any) -> Search:
    values: dict[str, Any] = {"start_per_s": 10.0, "most_per_s": 10_000.0, "tolerance": 0.05, "repeats": 1, **fields}
    return Search(Plan("c", 1.0), **values)


def simulate(limit: float, wanted: Search) -> tuple[float | None, float | None, int]:
    """A service that holds every rate up to ``limit``."""
    trials: list[Trial] = []
    while (rate := next_rate(trials, wanted)) is not None:
        trials.append(Trial(rate, rate <= limit))
        assert len(trials) < 60
    return *bracket(trials, wanted.repeats), len(trials)


@pytest.mark.parametrize("limit", [3.0, 10.0, 73.0, 1234.5, 9000.0])
@pytest.mark.parametrize("repeats", [1, 3])
def test_search_closes_in_on_the_limit(limit: float, repeats: int) -> None:
    low, high, count = simulate(limit, search(repeats=repeats))
    assert low is not None
    assert high is not None
    assert low <= limit < high
    assert high <= low * 1.05
    assert count <= 16 * repeats


def test_search_stops_at_what_was_asked_for() -> None:
    low, high, _ = simulate(math.inf, search(most_per_s=500.0))
    assert (low, high) == (500.0, None)


def test_service_that_holds_nothing_ends_the_search() -> None:
    low, high, _ = simulate(0.0, search())
    assert low is None
    assert high is not None


def test_a_single_failure_is_tried_again_and_two_make_a_failed_rate() -> None:
    wanted = search(repeats=3)
    trials = [Trial(10, True), Trial(20, False)]
    assert next_rate(trials, wanted) == 20
    assert bracket([*trials, Trial(20, False)], 3) == (10, 20)
    lucky = [*trials, Trial(20, True), Trial(20, True)]
    assert next_rate(lucky, wanted) == 20, "one of three failed: not enough to say"
    assert bracket([*lucky, Trial(20, True)], 3) == (20, None)


def test_search_goes_no_lower_than_a_trial_has_requests() -> None:
    tried = [Trial(rate, False) for rate in (10.0, 5.0, 2.5)]
    assert next_rate(tried, search()) == 1.25
    assert next_rate([*tried, Trial(1.25, False)], search()) is None, "half of that is no request in most seconds"


def test_rate_that_failed_at_once_is_tried_again_at_the_end() -> None:
    """A disturbance may outlast two trials."""
    wanted = search(repeats=3, tolerance=0.5)
    trials = [Trial(10, True), Trial(20, False), Trial(20, False), Trial(14, True), Trial(14, True), Trial(14, True)]
    assert next_rate(trials, wanted) == 20
    assert next_rate([*trials, Trial(20, True)], wanted) == 20


def test_rate_above_all_that_failed_is_looked_at_once() -> None:
    """A disturbance of three trials, at the top of the way up."""
    wanted = search(repeats=3, tolerance=0.95)
    failed = [Trial(10, True), Trial(20, False), Trial(20, False)]
    found = [*failed, Trial(14.142135623730951, True), *[Trial(14.142135623730951, True)] * 2, Trial(20, False)]
    assert next_rate(found, wanted) == 30
    assert next_rate([*found, Trial(30, False), Trial(30, False)], wanted) is None
    assert contradictions([*found, *[Trial(30, True)] * 3], 3) == [20]


def test_single_trials_are_final_where_one_is_asked_for() -> None:
    trials = [Trial(10, True), Trial(20, False), Trial(40, True)]
    assert bracket(trials, 1) == (10, 20)


def test_budget_covers_the_whole_way_up() -> None:
    assert simulate(50_000.0, search(most_per_s=100_000.0, repeats=3))[2] <= search(most_per_s=1e5, repeats=3).budget


def test_knee_is_where_the_curve_bends() -> None:
    assert knee([(100, 1), (200, 1.1), (400, 1.3), (800, 2), (1000, 30), (1100, 100)]) == 800
    assert knee([(1, 1), (2, 2)]) is None
    assert knee([(1, 5), (2, 4), (3, 3)]) is None


async def test_capacity_of_a_server_of_known_speed(tmp_path: Path) -> None:
    """One request at a time and 10 ms each: a hundred a second, and not one more."""
    turn = threading.Lock()

    def serve(connection: socket.socket, data: bytes) -> None:
        while data:
            _, sent = read_request(connection, data)
            body = infer_answer(1.0, id=json.loads(sent)["id"])
            with turn:
                time.sleep(0.01)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            data = connection.recv(65536)

    payload = tmp_path / "payload.json"
    payload.write_text(json.dumps(REQUEST))
    notes: list[str] = []
    with scripted_server(serve) as port:
        endpoint = Endpoint("m", "r", f"http://127.0.0.1:{port}", "m", payload=tuple(read_payload(payload)))
        plan = Plan("c", 2.0, arrivals="constant", warmup_s=0.2, objectives=(parse_slo("p90 < 60ms"),))
        wanted = Search(plan, 20.0, 1000.0, tolerance=0.2, repeats=1)
        found = capacity(endpoint, wanted, lambda name: name, lambda progress: None, notes.append)
        records = [record async for record in found]
    check = next(record for record in records if isinstance(record, CheckResult))
    assert check.outcome is Outcome.PASSED
    measured = next(record for record in records if isinstance(record, Measurement) and record.name == "capacity")
    assert 65 <= measured.value <= 105, notes
    assert measured.ci_high is None, "the rate above it that failed is no confidence interval"
    failed_at = next(record for record in records if isinstance(record, Measurement) and "failed_at" in record.name)
    assert measured.value < failed_at.value <= 1.2 * measured.value
    trials = [record for record in records if isinstance(record, LoadResult)]
    assert len(trials) == len([note for note in notes if " met: " in note]) >= 5
    assert len({trial.step for trial in trials}) == len(trials)
