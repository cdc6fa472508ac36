"""``servecert compare``: run directories beside each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from harness.base.errors import EXIT_FAILED, MeasurementError, UsageError
from harness.base.files import write_atomic
from harness.cli.options import Json, share_of
from harness.cli.output import emit_json
from harness.results.comparison import CONFIDENCE, MARGIN, Verdict
from harness.results.records import Comparison, plain
from harness.results.runstore import read_run
from harness.results.sides import (
    METRICS,
    Beside,
    ErrorShares,
    Side,
    beside,
    changed_checks,
    check_keys,
    measured_once,
)
from reports.comparisons import HEAD, cells, how, parts_of

GATES = ("slower", "undecided", "faster", "checks")
BETWEEN = "\0"
"""Stands for ``--`` among the arguments: no path has this character."""
SEVERAL = "servecert compare A1 A2 A3 -- B1 B2 B3"


class SidesCommand(TyperCommand):
    """Keeps ``--``, which stands between the two sides; options may stand on both of its sides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [BETWEEN if arg == "--" else arg for arg in args])


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN… -- RUN…", help="of the baseline, and of the variant; or RUN RUN…, one a side"),
    ],
    margin: Annotated[str, typer.Option(help="what counts as equivalent")] = f"{MARGIN:.0%}",
    confidence: Annotated[float, typer.Option(help="of all verdicts together")] = CONFIDENCE,
    metric: Annotated[list[str] | None, typer.Option(help=f"{', '.join(METRICS)}; all by default")] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(metavar="VERDICT", help="slower, undecided, faster, or checks: exit code 1 then, or when unknown"),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="write the tables as Markdown")] = None,
    json: Json = "",
) -> None:
    """Compares the errors, the load and the checks of runs. Several runs a side show what chance does between runs; one
    run a side only describes. Where it can be, compare in one run instead (a compare step): there blocks are taken in
    turns, and nothing changes between them."""
    share = share_of("--margin", margin)
    if not 0 < share < 1 or not 0.5 <= confidence < 1:
        raise UsageError("expected a --margin above 0 and below 1, and a --confidence from 0.5 to below 1")
    if unknown := [name for name in metric or [] if name not in METRICS]:
        raise UsageError(f"--metric {unknown[0]!r}: expected one of {', '.join(METRICS)}")
    gates = fail_on or []
    if unknown := [name for name in gates if name not in GATES]:
        raise UsageError(f"--fail-on {unknown[0]!r}: expected slower, undecided, faster or checks")
    baseline, variants = _sides(runs)
    found = beside(baseline, variants, metric or METRICS, share, confidence)
    changed = {side.name: changed_checks(baseline, side) for side in variants}
    common = any(check_keys(baseline) & check_keys(side) for side in variants)
    if not found.comparisons and not found.errors and not common:
        reasons = "".join(f"\n{problem}" for problem in found.not_compared)
        raise MeasurementError(f"{' and '.join(runs_of(runs))} have nothing in common that can be compared{reasons}")
    once = {
        side.name: measured_once(baseline.runs[0], side.runs[0])
        for side in variants
        if len(baseline.runs) == len(side.runs) == 1
    }
    text = _text(found, once, changed)
    if markdown is not None:
        write_atomic(markdown, text)
    if json:
        data = {
            "comparisons": [asdict(item) for item in found.comparisons],
            "errors": [asdict(item) for item in found.errors],
            "not_compared": [asdict(item) for item in found.not_compared],
            "measured_once": once,
            "checks": changed,
        }
        emit_json(json, plain(data))
    if json != "-":
        print(text, end="")
    worse = [item for items in changed.values() for item in items if item["worse"]]
    _gate(gates, found, worse, common, share)


def runs_of(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if argument != BETWEEN]


def _sides(arguments: list[str]) -> tuple[Side, list[Side]]:
    """The baseline and what is compared with it. Raises UsageError, and RunStoreError for what is no run directory."""
    if BETWEEN not in arguments:
        if len(arguments) < 2:
            raise UsageError(f"expected two run directories or more: servecert compare BASELINE OTHER…, or {SEVERAL}")
        first, *others = (Side(name, (read_run(Path(name)),)) for name in arguments)
        return first, others
    place = arguments.index(BETWEEN)
    sides = arguments[:place], arguments[place + 1 :]
    if BETWEEN in sides[1] or not all(sides):
        raise UsageError(f"expected run directories on both sides of one '--': {SEVERAL}")
    real = [Path(name).resolve() for side in sides for name in side]
    if twice := [str(path) for path in dict.fromkeys(real) if real.count(path) > 1]:
        raise UsageError(f"{twice[0]} is named twice: the same run again says nothing of chance between runs")
    one, two = (Side(", ".join(side), tuple(read_run(Path(name)) for name in side)) for side in sides)
    return one, [two]


