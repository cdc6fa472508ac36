"""Carries out a search for the capacity."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from harness.results.records import Record
from scenarios.suites.capacity.model import CapacityStep
from scenarios.suites.shared.live import Live
from scenarios.suites.shared.planning import plan_of, watched
from scenarios.suites.shared.search import Search, capacity
from scenarios.suites.shared.suite import Task


def run(step: CapacityStep, task: Task) -> AsyncIterator[Record]:
    trial = replace(plan_of(step, task), warmup_s=step.warmup)
    live = Live(task.name, trial.lead_in_s + trial.duration_s, task.observer.status)
    search = Search(trial, step.start, step.most, step.tolerance, step.repeats)
    target, note = task.target, task.observer.note
    records = capacity(target.there, search, task.samples_name, live.show, note, target.within)
    return watched(records, task, live)
