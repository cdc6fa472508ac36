"""What is said of variants that answer differently, or that could not be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.load.job import Request
from harness.results.records import CheckResult, Level, Outcome, ParityResult
from harness.target.endpoint import Endpoint
from harness.target.protocol.tensors import InferResult, Tensor
from scenarios.suites.compare.contenders import Contender, Taken
from scenarios.suites.compare.differences import conformance_beside, parity_beside
from scenarios.suites.shared.judging import Judge
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.requests import Encoded, differs

ENDPOINT = Endpoint("svc", "r", "http://h", "m")
BASE, OTHER = (Contender(name, ENDPOINT, Plan("compare", 1.0, rate_per_s=1)) for name in ("base", "other"))
JUDGE = Judge("compare", ENDPOINT, "s")


def output(*values: float, name: str = "y") -> Tensor:
    return Tensor(name, "FP32", (len(values),), np.array(values, dtype=np.float32))


def asked(*outputs: Tensor, of: float = 1.0, repeats: bool = True) -> Encoded:
    alone = InferResult("m", None, None, outputs)
    return Encoded(Request("/", {}, "b"), b"", outputs if repeats else (), inputs=(output(of, name="x"),), alone=alone)


def parity(base: list[Encoded], found: list[Encoded], level: Level) -> tuple[CheckResult, list[ParityResult]]:
    records = parity_beside(JUDGE, BASE, Taken(base), OTHER, Taken(found), level, "s")
    (check,) = [item for item in records if isinstance(item, CheckResult)]
    return check, [item for item in records if isinstance(item, ParityResult)]


def test_the_worst_output_is_the_furthest_beyond_its_tolerance() -> None:
    base = asked(output(0.0, 1.0, name="a"), output(-math.inf, 3.0, name="b"))
    found = asked(output(1e-7, 1.5, name="a"), output(3.0, 3.0, name="b"))
    check, results = parity([base], [found], Level.MUST)
    assert check.outcome is Outcome.FAILED
    assert check.observed.startswith("b[0, 0]: 3.0 beside -inf")
    assert [item.within for item in results] == [False, False]


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ([asked(output(1.0))], [asked(output(1.0), of=2.0)]),
        ([asked(output(1.0))], [asked(output(1.0)), asked(output(1.0))]),
        ([asked(output(1.0), repeats=False)], [asked(output(1.0))]),
        ([], []),
        ([asked(output())], [asked(output())]),
    ],
)
def test_what_could_not_be_compared_is_no_pass(base: list[Encoded], found: list[Encoded]) -> None:
    assert parity(base, found, Level.SHOULD)[0].outcome is Outcome.SKIPPED
    assert parity(base, found, Level.MUST)[0].outcome is Outcome.ERROR


def test_another_output_is_a_difference() -> None:
    check, _ = parity([asked(output(1.0))], [asked(output(1.0), output(1.0, name="z"))], Level.MUST)
    assert check.outcome is Outcome.FAILED


def test_answers_under_load_are_held_against_infinities_too() -> None:
    def came(*outputs: Tensor) -> InferResult:
        return InferResult("m", None, None, outputs)

    expected = [output(3.0, math.inf, -math.inf)]
    assert differs(expected, came(output(3.0, math.inf, -math.inf))) == ""
    assert differs(expected, came(output(3.0, 3.0, -math.inf))) == "y[1]: expected inf, got 3.0"
    assert "expected the outputs ['y']" in differs(expected, came(*expected, output(1.0, name="z")))


@pytest.mark.parametrize("now", ["failed", "error", "undecided", "skipped", "not there"])
def test_a_requirement_that_was_met_and_is_not_now(now: str) -> None:
    base = {"a": "passed", "b": "passed", "c": "failed"}
    found = {"a": "passed", "c": "passed", **({} if now == "not there" else {"b": now})}
    check = conformance_beside(JUDGE, BASE, base, OTHER, found, Level.MUST)
    assert check.outcome is Outcome.FAILED
    assert "(b)" in check.observed
    assert "1 better (c)" in check.observed
    assert conformance_beside(JUDGE, BASE, base, OTHER, base, Level.MUST).outcome is Outcome.PASSED
    assert conformance_beside(JUDGE, BASE, base, OTHER, {}, Level.MUST).outcome is Outcome.ERROR
