"""Each suite that changes or watches a cluster notices the faults that are its own, and nothing on a sound cluster.

Faults run side by side, each on a cluster of its own. Without ``SERVECERT_ALL_FAULTS`` only those marked ``quick`` run;
``SERVECERT_SOUND_ROUNDS`` is how often each suite runs on a sound cluster.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.local.api.faults import ANNOTATION, KINDS
from tests.faults.cluster_runs import CANDIDATE, NEXT, STEPS, Found, carry_out, scenario

TOGETHER = int(os.environ.get("SERVECERT_TOGETHER", "5"))
ROUNDS = int(os.environ.get("SERVECERT_SOUND_ROUNDS", "1"))
ALL = "SERVECERT_ALL_FAULTS" in os.environ


@dataclass(frozen=True)
class Case:
    """``notices`` are ids of checks that must fail; ``error`` is what the run says where nothing can be measured."""

    suite: str
    faults: tuple[str, ...]
    notices: tuple[str, ...] = ()
    error: str = ""
    quick: bool = False
    step: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        of_candidates = [
            f"candidate with {text}"
            for item in self.step.get("candidates", [])
            if (text := item["predictor"].get("annotations", {}).get(ANNOTATION))
        ]
        return ", ".join([*self.faults, *of_candidates])

    @property
    def name(self) -> str:
        return f"{self.suite}: {self.title}"


def candidate(fault: str) -> dict[str, Any]:
    annotations = {ANNOTATION: fault}
    return {"candidates": [{"predictor": {**CANDIDATE["predictor"], "annotations": annotations}}]}


SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    **{suite: (suite, {"broken": True} if suite == "canary-rollback" else {}) for suite in STEPS},
    "canary-rollback in Standard mode": ("canary-rollback", {"standard": True, "broken": True}),
}
ONCE = {"canary-rollback by header": ("canary-rollback", {"header": "x-served-by", "percents": [30, 50]})}
"""In one round only: what differs from the others is how answers are told apart."""
BRIEF = {"shape": "steps 4/s 40/s", "duration": "16s", "back_within": "1s", "zero_within": "1s"}
TWO = {"candidates": [CANDIDATE, NEXT]}
CASES = (
    Case("cold-start", ("slow-image-pull=8s",), ("budget.total",)),
    Case("cold-start", ("slow-load=8s",), ("budget.ready", "budget.total"), quick=True, step={"warm": 5}),
    Case("cold-start", ("hanging-load",), error="was not ready", step={"zero_within": "20s"}),
    Case("cold-start", ("cold-503",), ("answered",)),
    Case("cold-start", ("never-zero",), error="no pod did not come", step={"zero_within": "20s"}),
    Case("cold-start", ("ready-before-load", "slow-load=1s"), error="a request was not answered"),
    Case("autoscaling", ("autoscaler-frozen",), ("scale_out",)),
    Case("autoscaling", ("autoscaler-slow=14s",), ("scale_out",)),
    Case("autoscaling", ("autoscaler-overshoots=3x",), ("overshoot",), step={"shape": "steps 4/s 20/s 20/s 4/s"}),
    Case("autoscaling", ("autoscaler-oscillates",), ("flapping",)),
    Case("autoscaling", ("metrics-lost",), ("scale_out", "model"), quick=True, step=BRIEF),
    Case("autoscaling", ("never-zero",), ("to_zero",)),
    Case("autoscaling", ("cold-503",), ("wake",)),
    Case("canary-rollback", ("split-wrong",), ("candidate-1.split.50",)),
    Case("canary-rollback", ("split-ignored",), ("candidate-1.split.20",), step={"percents": [20]}, quick=True),
    Case("canary-rollback", ("split-leak",), ("candidate-2.only.50",), step=TWO),
    Case("canary-rollback", ("old-revision-revived",), ("candidate-2.old_pods.50",), step=TWO),
    Case("canary-rollback", ("dropped-at-rollover",), ("candidate-1.promotion.lossless",)),
    Case("canary-rollback", (), ("candidate-1.parity.50",), step=candidate("wrong-outputs"), quick=True),
    Case("canary-rollback", (), ("candidate-1.errors.50",), step={**candidate("errors=2%"), "guards": {}}),
    Case(
        "canary-rollback",
        (),
        ("candidate-1.latency.50",),
        step={**candidate("latency=3x"), "guards": {"errors": 0.005}},
    ),
    Case("canary-rollback", (), error="no revision after m-predictor-00001 was ready", step=candidate("hanging-load")),
    Case("probes", ("crash-after=50",), ("busy.liveness",)),
    Case("probes", ("readiness-flaps",), ("busy.readiness",)),
    Case("probes", ("ready-before-load", "slow-load=1s"), ("start", "roll_over.lossless")),
    Case("probes", ("killed-not-drained",), ("drain.lossless",), quick=True),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What each case and each round on a sound cluster gave, by name; run once, a few at a time."""
    place = tmp_path_factory.mktemp("faults")
    wanted = {}
    for number in range(ROUNDS):  # the longest first, so that nothing long is left at the end
        for name, (suite, options) in reversed(SOUND.items()):
            wanted[f"{name} {number}"] = scenario(suite, **options)
    wanted |= {f"{name} 0": scenario(suite, **options) for name, (suite, options) in ONCE.items()}
    wanted |= {case.name: scenario(case.suite, list(case.faults), **case.step) for case in chosen()}

    async def everything() -> dict[str, Found]:
        turn = asyncio.Semaphore(TOGETHER)

        async def one(number: int, name: str) -> tuple[str, Found]:
            async with turn:
                return name, await carry_out(wanted[name], place / str(number))

        return dict(await asyncio.gather(*(one(number, name) for number, name in enumerate(wanted))))

    return asyncio.run(everything())


def chosen() -> list[Case]:
    return [case for case in CASES if ALL or case.quick]


@pytest.mark.parametrize("case", chosen(), ids=lambda case: case.name)
def test_a_fault_is_noticed_by_the_suite_that_is_for_it(
    case: Case, found: dict[str, Found], record_property: Callable[[str, object], None]
) -> None:
    result = found[case.name]
    assert not result.passed, "the run passed"
    missed = set(case.notices) - result.failed
    assert not missed, f"not noticed by {missed}; what was: {result.words()}"
    if case.error:
        assert any(case.error in text for text in result.errors), result.words()
    record_property("noticed", f"{case.title}|{case.suite}|{', '.join(sorted(result.failed)) or case.error}")


@pytest.mark.parametrize("name", [*SOUND, *ONCE])
def test_a_sound_cluster_fails_nothing(name: str, found: dict[str, Found]) -> None:
    for number in range(ROUNDS if name in SOUND else 1):
        result = found[f"{name} {number}"]
        assert result.passed, f"round {number}: {result.words()}"
        assert any(check.suite == {**SOUND, **ONCE}[name][0] for check in result.run.checks)


def test_every_fault_has_a_suite_that_is_for_it() -> None:
    used = {name.partition("=")[0] for case in CASES for name in case.faults}
    used |= {
        name.partition("=")[0]
        for case in CASES
        for item in case.step.get("candidates", [])
        if (name := item["predictor"].get("annotations", {}).get(ANNOTATION, ""))
    }
    assert used == set(KINDS)
