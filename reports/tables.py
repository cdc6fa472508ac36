"""The rows that HTML and Markdown both show. Pure functions of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from harness.base.units import format_duration
from harness.results.records import CheckResult, LoadResult, Measurement, Outcome, ParityResult, Series
from harness.results.runstore import Run
from harness.results.stats import PERCENTILES
from harness.results.verdict import Tally, tally

STATES = {
    "passed": ("✓", "passed"),
    "failed": ("✕", "failed: decides the verdict"),
    "error": ("!", "could not be judged"),
    "undecided": ("?", "the sample is too small to decide"),
    "known": ("◐", "known deviation"),
    "advisory": ("○", "SHOULD or MAY not met"),
    "skipped": ("–", "not applicable"),
    "gone": ("↻", "listed as a deviation, and passed"),
    "absent": ("", "not run"),
}
COLUMNS = [*PERCENTILES, "max"]
COLUMN_TITLES = {"p99_9": "p99.9"}


def state_of(check: CheckResult | None) -> str:
    if check is None:
        return "absent"
    if check.gone:
        return "gone"
    if check.known:
        return "known"
    if check.outcome is Outcome.FAILED and not check.fails_run:
        return "advisory"  # an undecided one keeps its word, whatever its level
    return str(check.outcome)


PUBLISHED = "published figures"
COLUMN_OF = {
    "conformance": "conformance",
    "fuzz": "conformance",
    "parity": "parity",
    "load": "load",
    "capacity": "load",
    "compare": "load",
}
"""The column of a service's row that counts the checks of a suite, where reports have a part made for its records."""
CLUSTER = "cluster"
"""The column of all other suites. Each of their steps has a part of its own in reports, the same for all of them."""


def column_of(suite: str) -> str:
    return COLUMN_OF.get(suite, CLUSTER)


def title_of_suite(run: Run, suite: str) -> str:
    """As the suite calls itself; a run of an older version does not say it."""
    return str(run.info.get("suites", {}).get(suite) or suite.replace("-", " ").capitalize())


@dataclass(frozen=True)
class ServiceRow:
    name: str
    runtime: str
    model: str
    ready: str
    conformance: Tally
    parity: Tally
    load: Tally
    cluster: Tally


@dataclass(frozen=True)
class ClusterPart:
    """What one step of a cluster suite found. ``series`` is what there is to plot; None where there is nothing."""

    title: str
    step: str
    service: str
    runtime: str
    checks: list[CheckResult]
    figures: list[tuple[str, str]]
    """Measurements as people read them: a name and a value with its unit."""
    series: Series | None
    load: LoadResult | None
    """The stage of load that an autoscaling step watched."""


def cluster_parts(run: Run) -> list[ClusterPart]:
    """In the order in which they were carried out."""
    parts = []
    for step in dict.fromkeys(check.step for check in run.checks if column_of(check.suite) == CLUSTER):
        checks = [check for check in run.checks if check.step == step and column_of(check.suite) == CLUSTER]
        first = checks[0]
        parts.append(
            ClusterPart(
                title_of_suite(run, first.suite),
                step,
                first.service,
                first.runtime,
                checks,
                _figures(run, step, first.suite),
                next((item for item in run.series if item.step == step), None),
                next((item for item in run.loads if item.step == step), None),
            )
        )
    return parts


def _figures(run: Run, step: str, suite: str) -> list[tuple[str, str]]:
    found: dict[str, list[Measurement]] = {}
    for item in run.measurements:
        if item.step == step and item.name.startswith(suite + "."):
            found.setdefault(item.name.removeprefix(suite + "."), []).append(item)
    return [(name.replace("_", " ").replace(".", ", "), _figure(items)) for name, items in found.items()]


