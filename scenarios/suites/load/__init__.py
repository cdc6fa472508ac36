"""Load: one stage at a rate (open loop) or a concurrency (closed loop), judged against objectives."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.load.model import LoadStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: LoadStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.load.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("load", "Load", LoadStep, _run)
