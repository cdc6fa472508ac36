"""``report.html``: one file that needs no network, verdict first, evidence on click."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from harness.base.units import format_duration
from harness.results.records import CheckResult, Outcome, to_json
from harness.results.runstore import Run
from harness.results.verdict import Verdict, describe, tally
from reports import comparisons, tables
from reports.pages import pages_environment
from reports.palette import dark_variables
from reports.signoff import sign_off
from reports.stages import StageView
from reports.terminal import streaming_lines

if TYPE_CHECKING:
    from reports.drawings import Drawings


@functools.cache
def _environment() -> Any:
    environment = pages_environment()
    environment.globals.update(
        states=tables.STATES,
        state_of=tables.state_of,
        tally_text=tables.tally_text,
        latency_cell=tables.latency_cell,
        success_cells=tables.success_cells,
        load_title=tables.load_title,
        stage_label=tables.stage_label,
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


def _evidence(checks: list[CheckResult]) -> str:
    """What a click shows: JSON, compressed, as most of it repeats itself, and in base64, which cannot leave the element
    that it stands in, whatever a server has sent."""
    data = [{**to_json(check), "state": tables.state_of(check)} for check in checks]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), mtime=0)).decode()


def _contents(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The parts that there are: an anchor and a title each."""
    found = [
        (place, title)
        for place, title, there in (
            ("failed", "What failed", values["failures"]),
            ("services", "Services", values["rows"]),
            ("conformance", "Conformance", values["matrix"]),
            ("known", "Known deviations", values["known"]),
            ("parity", "Parity", values["parity"] or values["skipped_parity"]),
        )
        if there
    ]
    found += [(f"capacity-{n}", f"Capacity of {row.service}") for n, (row, _) in enumerate(values["capacities"], 1)]
    if values["loads"]:
        found.append(("load", "Load"))
    found += [
        (f"compare-{n}", f"{part.variant} beside {part.baseline}")
        for n, (part, _) in enumerate(values["comparisons"], 1)
    ]
    found += [(f"cluster-{n}", f"{part.title} of {part.service}") for n, (part, _) in enumerate(values["parts"], 1)]
    return [*found, ("how", "How this was measured")]


def html(run: Run, verdict: Verdict, views: list[StageView]) -> tuple[str, dict[str, bytes]]:
    """The page, and its plots as files. ``views`` are of the stages that have samples."""
    from reports.drawings import Drawings

    drawings = Drawings()
    values = {**_drawn(run, views, drawings), **_found(run, verdict)}
    values["contents"] = _contents(values)
    return str(_environment().get_template("report.html.j2").render(values)), drawings.files


def _drawn(run: Run, views: list[StageView], drawings: Drawings) -> dict[str, Any]:
    """The parts of the page that have a plot each, with it."""
    from reports import plots  # matplotlib takes its time, and most commands plot nothing

    by_step = {view.load.step: view for view in views}

    def of_cluster(part: tables.ClusterPart) -> Markup:
        """Empty where there is nothing to plot."""
        if part.series is None:
            return Markup()
        figure, label = plots.of_series(part.series, by_step.get(part.step))
        return drawings.add(part.step, label, figure)

    values: dict[str, Any] = {
        "parts": [(part, of_cluster(part)) for part in tables.cluster_parts(run)],
        "capacities": [
            (row, drawings.add(row.step, "Latency by offered rate", plots.capacity_curve(row.trials, row.knee)))
            for row in tables.capacity_rows(run)
        ],
        "comparisons": [
            (part, drawings.add(f"{part.step}-{part.variant}", "Ratios with their intervals", plots.ratios(part.rows)))
            for part in comparisons.comparison_parts(run)
        ],
        "curves": "",
        "distributions": "",
        "timelines": [
            (view, drawings.add(f"{view.load.step}-timeline", f"{view.load.step} over time", plots.timeline(view)))
            for view in views
        ],
    }
    if views:
        curves, spread = plots.percentile_curves(views), plots.distributions(views)
        values["curves"] = drawings.add("percentiles", "Latency by percentile for each load stage", curves)
        values["distributions"] = drawings.add("distributions", "Distribution of latencies for each load stage", spread)
    return values


def _found(run: Run, verdict: Verdict) -> dict[str, Any]:
    """What the page says in words and tables."""
    cards = tables.scorecard(run)
    places = {id(check): index for index, check in enumerate(run.checks)}
    parity = [check for check in run.checks if check.suite == "parity"]
    return {
        "run": run,
        "info": run.info,
        "verdict": verdict,
        "counts": tally(run.checks),
        "rows": tables.service_rows(run),
        "matrix": tables.matrix(run),
        "cards": cards,
        "profiles": tables.score_profiles(cards),
        "services": tables.conformance_services(run),
        "runtimes": {check.service: check.runtime for check in run.checks},
        "place": lambda check: places[id(check)],
        "failures": [check for check in run.checks if check.fails_run],
        "known": tables.deviation_groups(run),
        "others": [check for check in run.checks if check.suite == "load"],
        "parity": tables.parity_groups(run),
        "parity_checks": {(check.step, check.service, check.id.removeprefix("parity.")): check for check in parity},
        "skipped_parity": [check for check in parity if check.outcome is Outcome.SKIPPED],
        "loads": tables.stages(run),
        "beside": tables.beside_rows(run),
        "links": {load.step: tables.data_links(run, load) for load in run.loads},
        "scenario": _text_of(run, "scenario.yaml"),
        "signed": sign_off(run),
        "evidence": _evidence(run.checks),
        "dark_plots": Markup(dark_variables()),  # noqa: S704 - our own colours
    }


def _text_of(run: Run, name: str) -> str:
    path = run.directory / name
    return path.read_text() if path.exists() else ""
