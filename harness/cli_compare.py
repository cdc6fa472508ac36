"""``servecert compare``: run directories beside each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from harness.comparison import CONFIDENCE, LEAST_BLOCKS, MARGIN, QUANTILES, compared, corrected, unpaired_ratio
from harness.errors import EXIT_FAILED, MeasurementError, UsageError
from harness.options import Json, share_of
from harness.output import emit_json
from harness.records import CheckResult, Comparison, LoadResult
from harness.runstore import Run, read_run, write_atomic
from harness.stats import percentile
from harness.verdict import describe
from reports.comparisons import HEAD, cells, how, parts_of

BLOCKS = 12


def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="run directories; the first is the baseline")],
    margin: Annotated[str, typer.Option(help="what counts as equivalent")] = f"{MARGIN:.0%}",
    confidence: Annotated[float, typer.Option(help="of all verdicts together")] = CONFIDENCE,
    metric: Annotated[list[str] | None, typer.Option(help="p50, p90, p95, p99, cold_start; all by default")] = None,
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="VERDICT", help="slower, undecided, faster, or checks: exit code 1 then")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="write the tables as Markdown")] = None,
    json: Json = "",
) -> None:
    """Compares the load and the checks of runs. Where it can be, compare in one run instead (a compare step): there
    blocks are taken in turns, and nothing changes between them."""
    if len(runs) < 2:
        raise UsageError("expected two run directories or more: servecert compare BASELINE OTHER…")
    share = share_of("--margin", margin)
    if not 0 < share < 1 or not 0.5 <= confidence < 1:
        raise UsageError("expected a --margin above 0 and below 1, and a --confidence from 0.5 to below 1")
    known = [*QUANTILES, "cold_start"]
    metrics = metric or known
    if unknown := [name for name in metrics if name not in known]:
        raise UsageError(f"--metric {unknown[0]!r}: expected one of {', '.join(known)}")
    gates = fail_on or []
    if unknown := [name for name in gates if name not in ("slower", "undecided", "faster", "checks")]:
        raise UsageError(f"--fail-on {unknown[0]!r}: expected slower, undecided, faster or checks")
    read = [read_run(path) for path in runs]
    comparisons = compare_runs(read, runs, metrics, share, confidence)
    changed = {str(path): changed_checks(read[0], run) for path, run in zip(runs[1:], read[1:], strict=True)}
    common = any(_keys(read[0]) & _keys(run) for run in read[1:])
    if not comparisons and not common:
        raise MeasurementError(
            f"{' and '.join(map(str, runs))} have nothing in common: no stage of load of the same step and service with"
            f" at least {LEAST_BLOCKS * 10} requests, and no check"
        )
    once = {str(path): measured_once(read[0], run) for path, run in zip(runs[1:], read[1:], strict=True)}
    text = _text(comparisons, once, changed)
    if markdown is not None:
        write_atomic(markdown, text)
    if json:
        data = {"comparisons": [asdict(item) for item in comparisons], "measured_once": once, "checks": changed}
        emit_json(json, data)
    if json != "-":
        print(text, end="")
    failing = any(item.verdict in gates for item in comparisons)
    failing = failing or ("checks" in gates and any(item["worse"] for items in changed.values() for item in items))
    raise typer.Exit(EXIT_FAILED if failing else 0)


Values = dict[tuple[str, str, str], list[float]]
"""Seconds by service, step and metric."""


def compare_runs(
    read: list[Run], names: list[Path], metrics: list[str], margin: float, confidence: float
) -> list[Comparison]:
    """What the baseline and another run have both measured often enough; nothing of different runs is paired."""
    baseline = values_of(read[0], metrics)
    pairs = [
        (key, a, found[key], str(name))
        for name, run in zip(names[1:], read[1:], strict=True)
        for found in [values_of(run, metrics)]
        for key, a in baseline.items()
        if key in found
    ]
    each = corrected(confidence, len(pairs))
    result = []
    for (service, step, metric), a, b, variant in pairs:
        ratio = unpaired_ratio(a, b, margin=margin, confidence=each)
        result.append(
            compared(
                ratio,
                a,
                b,
                confidence=each,
                margin=margin,
                paired=False,
                service=service,
                step=step,
                baseline=str(names[0]),
                variant=variant,
                metric=metric,
                unit="s",
            )
        )
    return result


def values_of(run: Run, metrics: list[str]) -> Values:
    """Percentiles of stretches of each stage of load, and the trials of cold starts."""
    found: Values = {}
    for load in run.loads:
        for metric, values in blocks_of(run, load).items():
            if metric in metrics:
                found[load.service, load.step, metric] = values
    for series in run.series:
        if series.kind == "cold-start" and "cold_start" in metrics:
            totals = np.sum([np.array(column) for column in series.columns.values()], axis=0)
            totals = totals[np.isfinite(totals)]
            if totals.size >= LEAST_BLOCKS:
                found[series.service, series.step, "cold_start"] = [float(value) for value in totals]
    return found


def measured_once(baseline: Run, other: Run) -> list[dict[str, Any]]:
    """Capacities of the same step and service: one value each, so that nothing can be said of chance."""

    def capacities(run: Run) -> dict[tuple[str, str], float]:
        return {(item.service, item.step): item.value for item in run.measurements if item.name == "capacity"}

    before, after = capacities(baseline), capacities(other)
    return [
        {"service": key[0], "step": key[1], "metric": "capacity", "was": before[key], "now": after[key]}
        for key in before
        if key in after
    ]


def blocks_of(run: Run, load: LoadResult) -> dict[str, list[float]]:
    """Percentiles of equal stretches of a stage's time, of requests that succeeded; empty where there is too little, or
    the stage was not valid."""
    batch = run.samples(load)
    if batch is None or not load.valid or len(batch) < LEAST_BLOCKS * 10:
        return {}
    fine = batch.error == 0
    due, latency = batch.due_ns[fine], batch.latency_s[fine]
    if latency.size < LEAST_BLOCKS * 10:
        return {}
    count = max(LEAST_BLOCKS, min(BLOCKS, latency.size // 100))
    edges = np.linspace(due.min(), due.max() + 1, count + 1)
    place = np.clip(np.searchsorted(edges, due, side="right") - 1, 0, count - 1)
    values: dict[str, list[float]] = {name: [] for name in QUANTILES}
    for block in range(count):
        inside = np.sort(latency[place == block])
        if inside.size < 5:
            continue
        for name, q in QUANTILES.items():
            values[name].append(percentile(inside, q))
    return values if len(values["p50"]) >= LEAST_BLOCKS else {}


def _key(check: CheckResult) -> tuple[str, str, str]:
    return check.service, check.step, check.id


def _keys(run: Run) -> set[tuple[str, str, str]]:
    return {_key(check) for check in run.checks}


def changed_checks(baseline: Run, other: Run) -> list[dict[str, Any]]:
    """Checks whose outcome differs, worse ones first; ones that only one of the runs has are named too."""
    before = {_key(check): check for check in baseline.checks}
    after = {_key(check): check for check in other.checks}
    found = []
    for key in dict.fromkeys([*before, *after]):
        one, two = before.get(key), after.get(key)
        was, now = (str(item.outcome) if item else "not run" for item in (one, two))
        if was == now:
            continue
        shown = two or one
        assert shown is not None
        found.append(
            {
                "service": key[0],
                "step": key[1],
                "check": key[2],
                "was": was,
                "now": now,
                "worse": two is None or (two.fails_run and not (one is not None and one.fails_run)),
                "detail": describe(shown),
            }
        )
    return sorted(found, key=lambda item: not item["worse"])


Listed = dict[str, list[dict[str, Any]]]


def _text(comparisons: list[Comparison], once: Listed, changed: Listed) -> str:
    """Markdown that reads well in a terminal."""
    lines: list[str] = []
    for part in parts_of(comparisons, []):
        lines += [f"## {part.rows[0].service}, {part.step}: {part.sentence}", ""]
        rows = [HEAD, *(cells(row) for row in part.rows)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
        for number, row in enumerate(rows):
            lines.append("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
            if number == 0:
                lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
        lines += ["", how(part.rows), ""]
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
