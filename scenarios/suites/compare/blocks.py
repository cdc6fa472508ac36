"""One block: a stage of load on one variant, or a search for the highest rate that it bears, and a value a metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from harness.base.errors import MeasurementError
from harness.load.runner import Generators, LocalGenerators, Progress, WorkerError
from harness.results.comparison import QUANTILES
from harness.results.records import SampleBatch
from harness.results.stats import percentile
from scenarios.suites.compare.contenders import Comparing, Contender, Present, Taken
from scenarios.suites.compare.usage import Meter
from scenarios.suites.shared.counters import read
from scenarios.suites.shared.search import Search, Trial, bracket, next_rate
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.requests import build_job
from scenarios.suites.shared.stage.results import StageEnd, end_of_stage
from scenarios.suites.shared.stage.trial import take

ATTEMPTS = 3
"""A block that this machine has disturbed is taken again so often."""
JITTER = 0.1
MOST_PER_S = 1e6


@dataclass
class Block:
    """``values`` by metric. ``batches`` are its samples."""

    values: dict[str, float]
    batches: list[SampleBatch]
    requests: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    inspected: int = 0

    def add(self, end: StageEnd) -> None:
        self.requests += end.result.requests
        self.failed += end.result.errors
        self.wrong += list(end.wrong.values())[:3]
        self.inspected += end.result.checked_answers


class Blocks:
    def __init__(self, wanted: Comparing, step: str, processes: int, note: Callable[[str], None]) -> None:
        self.wanted = wanted
        self.step = step
        self.note = note
        self.generators: Generators = LocalGenerators(processes)
        counters = {"cpu": wanted.cpu, "memory": wanted.memory}
        self._from_kubelets = {name for name, counter in counters.items() if counter is None and name in wanted.metrics}
        self._meters = defaultdict[str, Meter](lambda: Meter(cpu="cpu" in self._from_kubelets))

    async def take(self, number: int, round_: int, contender: Contender, present: Present, taken: Taken) -> Block:
        """Raises MeasurementError where it could not be measured."""
        before = await self._counted(present)
        kubelets, meter = self._from_kubelets, self._meters[contender.name]
        deployed = present.deployed if kubelets else None
        if deployed is not None:
            await meter.begin(deployed.kserve, deployed.name)
        if "capacity" in self.wanted.metrics:
            block = await self._search(number, round_, contender, present, taken)
        else:
            block = await self._load(number, round_, contender, present, taken)
        after = await self._counted(present)
        values, answered = block.values, max(block.requests - block.failed, 1)
        if deployed is not None:
            used = await meter.end(deployed.kserve, deployed.name)
            if "cpu" in kubelets:
                values["cpu"] = used["cpu"] / answered
            if "memory" in kubelets:
                values["memory"] = used["memory"]
        if "cpu" in after:
            values["cpu"] = max(after["cpu"] - before["cpu"], 0.0) / answered
        if "memory" in after:
            values["memory"] = max(before["memory"], after["memory"])
        if present.cold_start_s is not None:
            values["cold_start"] = present.cold_start_s
        if contender.price_per_hour is not None and "cost" in self.wanted.metrics:
            per_s = values["capacity"] if "capacity" in values else values["throughput"]
            values["cost"] = contender.price_per_hour / 3600 / per_s * 1e6
        return block

    async def _load(self, number: int, round_: int, contender: Contender, present: Present, taken: Taken) -> Block:
        for attempt in range(1, ATTEMPTS + 1):
            # Every variant of a round has the same arrivals; every round has its own.
            seed = contender.plan.seed + round_ * ATTEMPTS + attempt - 1
            plan = replace(contender.plan, name=f"{self.step}-{number:03d}-{contender.name}", seed=seed)
            end = await self._stage(present, plan, taken)
            result, batch = end.result, end.batch
            if result.valid:
                break
            self.note(f"block {number} of {contender.name} is taken again: {result.invalid_reason}")
        else:
            raise MeasurementError(f"{self.step}: block {number} of {contender.name}: {result.invalid_reason}")
        if batch.failed.all():
            raise MeasurementError(f"{self.step}: no request of block {number} of {contender.name} succeeded")
        # A request that failed, or was answered wrongly, is infinitely late: no variant is faster for losing its slow
        # requests.
        ordered = np.sort(batch.latency_s)
        values = {name: percentile(ordered, q) for name, q in QUANTILES.items()}
        values |= {"mean": float(ordered.mean()), "throughput": result.achieved_rate_per_s}
        block = Block(values, [batch])
        block.add(end)
        return block

    async def _search(self, number: int, round_: int, contender: Contender, present: Present, taken: Taken) -> Block:
        """The highest rate that meets the objectives. Rounds begin at rates of their own, so that the steps of the
        search are not the same in each; variants of a round begin alike."""
        drawn = float(np.random.default_rng((self.wanted.seed, round_)).uniform(1 - JITTER, 1 + JITTER))
        begin = (contender.plan.rate_per_s or 1.0) * drawn
        search = Search(contender.plan, begin, MOST_PER_S, self.wanted.tolerance, repeats=1)
        trials: list[Trial] = []
        block, connections = Block({}, []), contender.plan.connections
        while (rate := next_rate(trials, search)) is not None and len(trials) < search.budget:
            name = f"{self.step}-{number:03d}-{contender.name}-{len(trials) + 1:02d}"
            seed = contender.plan.seed + round_ * search.budget + len(trials)
            plan = replace(contender.plan, name=name, rate_per_s=rate, seed=seed, connections=connections)
            # A trial says what it saw: chance hits all variants alike, and the blocks' spread tells of it.
            taken_now = await take(lambda wanted: self._stage(present, wanted, taken), plan, self.note)
            connections = taken_now.end.plan.connections
            trials.append(Trial(rate, taken_now.met))
            block.batches.append(taken_now.end.batch)
            block.add(taken_now.end)
        low, _ = bracket(trials, 1)
        if low is None:
            raise MeasurementError(
                f"{self.step}: {contender.name} met its objectives at no rate down to"
                f" {min(trial.rate_per_s for trial in trials):.4g}/s; begin with a lower 'rate'"
            )
        # What failed at rates that are too high says nothing against a variant.
        block.failed = 0
        block.values = {"capacity": low}
        return block

    async def _stage(self, present: Present, plan: Plan, taken: Taken) -> StageEnd:
        encoded = taken.encoded
        job = build_job(present.endpoint, plan, encoded)
        due = plan.due_ns() if plan.open_loop else None

        def show(progress: Progress) -> None:
            pass  # a block is over in seconds; the suite says which it is

        try:
            stage = await self.generators.run(job, [item.body for item in encoded], due, show)
        except WorkerError as error:
            raise MeasurementError(f"{plan.name}: {error}") from error
        return end_of_stage(present.endpoint, plan, stage, encoded, job.cycle, generators=self.generators.count)

    async def _counted(self, present: Present) -> dict[str, float]:
        """By the counters that the scenario names; both are of the moment."""
        found: dict[str, float] = {}
        for name, counter in (("cpu", self.wanted.cpu), ("memory", self.wanted.memory)):
            if counter is not None and present.deployed is not None:
                reading = await read(present.deployed, counter)
                found[name] = sum(value for _, value in reading.pods.values())
        return found
