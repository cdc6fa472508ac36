"""Parity: whether a service gives the numbers that the model's framework gives offline."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.parity.model import ParityStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: ParityStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.parity.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("parity", "Parity", ParityStep, _run)
