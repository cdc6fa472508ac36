"""The live view of a run in a terminal; plain lines where the output is not one."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.status import Status

from harness.base.shown import visible
from harness.base.units import format_duration
from harness.results.records import CheckResult, Comparison, LoadResult, Outcome, ParityResult, Record
from harness.results.runstore import Run
from harness.results.verdict import Verdict, describe
from reports.comparisons import ratio_text, title_of, verdict_text
from reports.tables import (
    CLUSTER,
    COLUMN_TITLES,
    column_of,
    errors_text,
    load_title,
    service_rows,
    state_of,
    success_cells,
    tally_text,
)

SHOWN = 12
"""Failures and kinds of errors listed under a step; the report has all of them."""
QUIET_S = 30.0
"""Without a terminal, a status is printed when nothing else was printed for this long."""
LONGEST_REQUEST = 600
"""Characters of a request that are shown."""
MOST_ASKED = (".last_answer", ".rollback.lossless", ".no_traffic")
"""Ends of the ids of the checks shown for a step with more than ``SHOWN`` passed checks."""


def escape(text: str) -> str:
    """As text and nothing else: what a server said neither moves the cursor nor sets a colour."""
    text = visible(text, lines=True)
    plain = text.rstrip("\\")
    # A tag may follow, and backslashes right before one are markup.
    return escape_markup(plain) + "\\\\" * (len(text) - len(plain))


class Terminal:
    """``quiet`` shows nothing but errors. A context manager: the status line is taken away at the end."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._status: Status | None = None
        self._states: Counter[str] = Counter()
        self._skips: Counter[str] = Counter()
        self._failures: list[CheckResult] = []
        self._lines: list[str] = []
        self._loads: list[LoadResult] = []
        self._cluster: list[CheckResult] = []
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Terminal:
        if not self.quiet and self.console.is_terminal:
            self._status = self.console.status("starting", spinner="dots")
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status:
            self._status.stop()
            self._status = None

    # harness.results.observer.Observer

    @property
    def live(self) -> bool:
        return self._status is not None

    def phase(self, text: str) -> None:
        if self._status:
            self._status.update(escape(text))
        elif not self.quiet:
            self._line(f"[dim]{self._clock()}[/] {escape(text)}")

    def status(self, text: str) -> None:
        if self._status:
            self._status.update(escape(text))
        elif not self.quiet and time.monotonic() - self._said > QUIET_S:
            self._line(f"[dim]{self._clock()}[/] {escape(text)}")  # a log, too, shows that something goes on

    def note(self, text: str) -> None:
        if not self.quiet:
            self._line(f"[dim]{self._clock()}[/] {escape(text)}")

    def record(self, record: Record) -> None:
        if isinstance(record, CheckResult):
            state = state_of(record)
            self._states[state] += 1
            if state == "skipped" and record.suite != "compare":  # there it says that nothing was asked of a metric
                self._skips[record.reason] += 1
            if record.fails_run:
                self._failures.append(record)
            if record.suite == "capacity" and not record.fails_run:
                self._lines.append(f"capacity {record.observed}")
            elif record.suite == "load" and not record.fails_run:
                self._lines.append(_load_line(record))
            elif column_of(record.suite) == CLUSTER and not record.fails_run:
                self._cluster.append(record)
            elif self._status:
                self._status.update(f"{escape(record.id)} ({sum(self._states.values())} checks)")
        elif isinstance(record, Comparison):
            row = f"{record.variant} beside {record.baseline}, {title_of(record)}: {ratio_text(record)}"
            self._lines.append(f"{row}, {verdict_text(record)}")
        elif isinstance(record, LoadResult):
            self._loads.append(record)
        elif isinstance(record, ParityResult) and not record.within:
            self._lines.append(f"{record.comparison}, {record.output}: off by {record.max_abs_error:g}")

    def step_done(self, name: str, seconds: float) -> None:
        order = ("passed", "failed", "error", "undecided", "gone", "known", "advisory", "skipped")
        words = {"known": "known deviations", "error": "not judged", "gone": "no longer deviating"}
        counts = ", ".join(f"{self._states[key]} {words.get(key, key)}" for key in order if self._states[key])
        if not self.quiet:
            mark = "[red]✕[/]" if self._failures else "[green]✓[/]"
            self._line(f"[dim]{self._clock()}[/] {mark} {escape(name)}: {counts} [dim]({seconds:.1f} s)[/]")
            # A stage of another name is a trial of a search, which has noted each already.
            stages = [line for load in self._loads if load.step == name for line in _stage_lines(load)]
            for line in [*stages, *self._lines, *_cluster_lines(self._cluster)]:
                self._line(f"           [dim]{escape(line)}[/]")
            if self._skips.total() > 10:
                reasons = "; ".join(f"{count} because {reason}" for reason, count in self._skips.most_common(2))
                self._line(f"           [dim]skipped: {escape(reasons)}[/]")
            for check in self._failures[:SHOWN]:
                self._line(f"         [red]✕[/] {escape(describe(check))}")
                for line in _evidence_lines(check):
                    self._line(f"           [dim]{escape(line)}[/]")
            if len(self._failures) > SHOWN:
                self._line(f"           and {len(self._failures) - SHOWN} more")
        self._states.clear()
        self._skips.clear()
        self._failures, self._lines, self._loads, self._cluster = [], [], [], []

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:6.1f}s"

    def _line(self, markup: str) -> None:
        self._said = time.monotonic()
        self.console.print(markup, highlight=False, soft_wrap=True, emoji=False)