def _gate(gates: list[str], found: Beside, worse: list[dict[str, Any]], common: bool, margin: float) -> None:
    """Raises Exit for what was to fail, and MeasurementError for what was to be judged and could not be."""
    verdicts = [gate for gate in gates if gate != "checks"]
    failing = any(item.verdict in verdicts for item in found.comparisons)
    failing = failing or ("slower" in verdicts and any(item.more for item in found.errors))
    if failing or ("checks" in gates and worse):
        raise typer.Exit(EXIT_FAILED)
    if "checks" in gates and not common:
        raise MeasurementError("the runs have no check in common, so none was judged")
    if verdicts and (reasons := _unjudged(found, margin, "slower" in verdicts)):
        listed = "".join(f"\n- {reason}" for reason in reasons)
        raise MeasurementError(f"--fail-on {' '.join(verdicts)}: not everything could be judged{listed}")


def _unjudged(found: Beside, margin: float, slower: bool) -> list[str]:
    reasons = [str(problem) for problem in found.not_compared]
    if any(item.verdict == Verdict.DESCRIPTIVE for item in found.comparisons):
        reasons.append(f"one run a side does not show what chance does between runs: give several, as in {SEVERAL}")
    if not found.comparisons:
        reasons.append("no metric was measured on both sides")
    for item in found.comparisons:
        # Failing to prove a slowdown does not prove that there is none.
        if slower and item.verdict == Verdict.UNDECIDED and not _no_worse(item, margin):
            wanted = f": about {item.needed} runs a side would decide it" if item.needed else ""
            reasons.append(f"{item.metric} of {item.service}, {item.step}, is undecided{wanted}")
    return reasons


def _no_worse(item: Comparison, margin: float) -> bool:
    """Whether the whole interval lies within the margin on the side that is worse."""
    worst = 1 / item.low if item.unit == "/s" else item.high
    return worst <= 1 + margin


Listed = dict[str, list[dict[str, Any]]]


def _text(found: Beside, once: Listed, changed: Listed) -> str:
    """Markdown that reads well in a terminal: what failed comes first."""
    lines: list[str] = []
    if found.errors:
        more = sum(item.more for item in found.errors)
        words = f"more on the side of the variant in {more} of {len(found.errors)} stages" if more else "no more"
        lines += [f"## Failed requests: {words}", ""]
        head = ["stage", "baseline", "variant", "verdict"]
        lines += [*_table([head, *(_error_cells(item) for item in found.errors)]), ""]
    if found.not_compared:
        lines += [f"## Not compared: {len(found.not_compared)}", ""]
        lines += [*(f"- {problem}" for problem in found.not_compared), ""]
    for part in parts_of(found.comparisons, []):
        lines += [f"## {part.rows[0].service}, {part.step}: {part.sentence}", ""]
        lines += [*_table([HEAD, *(cells(row) for row in part.rows)]), "", how(part.rows), ""]
    for name, items in once.items():
        if items:
            lines += [f"## Measured once: {name}", ""]
            lines += [
                f"- capacity of {item['service']}, {item['step']}: {item['was']:.4g}/s, now {item['now']:.4g}/s"
                for item in items
            ]
            lines.append("")
    for name, items in changed.items():
        lines += [
            f"## Checks of {name}: {len(items)} differ, {sum(item['worse'] for item in items)} of them for the worse",
            "",
        ]
        for item in items[:40]:
            mark = "worse" if item["worse"] else "other"
            lines.append(f"- {mark}: {item['check']} of {item['service']}: {item['was']}, now {item['now']}")
        if len(items) > 40:
            lines.append(f"- and {len(items) - 40} more (--json has them all)")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _error_cells(item: ErrorShares) -> list[str]:
    def share(failed: int, requests: int) -> str:
        return f"{failed / requests:.2%} ({failed} of {requests})"

    return [
        f"{item.service}, {item.step}",
        share(item.baseline_failed, item.baseline_requests),
        share(item.variant_failed, item.variant_requests),
        f"{'more' if item.more else 'not shown to be more'}, p = {item.p_value:.2g}",
    ]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
