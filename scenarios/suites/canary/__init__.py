"""Canary and rollback: a new version gets its part of the traffic and no more, is promoted, and is taken back, all
under load and without a request being lost."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.canary.model import CanaryStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: CanaryStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.canary.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("canary-rollback", "Canary and rollback", CanaryStep, _run)
