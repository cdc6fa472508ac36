"""Probes: whether readiness and liveness tell the truth, under load, while draining and while rolling over."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.probes.model import ProbesStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: ProbesStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.probes.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("probes", "Probes", ProbesStep, _run)
