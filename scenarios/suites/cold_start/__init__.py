"""Cold start: how long a service that is scaled to zero takes to answer, and where the time goes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.cold_start.model import ColdStartStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: ColdStartStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.cold_start.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("cold-start", "Cold start", ColdStartStep, _run)
