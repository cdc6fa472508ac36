"""Failed requests and wrong answers in the blocks of a comparison: they are infinitely late, and never make a variant
faster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from harness.base.errors import MeasurementError
from harness.load.recording import WRONG_ANSWER
from harness.load.runner import StageResult
from harness.results.records import CheckResult, Comparison, Outcome, plain
from harness.target.endpoint import Endpoint
from reports import plots
from reports.comparisons import cells
from scenarios.suites.compare import blocks
from scenarios.suites.compare.blocks import Block, Blocks
from scenarios.suites.compare.contenders import Comparing, Contender, Present, Taken
from scenarios.suites.compare.suite import Suite
from scenarios.suites.shared.stage import Plan, StageEnd, results
from tests.records import load_result

THERE = Endpoint("svc", "reference", "http://127.0.0.1:1", "m")
PLAN = Plan("compare", 1.0, rate_per_s=100, arrivals="constant", warmup_s=0.0)
WANTED = Comparing(rounds=12, metrics=("p99",), margin=0.05, confidence=0.95, fail_on=("slower",), seed=3)
BASE, OTHER = Contender("base", THERE, PLAN), Contender("other", THERE, PLAN)
INF = math.inf


class Canned:
    """Answers 100 requests in 10 ms each; those that are ``failed`` fail in a tenth of that."""

    count = 1

    def __init__(self, failed: int) -> None:
        self.failed = failed

    async def run(self, *_: Any) -> StageResult:
        due = np.arange(100, dtype=np.int64) * 10_000_000
        error = (np.arange(100) < self.failed).astype(np.int16)
        done = due + np.where(error, 1_000_000, 10_000_000)
        columns: dict[str, Any] = dict.fromkeys(("due_ns", "dispatched_ns", "sent_ns"), due)
        columns |= {"first_byte_ns": done, "done_ns": done, "row": np.arange(100), "error": error}
        columns |= {"status": np.full(100, 200, dtype=np.int32), "bytes": np.zeros(100, dtype=np.int64)}
        return StageResult(columns, {}, 0.1, False)


async def block_of(monkeypatch: pytest.MonkeyPatch, failed: int, wrong: Mapping[int, str]) -> Block:
    class Job:
        cycle = (0,)

    monkeypatch.setattr(blocks, "build_job", lambda *_: Job())
    monkeypatch.setattr(results, "wrong_answers", lambda *_: dict(wrong))
    found = Blocks(WANTED, "step", 1, print)
    found.generators = Canned(failed)
    return await found.take(1, 0, BASE, Present(THERE, None), Taken())


async def test_a_failed_request_is_infinitely_late(monkeypatch: pytest.MonkeyPatch) -> None:
    block = await block_of(monkeypatch, 3, {50: "other numbers", 51: "other numbers"})
    assert block.values["p95"] == pytest.approx(0.01)
    assert block.values["p99"] == block.values["mean"] == INF
    assert block.failed == 5, "a wrong answer is a failed request"
    assert block.batches[0].error[50] == WRONG_ANSWER
    sound = await block_of(monkeypatch, 0, {})
    assert [sound.values[name] for name in ("p99", "mean")] == pytest.approx([0.01, 0.01])
    with pytest.raises(MeasurementError, match="no request of block 1 of base succeeded"):
        await block_of(monkeypatch, 50, dict.fromkeys(range(50, 100), "other numbers"))


def judged(base: list[float], other: list[float], fail_on: tuple[str, ...]) -> tuple[Comparison, CheckResult]:
    suite = Suite([BASE, OTHER], replace(WANTED, fail_on=fail_on), "step", print, print)
    taken = [Taken(values={"p99": values}, requests=1000, inspected=9) for values in (base, other)]
    records = suite.judged(taken)
    (compared,) = [item for item in records if isinstance(item, Comparison)]
    (check,) = [item for item in records if isinstance(item, CheckResult) and item.id == "compare.other.p99"]
    return compared, check


SOUND = [0.010, 0.011, 0.0105] * 4


@pytest.mark.parametrize(
    ("base", "other", "verdict", "outcome"),
    [
        (SOUND, [INF] * 12, "slower", Outcome.FAILED),
        (SOUND, [INF] * 8 + [0.001] * 4, "slower", Outcome.FAILED),
        (SOUND, [INF] + [0.001] * 11, "undecided", Outcome.ERROR),
        ([INF] + [0.01] * 11, [INF] * 2 + [0.001] * 10, "undecided", Outcome.ERROR),
        ([INF] * 12, [INF] + [0.001] * 11, "undecided", Outcome.ERROR),
        ([INF] * 12, [INF] * 12, "undecided", Outcome.ERROR),
        ([INF] * 12, SOUND, "faster", Outcome.PASSED),
    ],
)
def test_blocks_without_a_percentile(base: list[float], other: list[float], verdict: str, outcome: Outcome) -> None:
    compared, check = judged(base, other, ("slower",))
    assert (compared.verdict, check.outcome) == (verdict, outcome)
    assert math.isnan(compared.ratio)
    told = check.observed or check.reason
    counts = f"in {sum(map(math.isinf, other))} of 12 blocks against {sum(map(math.isinf, base))} of 12 of base"
    assert counts in told
    assert judged(base, other, ())[1].outcome is Outcome.SKIPPED


def test_reports_survive_them() -> None:
    rows = [judged(SOUND, other, ())[0] for other in ([INF] * 12, SOUND)]
    assert cells(rows[0]) == ["p99", "10.5 ms", "failed", "–", "slower"]
    assert plain(rows[0])["variant_value"] == "inf"
    figure = plots.ratios(rows)
    assert "no ratio: slower" in [text.get_text() for text in figure.axes[0].texts]
    assert all(math.isfinite(end) for end in figure.axes[0].get_xlim())
    assert plots.ratios(rows[:1]).axes


def test_a_block_counts_what_its_stage_counts() -> None:
    block, nothing = Block({}, []), cast(Any, None)
    block.add(StageEnd(PLAN, load_result(errors=7), nothing, {}, nothing, {1: "other numbers"}))
    assert (block.requests, block.failed, block.wrong) == (1000, 7, ["other numbers"])
