"""Who gets the traffic: KServe's rules for canaries, promotion and rollback, and the places of requests at pods."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.local.api.faults import KINDS, faults_of, parse
from cluster.local.controllers.traffic import Rollout, Target, route_traffic
from cluster.local.ingress.routes import Backend, RevisionRoute, RouteTable, Share


def shares(targets: list[Target]) -> dict[str, int]:
    return {target.revision: target.percent for target in targets}


def test_a_first_revision_gets_everything_even_as_a_canary() -> None:
    targets, rollout = route_traffic("r1", "r1", Rollout(), 10, tagged=False)
    assert {target.revision for target in targets} == {"r1"}
    assert sum(target.percent for target in targets) == 100
    assert rollout == Rollout("r1", "")


def test_nothing_ready_has_no_traffic() -> None:
    assert route_traffic("r1", "", Rollout(), None, tagged=False) == ([], Rollout())


def test_a_canary_shares_with_what_was_rolled_out_last() -> None:
    targets, rollout = route_traffic("r2", "r2", Rollout("r1"), 10, tagged=True)
    assert targets == [Target("r2", 10, True, "latest"), Target("r1", 90, False, "prev")]
    assert rollout == Rollout("r1")


def test_a_latest_revision_that_is_not_ready_gets_nothing() -> None:
    targets, rollout = route_traffic("r2", "r1", Rollout("r1"), 20, tagged=False)
    assert {target.revision for target in targets} == {"r1"}
    assert sum(target.percent for target in targets) == 100
    assert rollout == Rollout("r1")


@pytest.mark.parametrize("percent", [None, 100])
def test_promotion_remembers_what_was_there_before(percent: int | None) -> None:
    targets, rollout = route_traffic("r2", "r2", Rollout("r1"), percent, tagged=False)
    assert shares(targets) == {"r2": 100}
    assert rollout == Rollout("r2", "r1")


def test_zero_after_full_rollout_rolls_back() -> None:
    targets, rollout = route_traffic("r2", "r2", Rollout("r2", "r1"), 0, tagged=False)
    assert shares(targets) == {"r2": 0, "r1": 100}
    assert rollout.rolled_out == "r1"
    again, same = route_traffic("r2", "r2", rollout, 0, tagged=False)
    assert (again, same) == (targets, rollout)


def test_the_next_canary_has_nothing_of_the_revision_before_the_last() -> None:
    targets, _ = route_traffic("r3", "r3", Rollout("r2", "r1"), 10, tagged=False)
    assert shares(targets) == {"r3": 10, "r2": 90}


# Places at pods


def backend(name: str) -> Backend:
    return Backend(name, "r1", "127.0.0.1", 1, None)


class Caller:
    def __init__(self, revision: RevisionRoute) -> None:
        self.backend: Backend | None = None
        self.status = 0
        self.ticket = revision.acquire(self._ready, self._refused)

    def _ready(self, given: Backend) -> None:
        self.backend = given

    def _refused(self, status: int, why: str) -> None:
        self.status = status


async def test_requests_wait_for_the_first_pod_and_none_is_lost() -> None:
    revision = RevisionRoute("ns", "r1")
    asked: list[int] = []
    revision.cold = lambda one: asked.append(one.waiting)
    callers = [Caller(revision) for _ in range(5)]
    assert not any(caller.backend or caller.status for caller in callers)
    assert asked == [1, 2, 3, 4, 5]
    revision.set_backends([backend("a")])
    assert all(caller.backend for caller in callers)


async def test_the_activator_gives_each_pod_no_more_than_its_concurrency() -> None:
    revision = RevisionRoute("ns", "r1")
    revision.limit = 2
    revision.set_backends([backend("a"), backend("b")])
    callers = [Caller(revision) for _ in range(7)]
    assert [item.in_flight for item in revision.backends] == [2, 2]
    assert revision.waiting == 3
    callers[0].ticket.finish()
    assert callers[4].backend is callers[0].backend
    assert revision.waiting == 2


async def test_without_the_activator_a_pod_queues_ten_times_its_concurrency_and_then_refuses() -> None:
    revision = RevisionRoute("ns", "r1")
    revision.limit, revision.activator = 2, False
    revision.set_backends([backend("a")])
    callers = [Caller(revision) for _ in range(2 + 20 + 3)]
    assert [caller.status for caller in callers[-4:]] == [0, 503, 503, 503]
    assert revision.backends[0].in_flight == 2
    callers[0].ticket.finish()
    assert callers[2].backend is revision.backends[0]


async def test_a_pod_that_leaves_still_serves_what_waits_at_it() -> None:
    revision = RevisionRoute("ns", "r1")
    revision.limit, revision.activator = 1, False
    leaving = backend("a")
    revision.set_backends([leaving])
    first, second = Caller(revision), Caller(revision)
    revision.withdraw("a")
    drained = asyncio.ensure_future(leaving.idle())
    first.ticket.finish()
    assert second.backend is leaving
    await asyncio.sleep(0)
    assert not drained.done()
    second.ticket.finish()
    await asyncio.wait_for(drained, 1)


async def test_a_caller_that_gave_up_takes_no_slot() -> None:
    revision = RevisionRoute("ns", "r1")
    first, second = Caller(revision), Caller(revision)
    first.ticket.finish()
    revision.set_backends([backend("a")])
    assert first.backend is None
    assert second.backend is not None
    assert revision.meter.take()[0] > 0
    second.ticket.finish()
    assert revision.backends[0].in_flight == 0


async def test_a_deleted_revision_refuses_what_waits() -> None:
    routes = RouteTable()
    caller = Caller(routes.revision("ns", "r1"))
    routes.remove_revision("ns", "r1")
    assert caller.status == 503


async def test_the_split_follows_the_percentages() -> None:
    routes = RouteTable()
    first, second = routes.revision("ns", "r1"), routes.revision("ns", "r2")
    routes.set("ns", "m", [Share(second, 20), Share(first, 80)], {"latest": second})
    route, tag = routes.find("m.ns.example.com") or pytest.fail("no route")
    assert tag == ""
    count = sum(route.choose() is second for _ in range(5000))
    assert 800 < count < 1200  # seven standard deviations
    tagged = routes.find("latest-m-predictor.ns.example.com")
    assert tagged == (route, "latest")
    assert route.choose("latest") is second
    assert routes.find("other-m-predictor.ns.example.com") is None


# Faults


def annotated(text: str) -> dict[str, Any]:
    return {"metadata": {"annotations": {"local.servecert.io/faults": text}}}


def test_faults_are_read_with_their_values() -> None:
    faults = faults_of(annotated("slow-load=2s, errors=3%"), annotated("latency=4x errors=1%"))
    assert faults.value("slow-load") == 2
    assert faults.value("errors") == pytest.approx(0.01)
    assert faults.value("latency") == 4
    assert "never-zero" not in faults
    assert faults_of({"metadata": {}}, None).values == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [("slow-lod", "unknown fault 'slow-lod'"), ("never-zero=3", "takes no value"), ("slow-load=3", "slow-load")],
)
def test_a_fault_that_nobody_knows_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_every_fault_parses_by_its_name() -> None:
    for name in KINDS:
        assert name in parse(name)
