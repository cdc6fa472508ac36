"""Carries out a search for the capacity."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from harness.results.records import Record
from scenarios.suites.capacity.model import CapacityStep
from scenarios.suites.shared.planning import live_view, plan_of, watched
from scenarios.suites.shared.search import Search, capacity
from scenarios.suites.shared.suite import Task


def run(step: CapacityStep, task: Task) -> AsyncIterator[Record]:
    trial = replace(plan_of(step, task.name, task.seed), warmup_s=step.warmup)
    live = live_view(task, trial.lead_in_s + trial.duration_s)
    search = Search(trial, step.start, step.most, step.tolerance, step.repeats)
    target, note = task.target, task.observer.note
    records = capacity(target.there, search, task.samples_name, live.show, note, target.within)
    return watched(records, task, live)
