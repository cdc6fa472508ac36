"""Each suite catches the defect it exists for, and raises nothing on a sound server."""

from __future__ import annotations

import pytest

from harness.checks import run_checks
from harness.endpoint import Endpoint
from harness.records import CheckResult, LoadResult, Outcome
from harness.runtimes import BuiltModel
from scenarios.suites.conformance import REGISTRY
from scenarios.suites.conformance.target import open_target
from scenarios.suites.load import Plan, load
from scenarios.suites.parity import parity
from tests.faults.mutants import KILLERS
from tests.helpers import Reference, reference_server

SLOW = ("rest.infer.body_32mib", "grpc.infer.message_32mib", "rest.infer.body_1mib")


def endpoint(server: Reference, built: BuiltModel, golden: bool = True) -> Endpoint:
    return Endpoint(
        "identity",
        "reference",
        server.url,
        "identity",
        grpc_address=server.grpc,
        golden=built.golden if golden else None,
    )


async def conformance_results(target: Endpoint, group: str) -> dict[str, CheckResult]:
    checks = [check for check in REGISTRY.checks.values() if check.group == group and check.id not in SLOW]
    async with open_target(target) as opened:
        found = run_checks(checks, opened, suite="conformance", service="s", runtime="r", deviations={})
        return {result.id: result async for result in found}


async def all_results(target: Endpoint, killer: str) -> dict[str, CheckResult]:
    suite = killer.split(".")[0]
    if suite == "parity":
        return {item.id: item async for item in parity(target) if isinstance(item, CheckResult)}
    if suite == "load":
        plan = Plan("load", 2.0, rate_per_s=60, warmup_s=0.2)
        found = load(target, plan, "samples", lambda progress: None)
        return {item.id: item async for item in found if isinstance(item, CheckResult)}
    return await conformance_results(target, ".".join(killer.split(".")[:2]))


@pytest.mark.parametrize("mutant", list(KILLERS))
async def test_mutant_is_killed_by_its_check(mutant: str, identity: BuiltModel, record_property: object) -> None:
    with reference_server(identity.artifacts, mutant=mutant) as server:
        results = await all_results(endpoint(server, identity), KILLERS[mutant])
    killer = results[KILLERS[mutant]]
    assert killer.outcome is Outcome.FAILED, f"{mutant} survived {killer.id}: {killer}"
    assert killer.expected
    assert killer.observed


@pytest.mark.parametrize("group", sorted({check.group for check in REGISTRY.checks.values()}))
async def test_sound_server_passes_every_must_and_should(
    group: str, reference: Reference, identity: BuiltModel
) -> None:
    results = await conformance_results(endpoint(reference, identity), group)
    bad = [
        result
        for result in results.values()
        if result.level != "may" and result.outcome in (Outcome.FAILED, Outcome.ERROR)
    ]
    assert results
    assert bad == []


async def test_sound_server_passes_parity_and_load(reference: Reference, identity: BuiltModel) -> None:
    target = endpoint(reference, identity)
    checks = [item async for item in parity(target) if isinstance(item, CheckResult)]
    assert [item.outcome for item in checks] == [Outcome.PASSED] * 5
    plan = Plan("load", 2.0, rate_per_s=60, warmup_s=0.2, protocol="grpc")
    records = [item async for item in load(target, plan, "samples", lambda progress: None)]
    results = [item for item in records if isinstance(item, LoadResult)]
    assert results[0].requests == 120
    assert results[0].errors == 0
    answers = next(item for item in records if isinstance(item, CheckResult) and item.id == "load.answers")
    assert answers.outcome is Outcome.PASSED


@pytest.mark.parametrize("protocol", ["rest", "binary"])
async def test_inputs_are_made_from_metadata_where_nothing_is_given(
    reference: Reference, identity: BuiltModel, protocol: str
) -> None:
    plan = Plan("load", 1.0, concurrency=2, warmup_s=0.1, protocol=protocol)  # type: ignore[arg-type]
    target = endpoint(reference, identity, golden=False)
    records = [item async for item in load(target, plan, "samples", lambda progress: None)]
    answers = next(item for item in records if isinstance(item, CheckResult) and item.id == "load.answers")
    assert answers.outcome is Outcome.PASSED, answers
    result = next(item for item in records if isinstance(item, LoadResult))
    assert result.errors == 0
    assert result.checked_answers > 0
