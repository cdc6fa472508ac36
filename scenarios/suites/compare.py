"""Compare: two or more variants under the same load, block by block in turns, and whether one is faster.

Variants are services of the scenario, or one service asked by other protocols. Each block is a stage of load on one of
them; the order alternates, so that whatever drifts hits all of them alike. What a block gives is one value a metric.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness.comparison import Ratio, Verdict, corrected, interleaved, paired_ratio
from harness.deployed import Deployed
from harness.endpoint import Endpoint
from harness.errors import MeasurementError
from harness.load.runner import Generators, LocalGenerators, Progress, WorkerError
from harness.records import CheckResult, Comparison, LoadResult, Record, SampleBatch, Series
from harness.scenario_model import Counter
from harness.stats import percentile
from harness.units import format_duration
from scenarios.suites.canary.counters import read
from scenarios.suites.judging import Judge
from scenarios.suites.load.plan import Plan
from scenarios.suites.load.requests import Encoded, build_job, encode, wrong_answers
from scenarios.suites.load.results import batch_of, summarize_stage

SUITE = "compare"
ATTEMPTS = 3
"""A block that this machine has disturbed is taken again so often."""
ERROR_ALPHA = 0.001
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_UNITS = {"throughput": "/s", "cpu": "s", "memory": "bytes"}


@dataclass(frozen=True)
class Contender:
    """One variant. ``deployed`` is None for a server without a cluster."""

    name: str
    endpoint: Endpoint
    plan: Plan
    deployed: Deployed | None = None


@dataclass(frozen=True)
class Comparing:
    rounds: int
    metrics: tuple[str, ...]
    margin: float
    confidence: float
    fail_on: tuple[str, ...]
    seed: int
    cpu: Counter | None = None
    memory: Counter | None = None


@dataclass
class _Taken:
    """What is known of one variant, block by block."""

    encoded: list[Encoded]
    values: dict[str, list[float]] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    inspected: int = 0

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


class _Suite:
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
        self.note = note
        self.judge = Judge(SUITE, contenders[0].endpoint, step)
        self.generators: Generators = LocalGenerators(contenders[0].plan.processes)
        self.columns: dict[str, list[float]] = {}

    async def run(self) -> AsyncIterator[Record]:
        taken = []
        for contender in self.contenders:
            encoded = await encode(contender.endpoint, contender.plan)
            if problem := next((item.problem for item in encoded if item.problem), ""):
                raise MeasurementError(f"{contender.name}: a request was not answered before the load: {problem}")
            taken.append(_Taken(encoded))
        order = interleaved(len(self.contenders), self.wanted.rounds, self.wanted.seed)
        for block, which in enumerate(order):
            self.progress(
                f"{self.step}: block {block + 1} of {len(order)}, {self.contenders[which].name}" + self._so_far(taken)
            )
            yield await self._block(block, which, taken[which])
        yield Series("compare", self.judge.endpoint.service, self.step, self.columns)
        for record in self._judged(taken):
            yield record

    def _so_far(self, taken: list[_Taken]) -> str:
        medians = [np.median(item.values["p50"]) for item in taken if item.values.get("p50")]
        return "; p50 " + ", ".join(format_duration(float(value)) for value in medians) if medians else ""

    async def _block(self, block: int, which: int, taken: _Taken) -> SampleBatch:
        contender = self.contenders[which]
        for attempt in range(1, ATTEMPTS + 1):
            # Every variant of a round has the same arrivals; every round has its own.
            plan = replace(
                contender.plan,
                name=f"{self.step}-{block + 1:03d}-{contender.name}",
                seed=contender.plan.seed + (block // len(self.contenders)) * ATTEMPTS + attempt - 1,
            )
            before = await self._counted(contender)
            result, batch, wrong = await self._stage(contender, plan, taken.encoded)
            after = await self._counted(contender)
            if result.valid:
                break
            self.note(f"block {block + 1} of {contender.name} is taken again: {result.invalid_reason}")
        else:
            raise MeasurementError(f"{self.step}: block {block + 1} of {contender.name}: {result.invalid_reason}")
        fine = np.sort(batch.latency_s[batch.error == 0])
        if not fine.size:
            raise MeasurementError(f"{self.step}: no request of block {block + 1} of {contender.name} succeeded")
        values = {name: percentile(fine, q) for name, q in _QUANTILES.items()}
        values |= {"mean": float(fine.mean()), "throughput": result.achieved_rate_per_s}
        if "cpu" in after and "cpu" in before:
            values["cpu"] = max(after["cpu"] - before["cpu"], 0.0) / fine.size
        if "memory" in after:
            values["memory"] = after["memory"]
        for name, value in values.items():
            taken.add(name, value)
        taken.requests += result.requests
        taken.failed += result.errors
        taken.wrong += list(wrong.values())[:3]
        taken.inspected += result.checked_answers
        self._row(block, which, values)
        return batch

    def _row(self, block: int, which: int, values: Mapping[str, float]) -> None:
        row = {"block": float(block), "variant": float(which), **values}
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)

    async def _stage(
        self, contender: Contender, plan: Plan, encoded: list[Encoded]
    ) -> tuple[LoadResult, SampleBatch, dict[int, str]]:
        job = build_job(contender.endpoint, plan, encoded)
        due = plan.due_ns() if plan.open_loop else None

        def show(progress: Progress) -> None:
            pass  # a block is over in seconds; the line above says which it is

        try:
            stage = await self.generators.run(job, [item.body for item in encoded], due, show)
        except WorkerError as error:
            raise MeasurementError(f"{plan.name}: {error}") from error
        batch = batch_of(contender.endpoint, plan, stage.columns)
        if not len(batch):
            raise MeasurementError(f"{plan.name}: the block ended before its warm-up did")
        result = summarize_stage(contender.endpoint, plan, stage.columns, batch, stage, "", 0.0, self.generators.count)
        return result, batch, wrong_answers(plan.protocol, stage, encoded, job.cycle)

    async def _counted(self, contender: Contender) -> dict[str, float]:
        """CPU seconds and memory of the pods of a variant, where the scenario says how they tell."""
        found: dict[str, float] = {}
        for name, counter in (("cpu", self.wanted.cpu), ("memory", self.wanted.memory)):
            if counter is not None and contender.deployed is not None:
                reading = await read(contender.deployed, counter)
                found[name] = sum(value for _, value in reading.pods.values())
        return found

    # Judging

    def _judged(self, taken: list[_Taken]) -> list[Record]:
        wanted = self.wanted
        names = [name for name in wanted.metrics if all(len(item.values.get(name, [])) for item in taken)]
        names += [name for name in ("cpu", "memory") if all(len(item.values.get(name, [])) for item in taken)]
        pairs = len(names) * (len(self.contenders) - 1)
        records: list[Record] = []
        for contender, found in zip(self.contenders[1:], taken[1:], strict=True):
            for number, name in enumerate(names):
                a, b = taken[0].values[name], found.values[name]
                confidence = corrected(wanted.confidence, pairs)
                ratio = paired_ratio(
                    a, b, margin=wanted.margin, confidence=confidence, seed=wanted.seed + number,
                    higher_is_better=name == "throughput",
                )  # fmt: skip
                records.append(self._comparison(contender, name, a, b, ratio, confidence))
                records.append(self._verdict(contender, name, ratio))
        records += [self._answers(taken), *self._errors(taken)]
        return records

    def _comparison(
        self, contender: Contender, metric: str, a: list[float], b: list[float], ratio: Ratio, confidence: float
    ) -> Comparison:
        return Comparison(
            service=self.judge.endpoint.service,
            step=self.step,
            baseline=self.contenders[0].name,
            variant=contender.name,
            metric=metric,
            unit=_UNITS.get(metric, "s"),
            baseline_value=float(np.median(a)),
            variant_value=float(np.median(b)),
            ratio=ratio.ratio,
            low=ratio.low,
            high=ratio.high,
            confidence=confidence,
            margin=self.wanted.margin,
            verdict=str(ratio.verdict),
            blocks=ratio.blocks,
            needed=ratio.needed,
            paired=True,
        )

    def _verdict(self, contender: Contender, metric: str, ratio: Ratio) -> CheckResult:
        name, fail_on = f"{contender.name}.{metric}", self.wanted.fail_on
        observed = describe(ratio)
        if not fail_on:
            return self.judge.skipped(name, f"{metric} of {contender.name} beside {self.contenders[0].name}.", observed)
        requirement = f"{metric} of {contender.name} is not {' or '.join(fail_on)}."
        worst = 1 / ratio.low if metric == "throughput" else ratio.high
        if ratio.verdict is Verdict.UNDECIDED and "undecided" not in fail_on and worst > 1 + self.wanted.margin:
            # Not shown to be slower is not shown to be no slower.
            return self.judge.unjudged(name, requirement, observed)
        passed = str(ratio.verdict) not in fail_on
        expected = f"not {' or '.join(fail_on)}, within {self.wanted.margin:.3g}"
        return self.judge.check(name, requirement, passed, expected=expected, observed=observed)

    def _answers(self, taken: list[_Taken]) -> CheckResult:
        requirement = "The answers of all variants are right."
        if not all(item.inspected for item in taken):
            return self.judge.unjudged("answers", requirement, "no answer of some variant could be inspected")
        wrong = {
            contender.name: item.wrong for contender, item in zip(self.contenders, taken, strict=True) if item.wrong
        }
        seen = "; ".join(f"{name}: {texts[0]}" for name, texts in wrong.items())
        count = sum(item.inspected for item in taken)
        return self.judge.check("answers", requirement, not wrong, observed=seen or f"{count} inspected, all right")

    def _errors(self, taken: list[_Taken]) -> list[CheckResult]:
        """By Fisher's exact test: a variant that answers faster because it fails more often is no faster."""
        from scipy.stats import fisher_exact

        checks = []
        base = taken[0]
        for contender, item in zip(self.contenders[1:], taken[1:], strict=True):
            table = [[item.failed, item.requests - item.failed], [base.failed, base.requests - base.failed]]
            p_value = float(fisher_exact(table, alternative="greater").pvalue)
            checks.append(
                self.judge.check(
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
    async for record in _Suite(contenders, wanted, step, progress, note).run():
        yield record
