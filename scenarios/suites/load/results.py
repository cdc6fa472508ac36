"""From the columns of a stage to its result, its validity and its checks. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.columns import let_go, pieces
from harness.endpoint import Endpoint
from harness.load.recording import ERRORS, count_errors
from harness.load.runner import StageResult
from harness.records import CheckResult, Exchange, Level, LoadResult, Outcome, SampleBatch
from harness.slo import Objective
from harness.stats import goodput, percentile_intervals, summarize, wilson
from harness.units import format_duration
from scenarios.suites.load.beforehand import how_inspected
from scenarios.suites.load.errors import errors_seen
from scenarios.suites.load.plan import Plan
from scenarios.suites.load.requests import Encoded

SUITE = "load"
LAG_SHARE, LAG_FLOOR_S = 0.05, 0.0005
"""A reported percentile may owe the generator's lateness a twentieth of itself, or half a millisecond."""
CPU_LIMIT = 0.95
STEADY_WINDOWS, STEADY_TOLERANCE = 3, 0.1
Columns = dict[str, npt.NDArray[Any]]


def is_steady(due_ns: npt.NDArray[np.int64], latency_s: npt.NDArray[np.float64]) -> bool:
    """Whether three seconds in a row look alike: their median latencies are within a tenth of their mean."""
    medians = []
    for second in range(STEADY_WINDOWS):
        inside = (due_ns >= second * 10**9) & (due_ns < (second + 1) * 10**9)
        if not inside.any():
            return False
        medians.append(float(np.median(latency_s[inside])))
    return float(np.ptp(medians)) <= STEADY_TOLERANCE * float(np.mean(medians))


def measured_window(plan: Plan) -> tuple[int, int]:
    """Start and end of what is measured, in nanoseconds from the stage's start."""
    start = int(plan.lead_in_s * 1e9)
    return start, start + int(plan.length_s * 1e9)


def batch_of(endpoint: Endpoint, plan: Plan, columns: Columns) -> SampleBatch:
    """The rows that were due in the measured window."""
    start, end = measured_window(plan)
    due = columns["due_ns"]  # ascending
    # What is due at the very end of a trace belongs to it.
    measured = slice(int(np.searchsorted(due, start)), int(np.searchsorted(due, end, side="right")))
    names = ("due_ns", "dispatched_ns", "sent_ns", "first_byte_ns", "done_ns", "status", "bytes", "error")
    return SampleBatch(
        service=endpoint.service,
        step=plan.name,
        error_classes=ERRORS,
        **{name: columns[name][measured] for name in names},
    )


def summarize_stage(
    endpoint: Endpoint,
    plan: Plan,
    columns: Columns,
    batch: SampleBatch,
    stage: StageResult,
    samples_name: str,
    warmed_s: float | None = 0.0,
    generators: int = 1,
) -> LoadResult:
    """``columns`` hold the warm-up too: throughput counts what was completed within the measured window, and a request
    of the warm-up that ended in it makes up for one that ended after it. ``warmed_s`` was spent before the stage until
    the service was steady; None says that it never was."""
    start, end = measured_window(plan)
    seconds = (end - start) / 1e9
    completed = _completed(columns, start, end)
    failed = batch.error != 0
    errors = int(failed.sum())
    bounds = [objective for objective in plan.objectives if objective.bounds_latency_above]
    latency = batch.latency_s
    goodputs = {item.text: goodput(latency, failed, item.threshold, seconds) for item in bounds}
    latency.sort()
    from_dispatch = batch.from_dispatch_s
    from_dispatch.sort()
    unsteady = "the service did not become steady while it was warmed up" if warmed_s is None else ""
    reason = unsteady or invalid_reason(plan, latency, from_dispatch, stage)
    del from_dispatch  # long samples are large
    return LoadResult(
        service=endpoint.service,
        step=plan.name,
        runtime=endpoint.runtime,
        protocol=plan.protocol,
        offered=plan.describe(),
        offered_rate_per_s=plan.mean_rate_per_s,
        concurrency=plan.concurrency,
        arrivals=plan.arrivals if plan.open_loop else "closed loop",
        duration_s=seconds,
        warmup_s=round(start / 1e9 + (warmed_s or 0.0), 3),
        requests=len(batch),
        errors=errors,
        errors_by_class=count_errors(batch.error),
        achieved_rate_per_s=completed / seconds,
        goodput_per_s=goodputs,
        streaming=_streaming(columns, stage, start, end, seconds),
        latency_s=summarize(latency),
        latency_ci_s=percentile_intervals(latency),
        service_time_s=_summary(batch.service_time_s),
        send_lag_s=_summary(batch.send_lag_s),
        error_rate_ci=wilson(errors, len(batch)),
        generator_cpu=round(stage.cpu, 4),
        generator_stall_s=round(stage.stall_s, 6),
        generators=generators,
        valid=not reason,
        invalid_reason=reason,
        checked_answers=len(stage.answers),
        samples=samples_name,
        seed=plan.seed,
        started_s=stage.start_ns / 1e9 if stage.start_ns else None,
        errors_seen=errors_seen(batch.error, batch.status, batch.done_ns, stage.examples),
        resent=stage.resent,
    )


def _streaming(
    columns: Columns, stage: StageResult, start: int, end: int, seconds: float
) -> dict[str, dict[str, float]]:
    """An event counts as a token: that is what servers send, one an event, but for the first and the last."""
    if "events" not in columns:
        return {}
    measured = (columns["due_ns"] >= start) & (columns["due_ns"] <= end)
    begun = measured & (columns["first_event_ns"] >= 0)
    total = int(columns["events"][measured].sum())
    gaps = stage.gaps["gap_ns"][np.isin(stage.gaps["row"], columns["row"][measured])] / 1e9
    answers = max(int(begun.sum()), 1)
    return {
        "ttft_s": _summary((columns["first_event_ns"][begun] - columns["due_ns"][begun]) / 1e9),
        "gap_s": _summary(gaps),
        "tokens": {"total": float(total), "per_s": total / seconds, "per_answer": total / answers},
    }


