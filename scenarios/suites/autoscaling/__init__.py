"""Autoscaling: how the number of pods follows the load."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.autoscaling.model import AutoscalingStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: AutoscalingStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.autoscaling.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("autoscaling", "Autoscaling", AutoscalingStep, _run)