def _evidence_lines(check: CheckResult) -> list[str]:
    """What was required and by whom, and the request that shows it; load and parity say so themselves."""
    if check.suite not in ("conformance", "fuzz"):
        return []
    lines = [f"required ({check.level}): {check.requirement} [{check.source}]"]
    if check.evidence:
        request = check.evidence[-1].request
        lines.append(request if len(request) <= LONGEST_REQUEST else f"{request[:LONGEST_REQUEST]}…")
    return lines


def _stage_lines(load: LoadResult) -> list[str]:
    names = ("p50", "p90", "p99", "p99_9", "max")
    values = ", ".join(f"{COLUMN_TITLES.get(name, name)} {format_duration(load.latency_s[name])}" for name in names)
    rate = f"{load.achieved_rate_per_s:.1f}/s achieved"
    lines = [f"{load_title(load)}: {load.requests} requests, {rate}, errors: {errors_text(load)}", f"latency {values}"]
    if cells := success_cells(load):
        shown = ", ".join(f"{COLUMN_TITLES.get(name, name)} {cells[name]}" for name in names)
        lines.append(f"of those that succeeded {shown}")
    return [*lines, *error_lines(load), *streaming_lines(load)]


def error_lines(load: LoadResult) -> list[str]:
    """What the first error of each class and status said; and which requests went out twice."""
    lines = [seen.text for seen in load.errors_seen[:SHOWN]]
    if (more := len(load.errors_seen) - SHOWN) > 0:
        lines.append(f"and {more} more kinds of errors")
    if load.resent:
        lines.append(
            f"{load.resent} requests went out twice: the server had closed the connection before they reached it"
        )
    return lines


def streaming_lines(load: LoadResult) -> list[str]:
    if not load.streaming:
        return []
    tokens = load.streaming["tokens"]
    lines = [f"tokens {tokens['per_s']:.1f}/s, {tokens['per_answer']:.1f} an answer"]
    for key, title in (("ttft_s", "time to first token"), ("gap_s", "gap between tokens")):
        values = load.streaming[key]
        if values:
            shown = ", ".join(f"{name} {format_duration(values[name])}" for name in ("p50", "p95", "p99", "max"))
            lines.append(f"{title} {shown}")
    return lines


def _cluster_lines(checks: list[CheckResult]) -> list[str]:
    """What came out of each check; of many only those that people ask for first."""
    passed = [check for check in checks if check.outcome is Outcome.PASSED]
    if len(passed) > SHOWN:
        passed = [check for check in passed if ".split." in check.id or check.id.endswith(MOST_ASKED)]
    return [f"{check.requirement.removesuffix('.')}: {check.observed}" for check in passed]


def _load_line(check: CheckResult) -> str:
    """A load check that did not fail, in the words of somebody who reads it aloud."""
    if check.outcome is Outcome.UNDECIDED:
        return f"{check.requirement.removesuffix('.')}: {check.observed}; {check.reason}"
    if check.id == "load.valid":
        return f"valid: the generator's own delay moved no percentile noticeably ({check.observed})"
    if check.id == "load.answers":
        return f"answers: {check.observed}"
    if check.id == "load.kept_up":
        kept = "kept up" if check.outcome is Outcome.PASSED else "did not keep up"
        return f"{kept}: {check.observed}"
    return f"met {check.requirement.removeprefix('SLO: ')}: {check.observed}"


def print_verdict(console: Console, run: Run, verdict: Verdict) -> None:
    """The end of a run: what came out, why, and where the rest is."""
    colour = "green" if verdict.passed else "yellow" if verdict.word == "interrupted" else "red"
    console.print()
    for row in service_rows(run):
        parts = [
            f"{suite} {tally_text(counts)}"
            for suite, counts in (
                ("conformance", row.conformance),
                ("parity", row.parity),
                ("load", row.load),
                ("cluster", row.cluster),
            )
            if counts.total
        ]
        console.print(
            f"  {escape(row.name)} ({escape(row.runtime)}): {'; '.join(parts) or 'nothing measured'}", highlight=False
        )
    console.print(f"[bold {colour}]{verdict.word.upper()}[/] {escape(str(run.info.get('name', '')))}", highlight=False)
    for reason in verdict.reasons[:8]:
        console.print(f"  - {escape(reason[:400])}", highlight=False, soft_wrap=True, emoji=False)
    if len(verdict.reasons) > 8:
        console.print(f"  - and {len(verdict.reasons) - 8} more", highlight=False)
