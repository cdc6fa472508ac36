"""``summary.md``: the run in one screen, for a pull request or a chat."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.base.shown import visible
from harness.results.records import LoadResult
from harness.results.runstore import Run
from harness.results.verdict import Verdict, describe
from reports.comparisons import HEAD, comparison_parts, how
from reports.comparisons import cells as compared_cells
from reports.signoff import sign_off
from reports.tables import (
    COLUMN_TITLES,
    COLUMNS,
    LEVELS,
    STATES,
    ScoreRow,
    beside_rows,
    capacity_rows,
    cluster_parts,
    deviation_groups,
    errors_text,
    latency_cell,
    load_title,
    parity_cells,
    parity_groups,
    score_profiles,
    scorecard,
    service_rows,
    stages,
    state_of,
    success_cells,
    tally_text,
)


def _cell(text: str) -> str:
    """As plain text: what a server said is no table, no markup, no image and no link."""
    text = visible(text.replace("\n", " "))
    for mark, shown in (("\\", "\\\\"), ("|", "\\|"), ("`", "\\`"), ("[", "\\["), ("&", "&amp;"), ("<", "&lt;")):
        text = text.replace(mark, shown)
    return text


def _code(text: str) -> str:
    """As code, whatever backticks are in it (CommonMark, code spans)."""
    text = visible(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest or text.startswith(" ") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _stage_rows(load: LoadResult) -> list[list[str]]:
    """A stage, and below it, where requests failed, the latency of those that did not."""
    rows = [
        [
            load.step,
            load_title(load),
            f"{load.achieved_rate_per_s:.1f}/s",
            *(latency_cell(load, name)[0] for name in COLUMNS),
            errors_text(load),
            "yes" if load.valid else load.invalid_reason,
        ]
    ]
    if cells := success_cells(load):
        rows.append(["", "of those that succeeded", "", *(cells[name] for name in COLUMNS), "", ""])
    return rows


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows), ""]


MOST_ERRORS = 20
MOST_BYTES = 1_000_000
"""GitHub shows a job summary of at most 1 MiB, and none at all of a larger one."""


def markdown(run: Run, verdict: Verdict) -> str:
    """Cut at the end of a line where it is larger than a job summary may be: the verdict and its reasons come first."""
    text = _whole(run, verdict)
    data = text.encode()
    if len(data) <= MOST_BYTES:
        return text
    kept = data[: data.rindex(b"\n", 0, MOST_BYTES)].decode()
    return f"{kept}\n\nThe rest ({len(data) - MOST_BYTES} bytes) is in report.html and results.json.\n"


def _errors(run: Run) -> list[str]:
    seen = [(load.step, error) for load in stages(run) for error in load.errors_seen]
    if not seen:
        return []
    rows = [
        [step, error.name, str(error.count), f"{error.first_s:.3g} s", error.said] for step, error in seen[:MOST_ERRORS]
    ]
    table = _table(["stage", "error", "requests", "first after", "what the first one said"], rows)
    more = [f"And {len(seen) - MOST_ERRORS} more kinds; see report.html.", ""] if len(seen) > MOST_ERRORS else []
    return ["### Errors", "", *table, *more]


def _whole(run: Run, verdict: Verdict) -> str:
    info = run.info
    lines = [f"# {info.get('name')}: {verdict.word}", ""]
    lines += [f"Started {info.get('started')}, exit code {verdict.exit_code}, seed {info.get('seed')}.", ""]
    lines += _reasons(verdict)
    for part in _PARTS:
        lines += part(run)
    return "\n".join(lines)


def _reasons(verdict: Verdict) -> list[str]:
    if not verdict.reasons:
        return []
    lines = ["## Why", "", *(f"- {_cell(reason)[:600]}" for reason in verdict.reasons[:30])]
    if len(verdict.reasons) > 30:
        lines.append(f"- and {len(verdict.reasons) - 30} more; see report.html")
    return [*lines, ""]


def _services(run: Run) -> list[str]:
    rows = [
        [
            row.name,
            row.runtime,
            row.model,
            row.ready,
            *(tally_text(counts) for counts in (row.conformance, row.parity, row.load, row.cluster)),
        ]
        for row in service_rows(run)
    ]
    head = ["service", "runtime", "model", "ready after", "conformance", "parity", "load", "cluster"]
    return ["## Services", "", *_table(head, rows)] if rows else []


def _scores(run: Run) -> list[str]:
    cards = scorecard(run)
    if not cards:
        return []
    profiles = score_profiles(cards)

    def cell(card: ScoreRow, name: str) -> str:
        return " / ".join(card.scores[name].text(level) for level in LEVELS) if name in card.scores else ""

    rows = [[card.service, card.runtime, *(cell(card, name) for name in profiles)] for card in cards]
    head = ["service", "runtime", *profiles]
    return ["## Scorecard", "", "Passed of applicable: MUST / SHOULD / MAY.", "", *_table(head, rows)]


def _capacities(run: Run) -> list[str]:
    lines = []
    for row in capacity_rows(run):
        seen = f" ({row.check.observed})" if row.check else ""
        lines += [f"Capacity of {row.service} ({row.runtime}): **{row.found}**{seen}", ""]
    return lines


def _loads(run: Run) -> list[str]:
    shown = stages(run)
    if not shown:
        return []
    head = ["stage", "what", "achieved", *(COLUMN_TITLES.get(name, name) for name in COLUMNS), "errors", "valid"]
    resent = [
        f"{load.step}: {load.resent} requests went out twice: the server had closed the connection before they"
        " reached it.\n"
        for load in shown
        if load.resent
    ]
    return [
        "## Load",
        "",
        "Latency counts from the moment a request was due; a request that failed was never answered.",
        "",
        *_table(head, [row for load in shown for row in _stage_rows(load)]),
        *_errors(run),
        *resent,
    ]


def _published(run: Run) -> list[str]:
    beside = beside_rows(run)
    if not beside:
        return []
    names = list(dict.fromkeys(name for row in beside for name, _, _ in row.figures))
    cells = [{name: f"{ours} ({theirs})" for name, ours, theirs in row.figures} for row in beside]
    rows = [[row.what, *(found.get(name, "") for name in names)] for row, found in zip(beside, cells, strict=True)]
    sources = [f"- {source}" for source in dict.fromkeys(row.source for row in beside)]
    head = ["## Beside published figures", "", "Ours, and theirs in brackets.", ""]
    return [*head, *_table(["stage", *names], rows), *sources, ""]


def _comparisons(run: Run) -> list[str]:
    lines = []
    for compared in comparison_parts(run):
        rows = [compared_cells(row) for row in compared.rows]
        lines += [f"## {compared.sentence}", "", *_table(HEAD, rows), how(compared.rows), ""]
    return lines


def _cluster_steps(run: Run) -> list[str]:
    lines = []
    for part in cluster_parts(run):
        rows = [[STATES[state_of(item)][0], item.requirement, item.observed or item.reason] for item in part.checks]
        lines += [f"## {part.title} of {part.service} ({part.runtime})", ""]
        lines += _table(["", "what is required", "observed"], rows)
        if part.figures:
            lines += [", ".join(f"{name} {value}" for name, value in part.figures) + ".", ""]
    return lines


def _parity(run: Run) -> list[str]:
    if not run.parity:
        return []
    rows = [
        [group.service, group.comparison, str(group.elements), *parity_cells(group), "yes" if group.within else "no"]
        for group in parity_groups(run)
    ]
    head = ["service", "comparison", "elements", "max abs", "max rel", "ULP", "argmax", "within"]
    return ["## Parity", "", *_table(head, rows)]


def _known(run: Run) -> list[str]:
    known = deviation_groups(run)
    rows = [[group.service, group.reason, ", ".join(check.id for check in group.checks)] for group in known]
    return ["## Known deviations", "", *_table(["service", "why it is expected", "checks"], rows)] if known else []


def _evidence(run: Run) -> list[str]:
    failed = [check for check in run.checks if check.fails_run]
    if not failed:
        return []
    lines = ["## Evidence", ""]
    for check in failed[:20]:
        lines += [f"- {_cell(describe(check))[:400]}"]
        lines += [f"  - {_code(exchange.request[:300])}" for exchange in check.evidence[-1:]]
    return [*lines, ""]


def _signed(run: Run) -> list[str]:
    signed = sign_off(run)
    lines = ["## Sign-off", ""]
    if signed.steps:
        rows = [[item.name, item.suite, item.service, item.state, item.result, item.seconds] for item in signed.steps]
        lines += _table(["step", "suite", "service", "state", "result", "time"], rows)
    return [*lines, *(f"- {name}: {_cell(text)}" for name, text in signed.facts), ""]


_PARTS: tuple[Callable[[Run], list[str]], ...] = (
    _services,
    _scores,
    _capacities,
    _loads,
    _published,
    _comparisons,
    _cluster_steps,
    _parity,
    _known,
    _evidence,
    _signed,
)
"""In the order of the summary; each gives nothing where the run has nothing of it."""
