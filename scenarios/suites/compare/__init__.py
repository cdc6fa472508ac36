"""Compare: whether variants of a service differ in speed, use and answers, and how sure that is."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.compare.model import CompareStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: CompareStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.compare.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("compare", "Comparison", CompareStep, _run)
