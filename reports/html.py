"""``report.html``: one file that needs no network, verdict first, evidence on click."""

from __future__ import annotations

import functools
import json
from typing import Any

from markupsafe import Markup

from harness.records import CheckResult, LoadResult, Outcome, SampleBatch, to_json
from harness.runstore import Run
from harness.units import format_duration
from harness.verdict import Verdict, describe, tally
from reports import comparisons, tables
from reports.pages import pages_environment
from reports.signoff import sign_off
from reports.terminal import streaming_lines


@functools.cache
def _environment() -> Any:
    environment = pages_environment()
    environment.globals.update(
        states=tables.STATES,
        state_of=tables.state_of,
        tally_text=tables.tally_text,
        latency_cell=tables.latency_cell,
        load_title=tables.load_title,
        errors_text=tables.errors_text,
        parity_cells=tables.parity_cells,
        levels=tables.LEVELS,
        column_title=lambda name: tables.COLUMN_TITLES.get(name, name),
        columns=tables.COLUMNS,
        duration=format_duration,
        describe=describe,
        compared_cells=comparisons.cells,
        compared_how=comparisons.how,
        compared_head=comparisons.HEAD,
        streaming_lines=streaming_lines,
    )
    return environment


def _evidence(checks: list[CheckResult]) -> Markup:
    """What a click shows, as JSON that can stand inside a script element whatever a server has sent."""
    data = [{**to_json(check), "state": tables.state_of(check)} for check in checks]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704


def _plots() -> Any:
    """Matplotlib takes its time, and most commands plot nothing."""
    from reports import plots

    return plots


def _cluster_plot(part: tables.ClusterPart, stage: tuple[LoadResult, SampleBatch] | None) -> Markup:
    """Empty where there is nothing to plot."""
    if part.series is None:
        return Markup()
    if part.series.kind == "replicas":
        return Markup(_plots().replicas(part.series, stage[1] if stage else None))  # noqa: S704 - our own SVG
    if part.series.kind == "cold-start":
        return Markup(_plots().waterfall(part.series))  # noqa: S704
    return Markup(_plots().split(part.series))  # noqa: S704


def html(run: Run, verdict: Verdict) -> str:
    stages = []
    for load in tables.stages(run):
        batch = run.samples(load)
        if batch is not None and len(batch):
            stages.append((load, batch))
    services = tables.conformance_services(run)
    cards = tables.scorecard(run)
    runtimes = {check.service: check.runtime for check in run.checks}
    places = {id(check): index for index, check in enumerate(run.checks)}
    failures = [check for check in run.checks if check.fails_run]
    curves: str | Markup = ""
    over_time: str | Markup = ""
    if stages:
        curves = Markup(_plots().percentile_curves(stages))  # noqa: S704 - our own SVG
        over_time = Markup(_plots().timelines(stages))  # noqa: S704
    batches = {load.step: (load, batch) for load, batch in stages}
    values: dict[str, Any] = {
        "parts": [(part, _cluster_plot(part, batches.get(part.step))) for part in tables.cluster_parts(run)],
        "run": run,
        "info": run.info,
        "verdict": verdict,
        "counts": tally(run.checks),
        "rows": tables.service_rows(run),
        "matrix": tables.matrix(run),
        "cards": cards,
        "profiles": tables.score_profiles(cards),
        "services": services,
        "runtimes": runtimes,
        "place": lambda check: places[id(check)],
        "failures": failures,
        "known": tables.deviation_groups(run),
        "others": [check for check in run.checks if check.suite == "load"],
        "parity": tables.parity_groups(run),
        "parity_checks": {
            (check.step, check.service, check.id.removeprefix("parity.")): check
            for check in run.checks
            if check.suite == "parity"
        },
        "skipped_parity": [
            check for check in run.checks if check.suite == "parity" and check.outcome is Outcome.SKIPPED
        ],
        "loads": tables.stages(run),
        "capacities": [
            (row, Markup(_plots().capacity_curve(row.trials, row.knee)))  # noqa: S704
            for row in tables.capacity_rows(run)
        ],
        "beside": tables.beside_rows(run),
        "comparisons": [
            (part, Markup(_plots().ratios(part.rows)))  # noqa: S704
            for part in comparisons.comparison_parts(run)
        ],
        "curves": curves,
        "timelines": over_time,
        "signed": sign_off(run),
        "evidence": _evidence(run.checks),
    }
    return str(_environment().get_template("report.html.j2").render(values))
