"""The order of the blocks, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from harness.base.errors import MeasurementError
from harness.base.units import format_duration
from harness.results.comparison import Ratio, Verdict, compared, corrected, infinite, interleaved, paired_ratio
from harness.results.records import CheckResult, Comparison, Level, Record, Series
from harness.results.stats import fails_more_often
from scenarios.suites.compare.blocks import Blocks
from scenarios.suites.compare.contenders import HIGHER_IS_BETTER, UNITS, Comparing, Contender, Present, Stage, Taken
from scenarios.suites.compare.differences import conformance_beside, parity_beside
from scenarios.suites.shared.judging import Judge
from scenarios.suites.shared.stage.beforehand import encode

SUITE = "compare"
ERROR_ALPHA = 0.001


class Suite:
    def __init__(
        self,
        contenders: Sequence[Contender],
        wanted: Comparing,
        step: str,
        progress: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.contenders = contenders
        self.wanted = wanted
        self.step = step
        self.progress = progress
        self.judges = [Judge(SUITE, item.described, step) for item in contenders]
        self.judge = self.judges[0]
        self.blocks = Blocks(wanted, step, contenders[0].plan.processes, note)
        self.stage = Stage()
        self.taken = [Taken() for _ in contenders]
        self.columns: dict[str, list[float]] = {}

    async def run(self) -> AsyncIterator[Record]:
        try:
            async for record in self._measure():
                yield record
        finally:
            await self.stage.leave()
        yield Series("compare", self.judge.endpoint.service, self.step, self.columns)
        for judged in self.judged(self.taken):
            yield judged

    async def _measure(self) -> AsyncIterator[Record]:
        for which, contender in enumerate(self.contenders):
            if contender.turn is None:
                async for record in self._meet(which, await self.stage.enter(contender)):
                    yield record
        order = interleaved(len(self.contenders), self.wanted.rounds, self.wanted.seed)
        for number, which in enumerate(order):
            contender, taken = self.contenders[which], self.taken[which]
            self.progress(f"{self.step}: block {number + 1} of {len(order)}, {contender.name}" + self._so_far())
            present = await self.stage.enter(contender)
            if not taken.encoded:
                async for record in self._meet(which, present):
                    yield record
            round_ = number // len(self.contenders)
            block = await self.blocks.take(number + 1, round_, contender, present, taken)
            for batch in block.batches:
                yield batch
            for name, value in block.values.items():
                taken.add(name, value)
            taken.requests += block.requests
            taken.failed += block.failed
            taken.wrong += block.wrong
            taken.inspected += block.inspected
            self._row(number, which, block.values)

    async def _meet(self, which: int, present: Present) -> AsyncIterator[Record]:
        """What is asked of a variant, and what it answers when it is asked alone; its conformance, where that is
        wanted. Variants of one service are told apart by their own names."""
        contender, taken = self.contenders[which], self.taken[which]
        taken.encoded = await encode(present.endpoint, contender.plan)
        if problem := next((item.problem for item in taken.encoded if item.problem), ""):
            raise MeasurementError(f"{contender.name}: a request was not answered before the load: {problem}")
        if not self.wanted.conformance:
            return
        from scenarios.suites.conformance.suite import conformance

        async for result in conformance(
            replace(present.endpoint, service=contender.name), list(self.wanted.conformance), step=self.step
        ):
            taken.conformance[result.id] = str(result.outcome)
            yield result

    def _so_far(self) -> str:
        shown = [
            f"{contender.name} {format_duration(float(np.median(taken.values['p50'])))}"
            for contender, taken in zip(self.contenders, self.taken, strict=True)
            if taken.values.get("p50")
        ]
        return f"; p50 {', '.join(shown)}" if shown else ""

    def _row(self, block: int, which: int, values: Mapping[str, float]) -> None:
        row = {"block": float(block), "variant": float(which), **values}
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)

    # Judging

    def judged(self, taken: list[Taken]) -> list[Record]:
        """Raises MeasurementError where a metric was asked for and not measured."""
        wanted = self.wanted
        names = list(wanted.metrics)
        if missing := [name for name in names if not all(item.values.get(name) for item in taken)]:
            raise MeasurementError(f"{self.step}: {', '.join(missing)} was asked for, and nothing gave it")
        for contender, item in zip(self.contenders, taken, strict=True):
            if none := [name for name in names if min(item.values[name]) <= 0]:
                raise MeasurementError(f"{self.step}: {', '.join(none)} of {contender.name} was 0 in a block")
        names += [
            name for name in ("cpu", "memory") if name not in names and all(item.values.get(name) for item in taken)
        ]
        pairs = len(names) * (len(self.contenders) - 1)
        records: list[Record] = []
        for judge, contender, found in zip(self.judges[1:], self.contenders[1:], taken[1:], strict=True):
            for number, name in enumerate(names):
                a, b = taken[0].values[name], found.values[name]
                confidence = corrected(wanted.confidence, pairs)
                ratio = paired_ratio(
                    a, b, margin=wanted.margin, confidence=confidence, seed=wanted.seed + number,
                    higher_is_better=name in HIGHER_IS_BETTER,
                )  # fmt: skip
                records.append(self._comparison(contender, name, a, b, ratio, confidence))
                records.append(self._verdict(judge, contender, name, ratio, (infinite(a), infinite(b))))
            records += self._differences(judge, contender, found)
        records += [self._answers(taken), *self._errors(taken)]
        return records

    def _differences(self, judge: Judge, contender: Contender, found: Taken) -> list[Record]:
        wanted, base = self.wanted, self.taken[0]

        def level(name: str) -> Level:
            return Level.MUST if name in wanted.fail_on else Level.SHOULD

        records: list[Record] = list(
            parity_beside(judge, self.contenders[0], base, contender, found, level("parity"), self.step)
        )
        if wanted.conformance:
            records.append(
                conformance_beside(
                    judge, self.contenders[0], base.conformance, contender, found.conformance, level("conformance")
                )
            )
        return records

    def _comparison(
        self, contender: Contender, metric: str, a: list[float], b: list[float], ratio: Ratio, confidence: float
    ) -> Comparison:
        return compared(
            ratio, a, b, confidence=confidence, margin=self.wanted.margin, paired=True,
            service=self.judge.endpoint.service, step=self.step, baseline=self.contenders[0].name,
            variant=contender.name, metric=metric, unit=UNITS.get(metric, "s"),
        )  # fmt: skip

    def _verdict(
        self, judge: Judge, contender: Contender, metric: str, ratio: Ratio, failed: tuple[int, int]
    ) -> CheckResult:
        """``failed`` are the blocks, of the baseline and of the variant, in which the metric is infinite."""
        verdicts = [name for name in self.wanted.fail_on if name in list(Verdict)]
        name, observed = f"{contender.name}.{metric}", describe(ratio)
        if any(failed):
            observed = (
                f"infinite, by requests that failed, in {failed[1]} of {ratio.blocks} blocks against {failed[0]} of"
                f" {ratio.blocks} of {self.contenders[0].name}: {ratio.verdict}"
            )
        if not verdicts:
            return judge.skipped(name, f"{metric} of {contender.name} beside {self.contenders[0].name}.", observed)
        requirement = f"{metric} of {contender.name} is not {' or '.join(verdicts)}."
        worst = math.inf if any(failed) else 1 / ratio.low if metric in HIGHER_IS_BETTER else ratio.high
        if ratio.verdict is Verdict.UNDECIDED and "undecided" not in verdicts and worst > 1 + self.wanted.margin:
            # Failing to prove a slowdown does not prove that there is none.
            return judge.unjudged(name, requirement, observed)
        passed = str(ratio.verdict) not in verdicts
        expected = f"not {' or '.join(verdicts)}, within {self.wanted.margin:.3g}"
        return judge.check(name, requirement, passed, expected=expected, observed=observed)

    def _answers(self, taken: list[Taken]) -> CheckResult:
        requirement = "The answers of all variants are right."
        if not all(item.inspected for item in taken):
            return self.judge.unjudged("answers", requirement, "no answer of some variant could be inspected")
        wrong = {
            contender.name: item.wrong for contender, item in zip(self.contenders, taken, strict=True) if item.wrong
        }
        seen = "; ".join(f"{name}: {texts[0]}" for name, texts in wrong.items())
        count = sum(item.inspected for item in taken)
        return self.judge.check(
            "answers",
            requirement,
            not wrong,
            expected=f"{count} right answers",
            observed=seen or f"{count} inspected, all right",
        )

    def _errors(self, taken: list[Taken]) -> list[CheckResult]:
        """By Fisher's exact test: a variant that answers faster because it fails more often is no faster."""
        checks = []
        base = taken[0]
        for judge, contender, item in zip(self.judges[1:], self.contenders[1:], taken[1:], strict=True):
            p_value = fails_more_often(item.failed, item.requests, base.failed, base.requests)
            checks.append(
                judge.check(
                    f"{contender.name}.errors",
                    f"{contender.name} does not fail more often than {self.contenders[0].name}.",
                    p_value >= ERROR_ALPHA,
                    expected=f"no more, at p = {ERROR_ALPHA:g}",
                    observed=f"{item.failed} of {item.requests} against {base.failed} of {base.requests},"
                    f" p = {p_value:.2g}",
                )
            )
        return checks


def describe(ratio: Ratio) -> str:
    """``1.08 times (1.05 to 1.11): slower``, and what would decide it."""
    text = f"{ratio.ratio:.3f} times ({ratio.low:.3f} to {ratio.high:.3f}, {ratio.blocks} blocks): {ratio.verdict}"
    return f"{text}; about {ratio.needed} blocks would decide it" if ratio.needed else text


async def compare(
    contenders: Sequence[Contender],
    wanted: Comparing,
    step: str,
    progress: Callable[[str], None],
    note: Callable[[str], None],
) -> AsyncIterator[Record]:
    """The first is the baseline. Raises MeasurementError where a block could not be measured."""
    async for record in Suite(contenders, wanted, step, progress, note).run():
        yield record