def _figure(items: list[Measurement]) -> str:
    """One value, or the range of several."""
    values, unit = [item.value for item in items], items[0].unit

    def shown(value: float) -> str:
        return (
            format_duration(value)
            if unit == "s"
            else f"{number(value)} {unit}"
            if math.isinf(value)
            else f"{value:,.0f} {unit}"
            if value >= 1000
            else f"{value:.3g} {unit}"
        )

    low, high = min(values), max(values)
    return shown(low) if len(values) == 1 or low == high else f"{shown(low)} to {shown(high)}"


def service_rows(run: Run) -> list[ServiceRow]:
    """In the order of deployment; services that never came up are named as well."""
    services = dict(run.info.get("services", {}))
    for check in run.checks:
        services.setdefault(check.service, {"runtime": check.runtime})
    for error in run.info.get("errors", []):
        if error.get("service"):
            services.setdefault(error["service"], {"runtime": "not brought up"})
    rows = []
    for name, described in services.items():
        mine = [check for check in run.checks if check.service == name]
        ready = described.get("ready_s")
        rows.append(
            ServiceRow(
                name,
                described.get("runtime", ""),
                described.get("model", ""),
                f"{ready:.1f} s" if ready is not None else "–",
                **{
                    name: tally([check for check in mine if column_of(check.suite) == name])
                    for name in {*COLUMN_OF.values(), CLUSTER}
                },
            )
        )
    return rows


def tally_text(counts: Tally) -> str:
    if counts.total == 0:
        return "–"
    parts = [f"{counts.passed} passed"]
    for count, word in ((counts.failed, "failed"), (counts.known, "known"), (counts.advisory, "advisory")):
        if count:
            parts.append(f"{count} {word}")
    return ", ".join(parts)


@dataclass(frozen=True)
class MatrixRow:
    id: str
    title: str
    """The part of the id below its group."""
    requirement: str
    level: str
    source: str
    cells: list[CheckResult | None]

    @property
    def differs(self) -> bool:
        return len({state_of(cell) for cell in self.cells if cell is not None}) > 1

    @property
    def bad(self) -> bool:
        return any(state_of(cell) not in ("passed", "skipped", "absent") for cell in self.cells)


@dataclass(frozen=True)
class MatrixGroup:
    name: str
    rows: list[MatrixRow]
    tallies: list[Tally]


@dataclass(frozen=True)
class Score:
    """Passed of applicable, by level; what was skipped is not applicable."""

    passed: dict[str, int]
    applicable: dict[str, int]

    def text(self, level: str) -> str:
        total = self.applicable.get(level, 0)
        return f"{self.passed.get(level, 0)} of {total}" if total else "–"

    def whole(self, level: str) -> bool:
        return self.passed.get(level, 0) == self.applicable.get(level, 0)


@dataclass(frozen=True)
class ScoreRow:
    service: str
    runtime: str
    scores: dict[str, Score]
    """By profile; only those that something was checked of."""


LEVELS = ("must", "should", "may")


def scorecard(run: Run) -> list[ScoreRow]:
    """A row a service: how much of each conformance profile it has. The profile is the first part of a check's group,
    but for the binary extension, which is a profile of its own."""
    rows = []
    for service in conformance_services(run):
        checks = [
            check
            for check in run.checks
            if check.suite == "conformance" and check.service == service and check.outcome is not Outcome.SKIPPED
        ]
        scores: dict[str, Score] = {}
        for check in checks:
            score = scores.setdefault(profile_of(check), Score({}, {}))
            level = str(check.level)
            score.applicable[level] = score.applicable.get(level, 0) + 1
            score.passed[level] = score.passed.get(level, 0) + (check.outcome is Outcome.PASSED)
        if checks:
            rows.append(ScoreRow(service, checks[0].runtime, scores))
    return rows


def profile_of(check: CheckResult) -> str:
    return "binary" if check.group == "rest.binary" else check.group.partition(".")[0]


