"""Conformance to the Open Inference Protocol (v2): one function a requirement, grouped as in the specification."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.conformance.model import ConformanceStep
from scenarios.suites.shared.suite import Suite, Task


def _run(step: ConformanceStep, task: Task) -> AsyncIterator[Record]:
    from scenarios.suites.conformance.run import run  # late: a scenario is read without it

    return run(step, task)


SUITE = Suite("conformance", "Conformance", ConformanceStep, _run)
