"""Capacity: the highest rate at which a service meets its objectives."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.capacity.model import CapacityStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: CapacityStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.capacity.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("capacity", "Capacity", CapacityStep, _run)
