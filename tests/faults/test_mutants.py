"""Each check catches the defect it exists for, and raises nothing on a sound server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from harness.results.records import CheckResult, LoadResult, Outcome
from harness.target.endpoint import Endpoint
from runtimes.catalog import BuiltModel, build_model
from scenarios.suites.conformance.checks import run_check
from scenarios.suites.conformance.suite import PROFILES, REGISTRY, repository
from scenarios.suites.conformance.target import open_target
from scenarios.suites.parity.suite import parity
from scenarios.suites.shared.stage import Plan, load
from tests.faults.mutants import MUTANTS
from tests.helpers import ROOT, Reference

SLOW = ("rest.infer.body_32mib", "grpc.infer.message_32mib", "rest.infer.body_1mib")
ROUNDS = int(os.environ.get("SERVECERT_SOUND_ROUNDS", "1"))
"""How often every check runs on the sound server; 20 before a release."""


@dataclass
class Bench:
    """One server that can be made wrong, and whole again, while it runs."""

    server: Reference
    process: subprocess.Popen[str]

    def become(self, mutant: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(mutant + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "set\n"
        if not mutant:
            self.make_whole()

    def make_whole(self) -> None:
        """A mutant may have kept its model from coming back."""
        with httpx.Client(base_url=self.server.url) as client:
            if client.get("/v2/health/ready").status_code == 200:
                return
            for item in client.post("/v2/repository/index", json={}).json():
                client.post(f"/v2/repository/models/{item['name']}/load", json={}).raise_for_status()
            assert client.get("/v2/health/ready").status_code == 200


@pytest.fixture(scope="module")
def models(identity: BuiltModel, identity_half: BuiltModel) -> dict[str, BuiltModel]:
    return {"identity": identity, "half": identity_half, "text": build_model("text")}


@pytest.fixture(scope="module")
def bench(models: dict[str, BuiltModel]) -> Iterator[Bench]:
    command = [sys.executable, "-m", "tests.faults.mutants", "--orders", "--http-port", "0", "--grpc-port", "0"]
    for name, built in models.items():
        command += ["--model", f"{name}={built.artifacts}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().replace(",", "").split()
            ports = int(words[words.index("http") + 1]), int(words[words.index("grpc") + 1])
            yield Bench(Reference(process, *ports), process)
        finally:
            process.terminate()


def endpoint(server: Reference, built: BuiltModel, model: str = "identity", golden: bool = True) -> Endpoint:
    return Endpoint(
        model,
        "reference",
        server.url,
        model,
        grpc_address=server.grpc,
        golden=built.golden if golden else None,
    )


async def run_ids(target: Endpoint, ids: list[str]) -> dict[str, CheckResult]:
    checks = [REGISTRY.checks[check_id] for check_id in ids]
    async with open_target(target, asked=tuple(PROFILES)) as opened:
        return {
            check.id: await run_check(check, opened, suite="conformance", service="s", runtime="r", deviations={})
            for check in checks
        }


async def killed_by(target: Endpoint, killer: str) -> CheckResult:
    suite = killer.split(".")[0]
    if suite == "parity":
        results = {item.id: item async for item in parity(target) if isinstance(item, CheckResult)}
    elif suite == "load":
        plan = Plan("load", 2.0, rate_per_s=60, warmup_s=0.2)
        found = load(target, plan, "samples", lambda progress: None)
        results = {item.id: item async for item in found if isinstance(item, CheckResult)}
    else:
        results = await run_ids(target, [killer])
    return results[killer]


@pytest.mark.parametrize(
    ("mutant", "killer"), [(mutant.name, killer) for mutant in MUTANTS.values() for killer in mutant.killers]
)
async def test_mutant_is_killed_by_its_check(
    mutant: str,
    killer: str,
    bench: Bench,
    models: dict[str, BuiltModel],
    monkeypatch: pytest.MonkeyPatch,
    record_property: pytest.RecordProperty,
) -> None:
    monkeypatch.setattr(repository, "UNLOAD_S", 0.5)
    monkeypatch.setattr(repository, "LOAD_S", 2.0)
    name = "identity"
    if killer.startswith(("openai.", "generate.")):
        name = "text"
    elif any(half in killer for half in ("fp16", "bf16")):
        name = "half"
    target = endpoint(bench.server, models[name], name)
    bench.become(mutant)
    try:
        result = await killed_by(target, killer)
    finally:
        bench.become("")
    assert result.outcome is Outcome.FAILED, f"{mutant} survived {killer}: {result}"
    assert result.expected
    assert result.observed
    record_property("killed", f"{killer} {mutant}")


def test_every_check_has_a_mutant() -> None:
    killers = {killer for mutant in MUTANTS.values() for killer in mutant.killers}
    assert sorted(set(REGISTRY.checks) - killers) == []
    assert sorted(killers - set(REGISTRY.checks)) == ["load.answers", "parity.batch", "parity.golden.rest"]


@pytest.mark.parametrize("model", ["identity", "half", "text"])
async def test_sound_server_passes_every_check(model: str, bench: Bench, models: dict[str, BuiltModel]) -> None:
    bench.become("")
    built = models[model]
    for turn in range(ROUNDS):
        ids = [check_id for check_id in REGISTRY.checks if turn == 0 or check_id not in SLOW]
        if model != "text":
            ids = [check_id for check_id in ids if not check_id.startswith(("openai.", "generate."))]
        results = await run_ids(endpoint(bench.server, built, model), ids)
        assert len(results) == len(ids)
        assert [result for result in results.values() if result.outcome in (Outcome.FAILED, Outcome.ERROR)] == []


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
