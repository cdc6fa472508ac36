"""Carries out a parity step."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.parity.model import ParityStep
from scenarios.suites.parity.suite import parity
from scenarios.suites.shared.suite import Task


def run(step: ParityStep, task: Task) -> AsyncIterator[Record]:
    return parity(task.target.there, step.chosen(), step=task.name)