def score_profiles(rows: list[ScoreRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def conformance_services(run: Run) -> list[str]:
    return list(dict.fromkeys(check.service for check in run.checks if check.suite == "conformance"))


def matrix(run: Run) -> list[MatrixGroup]:
    """Checks by service; where a service was checked twice, the newest result counts."""
    services = conformance_services(run)
    by_id: dict[str, dict[str, CheckResult]] = {}
    for check in run.checks:
        if column_of(check.suite) == "conformance":
            by_id.setdefault(check.id, {})[check.service] = check
    groups: dict[str, list[MatrixRow]] = {}
    for check_id, found in by_id.items():
        any_one = next(iter(found.values()))
        # An id of two parts, as those of fuzz, has the first of them for its group.
        group = any_one.group if any_one.group != check_id else check_id.partition(".")[0]
        row = MatrixRow(
            check_id,
            check_id.removeprefix(group + "."),
            any_one.requirement,
            str(any_one.level),
            any_one.source,
            [found.get(service) for service in services],
        )
        groups.setdefault(group, []).append(row)
    return [
        MatrixGroup(
            name,
            rows,
            [tally([cell for row in rows if (cell := row.cells[index]) is not None]) for index in range(len(services))],
        )
        for name, rows in groups.items()
    ]


@dataclass(frozen=True)
class DeviationGroup:
    """What one reason explains on one service."""

    service: str
    runtime: str
    reason: str
    issue: str
    checks: list[CheckResult]


def deviation_groups(run: Run) -> list[DeviationGroup]:
    groups: dict[tuple[str, str, str], list[CheckResult]] = {}
    for check in run.checks:
        if check.known and check.deviation is not None:
            groups.setdefault((check.service, check.deviation.reason, check.deviation.issue), []).append(check)
    return [
        DeviationGroup(service, checks[0].runtime, reason, issue, checks)
        for (service, reason, issue), checks in groups.items()
    ]


@dataclass(frozen=True)
class CapacityRow:
    """A capacity search, and its trials in the order of their rates."""

    step: str
    service: str
    runtime: str
    found: str
    check: CheckResult | None
    knee: float | None
    trials: list[LoadResult]


def capacity_steps(run: Run) -> list[str]:
    return [step["name"] for step in run.info.get("steps", []) if step.get("suite") == "capacity"]


def stages(run: Run) -> list[LoadResult]:
    """Load stages that stand for themselves: the trials of a search are not among them."""
    searches = capacity_steps(run)
    return [load for load in run.loads if load.step.rpartition("-")[0] not in searches]


def capacity_rows(run: Run) -> list[CapacityRow]:
    rows = []
    for name in capacity_steps(run):
        trials = [load for load in run.loads if load.step.rpartition("-")[0] == name]
        check = next((item for item in run.checks if item.step == name), None)
        measured = {item.name: item.value for item in run.measurements if item.step == name}
        if not trials:
            continue
        found = f"{measured['capacity']:.4g}/s" if "capacity" in measured else "none found"
        ordered = sorted(trials, key=lambda load: load.offered_rate_per_s or 0)
        first = trials[0]
        rows.append(
            CapacityRow(name, first.service, first.runtime, found, check, measured.get("capacity.knee"), ordered)
        )
    return rows


def load_title(load: LoadResult) -> str:
    generators = f", {load.generators} generators" if load.generators > 1 else ""
    return f"{load.offered}, {load.protocol}{generators}"


def data_links(run: Run, load: LoadResult) -> list[tuple[str, str]]:
    """What there is of a stage to download, beside the report: a name and a place in the run directory."""
    stem = PurePosixPath(load.samples).stem
    named = [
        ("samples (Parquet)", load.samples),
        ("by the second (CSV)", f"timelines/{stem}.csv"),
        ("histogram log", f"timelines/{stem}.hlog"),
    ]
    return [(name, quote(place)) for name, place in named if load.samples and (run.directory / place).exists()]


def stage_label(load: LoadResult) -> str:
    """How legends call a stage."""
    return (
        f"{load.step} ({load.runtime})"
        if load.service in load.step
        else f"{load.step}: {load.service} ({load.runtime})"
    )


def latency_cell(load: LoadResult, name: str) -> tuple[str, str]:
    """The value, and its confidence interval or why there is none."""
    value = load.latency_s[name]
    text = format_duration(value)
    if name in load.latency_ci_s:
        low, high = load.latency_ci_s[name]
        return text, f"{format_duration(low)} … {format_duration(high)}"
    return text, "" if name == "max" or math.isinf(value) else "sample too small for an interval"


def success_cells(load: LoadResult) -> dict[str, str]:
    """Latencies of the requests that succeeded alone, by column; empty where all did, since they are the same."""
    if not load.errors:
        return {}
    return {name: format_duration(value) for name, value in load.success_latency_s.items()}


@dataclass(frozen=True)
class BesideRow:
    """A stage of load with what was published for one like it."""

    step: str
    what: str
    figures: list[tuple[str, str, str]]
    """Name, ours, theirs."""
    source: str


def beside_rows(run: Run) -> list[BesideRow]:
    rows = []
    for load in run.loads:
        theirs = {
            item.name.removeprefix("published."): item.value
            for item in run.measurements
            if item.step == load.step and item.name.startswith("published.")
        }
        if not theirs:
            continue
        figures = [
            (name, format_duration((load.success_latency_s or load.latency_s)[name]), format_duration(value))
            for name, value in theirs.items()
            if name != "success"
        ]
        if "success" in theirs:
            ours = 1 - load.errors / load.requests
            figures.append(("success", f"{ours:.2%}", f"{theirs['success']:.2%}"))
        sources = [event.detail for event in run.events if event.object == load.step and event.what == PUBLISHED]
        rows.append(BesideRow(load.step, load_title(load), figures, sources[0] if sources else ""))
    return rows


def errors_text(load: LoadResult) -> str:
    if not load.errors:
        return "none"
    classes = ", ".join(f"{count} {name}" for name, count in load.errors_by_class.items())
    return f"{load.errors} of {load.requests} ({classes})"


def number(value: float) -> str:
    if value == 0:
        return "0"
    if math.isinf(value) or math.isnan(value):
        return "∞" if value > 0 else str(value)
    return f"{value:.2g}"


@dataclass(frozen=True)
class ParityGroup:
    """One comparison on one service. ``shown`` are the outputs worth a line; equal ones are counted instead."""

    service: str
    runtime: str
    comparison: str
    step: str
    outputs: list[ParityResult]

    @property
    def within(self) -> bool:
        return all(item.within for item in self.outputs)

    @property
    def elements(self) -> int:
        return sum(item.elements for item in self.outputs)

    @property
    def max_ulp(self) -> int | None:
        return max((item.max_ulp for item in self.outputs if item.max_ulp is not None), default=None)

    @property
    def argmax_agreement(self) -> float | None:
        return min((item.argmax_agreement for item in self.outputs if item.argmax_agreement is not None), default=None)

    @property
    def worst(self) -> ParityResult:
        return max(self.outputs, key=lambda item: item.rank)


def parity_cells(group: ParityGroup) -> list[str]:
    """Maximum absolute and relative error, ULP distance, argmax agreement: the worst over the outputs."""
    return [
        number(max(item.max_abs_error for item in group.outputs)),
        number(max(item.max_rel_error for item in group.outputs)),
        "–" if group.max_ulp is None else str(group.max_ulp),
        "–" if group.argmax_agreement is None else f"{group.argmax_agreement:.1%}",
    ]


def parity_groups(run: Run) -> list[ParityGroup]:
    groups: dict[tuple[str, str, str], list[ParityResult]] = {}
    for item in run.parity:
        groups.setdefault((item.step, item.service, item.comparison), []).append(item)
    return [
        ParityGroup(service, outputs[0].runtime, comparison, step, outputs)
        for (step, service, comparison), outputs in groups.items()
    ]
