"""Carries out a probes step."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.results.records import Record
from scenarios.suites.probes.model import ProbesStep
from scenarios.suites.probes.suite import Probes, probes
from scenarios.suites.shared.suite import Task


def run(step: ProbesStep, task: Task) -> AsyncIterator[Record]:
    told = Probes(step.rate, step.busy, step.duration, step.protocol, step.timeout, step.ready_within, task.seed)
    return probes(task.target.on_cluster(step.suite), told, task.name, task.observer.status)
