"""From the columns of a stage to its result, its validity and its checks. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.columns import PIECE_ROWS, elapsed_s, let_go, pieces
from harness.base.errors import MeasurementError
from harness.base.units import format_duration
from harness.load.recording import ERRORS, NOT_SENT, TIMEOUT, count_errors
from harness.load.runner import StageResult
from harness.results.dependence import percentile_intervals, share_interval
from harness.results.objectives import Answer, Seen
from harness.results.objectives import judge as judge_seen
from harness.results.records import CheckResult, Exchange, Level, LoadResult, Outcome, SampleBatch
from harness.results.slo import DEFAULT_ERRORS, Objective, with_errors
from harness.results.stats import goodput, summarize
from harness.results.stats import percentile_intervals as independent_intervals
from harness.target.endpoint import Endpoint
from scenarios.suites.shared.stage.beforehand import how_inspected
from scenarios.suites.shared.stage.errors import errors_seen, mark_wrong, with_wrong
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.requests import Encoded, wrong_answers

SUITE = "load"
LAG_SHARE, LAG_FLOOR_S = 0.05, 0.0005
"""A reported percentile may owe the generator's lateness a twentieth of itself, or half a millisecond."""
CPU_LIMIT = 0.95
LATE, LIMITED = "generator-bound:", "connection-bound:"
"""How the reasons begin for which a stage is not valid, and a second try, or a second look, may help."""
RATE_PIECES = 128
FEWER, CHANCE, SOME = 0.03, 4.0, 50
"""Of an overloaded service so great a share fewer requests end than are due, and so many square roots of it; how long
its first answers take is told by so many."""
OUTCOMES = {Answer.MET: Outcome.PASSED, Answer.NOT_MET: Outcome.FAILED, Answer.UNDECIDED: Outcome.UNDECIDED}
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
    failed = batch.failed
    errors = int(failed.sum())
    bounds = [objective for objective in plan.objectives if objective.bounds_latency_above]
    latency = batch.latency_s
    goodputs = {item.text: goodput(latency, failed, item.threshold, seconds) for item in bounds}
    intervals, error_interval = percentile_intervals(latency), share_interval(failed)
    latency.sort()
    fine = latency[: latency.size - errors]
    dispatched = batch.dispatched_ns >= 0
    unsteady = "the service did not become steady while it was warmed up" if warmed_s is None else ""
    # Failed ones too: a generator that stands still makes requests fail that have a time limit.
    until_due, until_dispatched = elapsed_s(batch.done_ns, batch.due_ns), elapsed_s(batch.done_ns, batch.dispatched_ns)
    reason = unsteady or invalid_reason(plan, until_due[dispatched], until_dispatched, stage)
    del until_due, until_dispatched  # long samples are large
    reason = reason or limited_reason(plan, batch, stage)
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
        success_latency_s=_summary(fine),
        latency_ci_s=intervals,
        service_time_s=_summary(batch.service_time_s),
        send_lag_s=_summary(batch.send_lag_s),
        error_rate_ci=error_interval,
        generator_cpu=round(stage.cpu, 4),
        generator_stall_s=round(stage.stall_s, 6),
        generators=generators,
        valid=not reason,
        invalid_reason=reason,
        checked_answers=len(stage.answers),
        samples=samples_name,
        seed=plan.seed,
        started_s=stage.start_ns / 1e9 if stage.start_ns else None,
        limited=stage.limited,
        errors_seen=errors_seen(batch.error, batch.status, batch.done_ns, stage.examples),
        resent=stage.resent,
    )


def _streaming(
    columns: Columns, stage: StageResult, start: int, end: int, seconds: float
) -> dict[str, dict[str, float]]:
    """An event counts as a token: that is what servers send, one an event, but for the first and the last."""
    if "events" not in columns:
        return {}
    measured = _measured_rows(columns, start, end)
    begun = measured & (columns["first_event_ns"] >= 0)
    total = int(columns["events"][measured].sum())
    answers = max(int(begun.sum()), 1)
    return {
        "ttft_s": _summary(_ttft_s(columns, measured)),
        "gap_s": _summary(_gaps_s(columns, stage, measured)),
        "tokens": {"total": float(total), "per_s": total / seconds, "per_answer": total / answers},
    }


