"""``servecert compare``: run directories beside each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from harness.comparison import CONFIDENCE, LEAST_BLOCKS, MARGIN, corrected, unpaired_ratio
from harness.errors import EXIT_FAILED, MeasurementError, UsageError
from harness.options import Json, share_of
from harness.output import emit_json
from harness.records import CheckResult, Comparison, LoadResult
from harness.runstore import Run, read_run, write_atomic
from harness.stats import percentile
from harness.verdict import describe
from reports.comparisons import HEAD, cells, how, parts_of

BLOCKS = 12
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="run directories; the first is the baseline")],
    margin: Annotated[str, typer.Option(help="what counts as equivalent")] = f"{MARGIN:.0%}",
    confidence: Annotated[float, typer.Option(help="of all verdicts together")] = CONFIDENCE,
    metric: Annotated[list[str] | None, typer.Option(help="p50, p90, p95, p99; all by default")] = None,
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
    metrics = metric or list(QUANTILES)
    if unknown := [name for name in metrics if name not in QUANTILES]:
        raise UsageError(f"--metric {unknown[0]!r}: expected one of {', '.join(QUANTILES)}")
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
    text = _text(comparisons, changed)
    if markdown is not None:
        write_atomic(markdown, text)
    if json:
        data = {"comparisons": [asdict(item) for item in comparisons], "checks": changed}
        emit_json(json, data)
    if json != "-":
        print(text, end="")
    failing = any(item.verdict in gates for item in comparisons)
    failing = failing or ("checks" in gates and any(item["worse"] for items in changed.values() for item in items))
    raise typer.Exit(EXIT_FAILED if failing else 0)


def compare_runs(
    read: list[Run], names: list[Path], metrics: list[str], margin: float, confidence: float
) -> list[Comparison]:
    """Stages of the same step and service. Each is cut into blocks of time; blocks of different runs are not paired."""
    pairs: list[tuple[LoadResult, LoadResult, dict[str, list[float]], dict[str, list[float]], str]] = []
    for name, run in zip(names[1:], read[1:], strict=True):
        mine = {(load.step, load.service): load for load in run.loads}
        for load in read[0].loads:
            other = mine.get((load.step, load.service))
            if other is None:
                continue
            a, b = blocks_of(read[0], load), blocks_of(run, other)
            if a and b:
                pairs.append((load, other, a, b, str(name)))
    found = []
    each = corrected(confidence, len(pairs) * len(metrics))
    for load, _, a, b, variant in pairs:
        for metric in metrics:
            ratio = unpaired_ratio(a[metric], b[metric], margin=margin, confidence=each, seed=load.seed)
            found.append(
                Comparison(
                    service=load.service,
                    step=load.step,
                    baseline=str(names[0]),
                    variant=variant,
                    metric=metric,
                    unit="s",
                    baseline_value=float(np.median(a[metric])),
                    variant_value=float(np.median(b[metric])),
                    ratio=ratio.ratio,
                    low=ratio.low,
                    high=ratio.high,
                    confidence=each,
                    margin=margin,
                    verdict=str(ratio.verdict),
                    blocks=ratio.blocks,
                    needed=ratio.needed,
                    paired=False,
                )
            )
    return found


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


def _text(comparisons: list[Comparison], changed: dict[str, list[dict[str, Any]]]) -> str:
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