def _completed(columns: Columns, start_ns: int, end_ns: int) -> int:
    """Requests that ended within the window, without an error."""
    done, error, count = columns["done_ns"], columns["error"], 0
    for part in pieces(done.size):
        count += int(((done[part] >= start_ns) & (done[part] < end_ns) & (error[part] == 0)).sum())
    let_go(done)
    return count


def _summary(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Sorts ``values`` in place."""
    values.sort()
    return summarize(values) if values.size else {}


def invalid_reason(
    plan: Plan, latency_s: npt.NDArray[np.float64], from_dispatch_s: npt.NDArray[np.float64], stage: StageResult
) -> str:
    """Why the result must not be believed; empty when it may be. Both samples are ascending.

    The generator's lateness is in every latency. It matters where it moves a percentile out of that percentile's own
    confidence interval, and noticeably; the percentile then says as much about this machine as about the server.
    """
    if stage.stopped:
        return "the stage was stopped before its end"
    if plan.concurrency is not None and stage.cpu > CPU_LIMIT:
        return (
            f"generator-bound: it used {stage.cpu:.0%} of a core, so the server may be faster than what was measured;"
            " give it more --processes or fewer clients"
        )
    if from_dispatch_s.size == 0:
        return "generator-bound: no request was sent"
    with_lag, without = summarize(latency_s), summarize(from_dispatch_s)
    for name, (low, _) in percentile_intervals(latency_s).items():
        moved = with_lag[name] - without[name]
        if without[name] < low and moved > max(LAG_SHARE * with_lag[name], LAG_FLOOR_S):
            return (
                f"generator-bound: send lag moved {name} from {format_duration(without[name])}"
                f" to {format_duration(with_lag[name])}; lower the rate or give the generator a core of its own"
            )
    return ""


def judge(
    endpoint: Endpoint,
    plan: Plan,
    result: LoadResult,
    wrong: dict[int, str],
    encoded: Sequence[Encoded],
    cycle: Sequence[int],
    elapsed_s: float,
) -> list[CheckResult]:
    def check(name: str, requirement: str, outcome: Outcome, **fields: Any) -> CheckResult:
        return CheckResult(
            id=f"{SUITE}.{name}",
            suite=SUITE,
            level=Level.MUST,
            outcome=outcome,
            service=endpoint.service,
            runtime=endpoint.runtime,
            requirement=requirement,
            source="scenario",
            duration_s=elapsed_s if name == "valid" else 0.0,
            deviation=endpoint.deviations.get(f"{SUITE}.{name}"),
            step=plan.name,
            **fields,
        )

    checks = [
        check(
            "valid",
            "The generator kept to its schedule, so that the percentiles are the server's.",
            Outcome.PASSED if result.valid else Outcome.ERROR,
            observed=f"send lag p99 {format_duration(result.send_lag_s['p99'])}"
            if result.send_lag_s
            else "nothing sent",
            reason=result.invalid_reason,
        )
    ]
    requirement = f"Inspected answers (one in {plan.check_every}) carry their request's id and the right numbers."
    outcome, fields = _answers(plan, result, wrong, encoded, cycle)
    checks.append(check("answers", requirement, outcome, **fields))
    for objective in plan.objectives:
        outcome, fields = judge_objective(objective, result)
        checks.append(check(f"slo.{objective.metric}", f"SLO: {objective.text}", outcome, **fields))
    return checks


def _answers(
    plan: Plan, result: LoadResult, wrong: dict[int, str], encoded: Sequence[Encoded], cycle: Sequence[int]
) -> tuple[Outcome, dict[str, Any]]:
    if result.checked_answers == 0:
        none = f"no answer of {result.requests} requests could be inspected; errors: {result.errors_by_class or 'none'}"
        return Outcome.FAILED, {"expected": "right answers", "observed": none}
    if problem := next((item.problem for item in encoded if item.problem), ""):
        return Outcome.FAILED, {"expected": "a v2 inference answer", "observed": f"before the load: {problem}"}
    if wrong:
        row, what = next(iter(sorted(wrong.items())))
        text = encoded[cycle[row % len(cycle)]].body[:2000].decode(errors="backslashreplace")
        return Outcome.FAILED, {
            "expected": "all of them right",
            "observed": f"{len(wrong)} of {result.checked_answers} wrong; first: {what}",
            "evidence": (Exchange(f"request {row} of {plan.name}", text, "", what),),
        }
    observed = f"{result.checked_answers} inspected, all right"
    if plan.protocol == "openai":
        observed = f"{result.checked_answers} streams inspected, all whole"
    else:
        observed += how_inspected(encoded)
    return Outcome.PASSED, {"observed": observed}


def judge_objective(objective: Objective, result: LoadResult) -> tuple[Outcome, dict[str, str]]:
    outcome, reason = Outcome.PASSED if objective.met(result) else Outcome.FAILED, ""
    # Lateness only ever adds: a bound from above that was kept with it would have been kept without it.
    if not result.valid and not (outcome is Outcome.PASSED and objective.bounds_latency_above):
        outcome, reason = Outcome.ERROR, f"not judged: {result.invalid_reason}"
    observed = objective.describe(objective.observed(result))
    if interval := result.latency_ci_s.get(objective.metric):
        observed += f" (95 % CI {format_duration(interval[0])} to {format_duration(interval[1])})"
    return outcome, {"expected": objective.text, "observed": observed, "reason": reason}
