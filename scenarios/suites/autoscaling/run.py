"""Carries out an autoscaling step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from harness.results.records import Record
from scenarios.suites.autoscaling.model import AutoscalingStep
from scenarios.suites.autoscaling.suite import Course, autoscaling
from scenarios.suites.shared.live import Live
from scenarios.suites.shared.planning import plan_of, watched
from scenarios.suites.shared.suite import Task


def run(step: AutoscalingStep, task: Task) -> AsyncIterator[Record]:
    plan = replace(
        plan_of(step, task),
        warmup_s=0.0,  # how a service wakes up belongs to what is measured
        rate_per_s=step.rate,
        segments=tuple(step.segments()),
        shape=step.shape or "",
    )
    live = Live(task.name, plan.lead_in_s + plan.length_s, task.observer.status)
    course = Course(plan, step.scale_out_within, step.back_within, step.zero_within, step.overshoot)
    deployed = task.target.on_cluster(step.suite)
    return watched(autoscaling(deployed, course, task.samples_name(task.name), live.show), task, live)