def _measured_rows(columns: Columns, start: int, end: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (columns["due_ns"] >= start) & (columns["due_ns"] <= end)
    return found


def _ttft_s(columns: Columns, measured: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """A row a request; infinite where no token came, and where the request failed."""
    first, due = columns["first_event_ns"][measured], columns["due_ns"][measured]
    lost = (first < 0) | (columns["error"][measured] != 0)
    return np.where(lost, np.inf, (first - due) / 1e9)


def _gaps_s(
    columns: Columns, stage: StageResult, measured: npt.NDArray[np.bool_], failed: bool = False
) -> npt.NDArray[np.float64]:
    """Between the tokens of the answers that were measured, in the order of their requests. With ``failed``, each
    request that failed has one more, which never ended."""
    inside = np.isin(stage.gaps["row"], columns["row"][measured])
    rows, gaps = stage.gaps["row"][inside], stage.gaps["gap_ns"][inside] / 1e9
    if failed:
        lost = columns["row"][measured][columns["error"][measured] != 0]
        rows, gaps = np.concatenate([rows, lost]), np.concatenate([gaps, np.full(lost.size, np.inf)])
    ordered: npt.NDArray[np.float64] = gaps[np.argsort(rows, kind="stable")]
    return ordered


def seen_of(plan: Plan, columns: Columns, batch: SampleBatch, stage: StageResult) -> Seen:
    """What the stage gives its objectives to judge."""
    start, end = measured_window(plan)
    seconds = (end - start) / 1e9
    ttft = gaps = None
    if "events" in columns:
        measured = _measured_rows(columns, start, end)
        ttft, gaps = _ttft_s(columns, measured), _gaps_s(columns, stage, measured, failed=True)
    rates = None
    if not plan.open_loop:
        edges = np.linspace(start, end, RATE_PIECES + 1)
        fine = columns["error"] == 0
        rates = np.histogram(columns["done_ns"][fine], edges)[0] / (seconds / RATE_PIECES)
    return Seen(
        latency_s=batch.latency_s,
        failed=batch.failed,
        length_s=seconds,
        steady=plan.steady,
        rate_per_s=_completed(columns, start, end) / seconds,
        rates_per_s=rates,
        ttft_s=ttft,
        gap_s=gaps,
    )


def _waited_in_vain(batch: SampleBatch) -> npt.NDArray[np.bool_]:
    """Requests that the generator took up and whose time was over before a connection was free. One that was refused
    was not sent either, and that is the server's doing."""
    waited: npt.NDArray[np.bool_] = (batch.sent_ns < 0) & (batch.dispatched_ns >= 0) & (batch.error == TIMEOUT)
    return waited


def without_limit(seen: Seen, batch: SampleBatch) -> Seen:
    """The same requests as if none had waited for a connection: those that never got one are left out, since nobody
    knows what they would have met."""
    known = ~_waited_in_vain(batch)
    times = np.where(batch.failed, np.inf, (batch.done_ns - batch.sent_ns) / 1e9)
    return replace(seen, latency_s=times[known], failed=batch.failed[known], ttft_s=None, gap_s=None)


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
    plan: Plan,
    latency_s: npt.NDArray[np.float64],
    from_dispatch_s: npt.NDArray[np.float64],
    stage: StageResult,
) -> str:
    """Why the result must not be believed; empty when it may be. Both samples are of the requests that the generator
    took up, until they were done or failed.

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
    if not from_dispatch_s.size:
        return "generator-bound: no request was sent"
    if moved := _moved(latency_s, from_dispatch_s):
        return f"{LATE} send lag moved {moved}; lower the rate or give the generator a core of its own"
    return ""


def limited_reason(plan: Plan, batch: SampleBatch, stage: StageResult) -> str:
    """Why waiting for one of the connections that the stage may open makes the result one of the generator; empty where
    it does not. A closed loop has one for each client."""
    if not stage.limited or not plan.open_loop:
        return ""
    never = int(np.count_nonzero(_waited_in_vain(batch)))
    moved = _moved(batch.from_dispatch_s, batch.service_time_s)
    if not never and not moved:
        return ""
    what = f"{never} requests never got one" if never else f"waiting for one moved {moved}"
    return (
        f"{LIMITED} all {plan.connections} connections that the stage may open were in use for {stage.limited}"
        f" requests, and {what}; raise --connections ('connections' in a scenario), or lower the rate: the service may"
        " be overloaded"
    )


def _moved(with_it: npt.NDArray[np.float64], without: npt.NDArray[np.float64]) -> str:
    """Which percentile a delay has moved noticeably, and from where to where; empty for none. Sorts both in place."""
    with_it.sort()
    without.sort()
    if not with_it.size or not without.size:
        return ""
    moved, still = summarize(with_it), summarize(without)
    for name, (low, _) in independent_intervals(with_it).items():
        if still[name] < low and moved[name] - still[name] > max(LAG_SHARE * moved[name], LAG_FLOOR_S):
            return f"{name} from {format_duration(still[name])} to {format_duration(moved[name])}"
    return ""


def kept_up(plan: Plan, columns: Columns) -> tuple[Outcome, str, str]:
    """Whether requests ended as fast as they came in an open loop: outcome, what was seen, and why it is undecided.

    An overloaded service ends fewer requests in the last third of the window than are due in it. By chance a busy queue
    does that too, by some square root of the requests; and so does a service that takes its time, as long as nothing of
    the first third is back. A request that ran into its time limit did not end: the client left. One that was refused
    did, and is counted among the errors.
    """
    start, end = measured_window(plan)
    seconds = (end - start) / 1e9
    due, ended = columns["due_ns"], _ended_ns(columns)
    third = end - (end - start) // 3

    def due_within(first: int, last: int) -> int:
        return int(np.searchsorted(due, last)) - int(np.searchsorted(due, first))

    def ended_within(first: int, last: int) -> int:
        return int(np.searchsorted(ended, last)) - int(np.searchsorted(ended, first))

    asked, got = due_within(start, end), ended_within(start, end)
    lately, back = due_within(third, end), ended_within(third, end)
    short = lately - back
    let_go(due)
    seen = f"{asked / seconds:.1f}/s were due and {got / seconds:.1f}/s ended"
    if short > 0 and lately:
        seen += f"; in the last third {back} of {lately}"
    if short < FEWER * lately or not lately:
        return Outcome.PASSED, seen, ""
    if not ended.size:
        return Outcome.FAILED, seen, ""
    needed = math.ceil((CHANCE * lately / short) ** 2) * seconds / max(lately, 1)
    if short >= CHANCE * math.sqrt(lately) and not _slow(columns, seconds / 3):
        return Outcome.FAILED, seen, ""
    longer = f"a stage of {format_duration(max(needed, 2 * seconds))} would decide it"
    return Outcome.UNDECIDED, seen, f"the service is overloaded, or slow, or it was chance; {longer}"


def _ended_ns(columns: Columns) -> npt.NDArray[np.int64]:
    """When requests ended that did, ascending."""
    lost = (TIMEOUT, NOT_SENT)
    parts = [
        columns["done_ns"][part][~np.isin(columns["error"][part], lost)] for part in pieces(columns["done_ns"].size)
    ]
    found: npt.NDArray[np.int64] = np.sort(np.concatenate(parts))
    return found


def _slow(columns: Columns, seconds: float) -> bool:
    """Whether the first answers already took so long that nothing came back in the beginning."""
    fine = np.flatnonzero(columns["error"][:PIECE_ROWS] == 0)[:SOME]
    took = (columns["done_ns"][fine] - columns["due_ns"][fine]) / 1e9
    return bool(took.size) and float(np.median(took)) > seconds


@dataclass(frozen=True)
class StageEnd:
    """What is judged of a stage: its result, and what only its samples can tell."""

    plan: Plan
    result: LoadResult
    seen: Seen
    columns: Columns
    """Warm-up included."""
    batch: SampleBatch
    wrong: dict[int, str]
    """What is wrong with inspected answers, by row."""

    def broken_without_limit(self, objectives: Sequence[Objective]) -> bool:
        """Whether one of them is broken even without the time that requests waited for a connection."""
        if not self.result.invalid_reason.startswith(LIMITED):
            return False
        alone = without_limit(self.seen, self.batch)
        bounds = [item for item in objectives if item.upper and item.kind in ("latency", "errors")]
        return any(judge_seen(item, alone).answer is Answer.NOT_MET for item in bounds)


def end_of_stage(
    endpoint: Endpoint,
    plan: Plan,
    stage: StageResult,
    encoded: Sequence[Encoded],
    cycle: Sequence[int],
    samples_name: str = "",
    warmed_s: float | None = 0.0,
    generators: int = 1,
) -> StageEnd:
    """What a stage has measured; a wrong answer is an error. Raises MeasurementError where it ended before its warm-up
    did."""
    wrong = wrong_answers(plan.protocol, stage, encoded, cycle)
    columns = stage.columns
    if wrong:
        columns = mark_wrong(columns, wrong)
        stage = with_wrong(stage, columns, wrong)
    batch = batch_of(endpoint, plan, columns)
    if not len(batch):
        raise MeasurementError(f"{plan.name}: the stage ended before its warm-up did; nothing was measured")
    result = summarize_stage(endpoint, plan, columns, batch, stage, samples_name, warmed_s, generators)
    return StageEnd(plan, result, seen_of(plan, columns, batch, stage), columns, batch, wrong)


def judge(
    endpoint: Endpoint, end: StageEnd, encoded: Sequence[Encoded], cycle: Sequence[int], elapsed_s: float
) -> list[CheckResult]:
    plan, result, wrong = end.plan, end.result, end.wrong

    def check(name: str, requirement: str, outcome: Outcome, level: Level = Level.MUST, **fields: Any) -> CheckResult:
        return CheckResult(
            id=f"{SUITE}.{name}",
            suite=SUITE,
            level=level,
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

    lag = f"send lag p99 {format_duration(result.send_lag_s['p99'])}" if result.send_lag_s else "nothing sent"
    if result.taken_again:
        lag += f"; taken again, since a first try was disturbed: {result.taken_again}"
    checks = [
        check(
            "valid",
            "The generator's own delay moved no percentile noticeably.",
            Outcome.PASSED if result.valid else Outcome.ERROR,
            observed=lag,
            reason=result.invalid_reason,
        )
    ]
    requirement = f"Inspected answers (one in {plan.check_every}) carry their request's id and the right numbers."
    outcome, fields = _answers(plan, result, wrong, encoded, cycle)
    checks.append(check("answers", requirement, outcome, **fields))
    if plan.open_loop and result.valid:
        outcome, told, reason = kept_up(plan, end.columns)
        level = Level.MUST if plan.steady and outcome is Outcome.FAILED else Level.SHOULD
        text = {"expected": "as many ended as were due", "observed": told, "reason": reason}
        checks.append(check("kept_up", "Requests end as fast as they come.", outcome, level, **text))
    for objective in with_errors(plan.objectives):
        outcome, fields = judge_objective(objective, end)
        level, words = Level.MUST, f"SLO: {objective.text}"
        if objective is DEFAULT_ERRORS:
            words += " (the default: the stage names none for errors)"
            # Nobody asked for so long a stage, and nothing has failed in it.
            level = Level.SHOULD if outcome is Outcome.UNDECIDED and not result.errors else level
        checks.append(check(f"slo.{objective.metric}", words, outcome, level, **fields))
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


def judge_objective(objective: Objective, end: StageEnd) -> tuple[Outcome, dict[str, str]]:
    """What the stage says of an objective, and the fields of its check."""
    result, judged = end.result, judge_seen(objective, end.seen)
    fields = {"expected": objective.text, "observed": judged.observed, "reason": judged.reason}
    if interval := result.latency_ci_s.get(objective.metric):
        fields["observed"] += f" (95 % CI {format_duration(interval[0])} to {format_duration(interval[1])})"
    # Lateness only ever adds: a bound from above that was kept with it would have been kept without it.
    if result.valid or (judged.answer is Answer.MET and objective.bounds_latency_above):
        return OUTCOMES[judged.answer], fields
    if end.broken_without_limit([objective]):
        # With fewer requests at once than were asked for, it was broken all the same.
        return Outcome.FAILED, {
            **fields,
            "observed": f"{judged.observed}, without waiting for a connection as well",
        }
    return Outcome.ERROR, {**fields, "reason": f"not judged: {result.invalid_reason}"}
