"""A trial of a search: one stage, and whether its service met the objectives in it.

A trial says what it saw; chance is what several of them are for. Where the connections that it may open were the limit,
and not the service, it is taken again with more of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from harness.base.errors import MeasurementError
from harness.results.objectives import observed
from harness.results.records import Outcome
from harness.results.slo import with_errors
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.results import LIMITED, StageEnd, kept_up

MOST_CONNECTIONS = 4096


@dataclass(frozen=True)
class Taken:
    end: StageEnd
    met: bool
    told: str
    """What was seen of each objective, and what else decided."""


async def take(stage: Callable[[Plan], Awaitable[StageEnd]], plan: Plan, note: Callable[[str], None]) -> Taken:
    """Raises MeasurementError where the generator, and not the service, decides."""
    while True:
        end = await stage(plan)
        met, told = _met(end)
        if met is not None:
            return Taken(end, met, told)
        reason = end.result.invalid_reason
        if not reason.startswith(LIMITED) or plan.connections >= MOST_CONNECTIONS:
            raise MeasurementError(f"{plan.name}: at {plan.rate_per_s:.4g}/s the trial is not valid: {reason}")
        plan = replace(plan, connections=plan.connections * 4)
        note(f"{plan.rate_per_s:8.1f}/s again with {plan.connections} connections: {reason}")


def _met(end: StageEnd) -> tuple[bool | None, str]:
    """None where the stage says nothing of its service."""
    objectives = with_errors(end.plan.objectives)
    values = {item: observed(item, end.seen) for item in objectives}
    misses = [item for item, value in values.items() if not item.holds(value)]
    told = "; ".join(f"{item.text}: {item.describe(value)}" for item, value in values.items())
    overloaded, waiting, _ = kept_up(end.plan, end.columns)
    if overloaded is Outcome.FAILED:
        told += f"; {waiting}"
    if end.wrong:
        return False, next(iter(end.wrong.values()))
    met = not misses and overloaded is not Outcome.FAILED
    if end.result.valid or end.broken_without_limit(misses):
        return met, told
    # Lateness only ever adds: upper bounds on latency that were kept stay kept. The objective for errors that every
    # stage has was not asked for.
    sure = met and all(item.bounds_latency_above for item in end.plan.objectives)
    return (True, told) if sure else (None, told)
