"""A static site of many runs. Pure: names of files, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from harness.base.units import format_duration
from harness.results.history import Trend
from harness.results.runstore import Run
from harness.results.verdict import judge, tally
from reports.pages import pages_environment
from reports.palette import dark_variables
from reports.tables import LEVELS, score_profiles, scorecard


@dataclass(frozen=True)
class RunRow:
    directory: str
    name: str
    started: str
    word: str
    passed: bool
    counts: str
    report: str
    """Empty where the run has none."""


def site(runs: list[Run], trends: list[Trend], problems: list[str], title: str) -> dict[str, str | bytes]:
    """``index.html`` and a copy of each run's report."""
    from reports import plots
    from reports.drawings import Drawings

    drawings = Drawings(png=False)
    pages: dict[str, str | bytes] = {}
    rows = []
    for run in reversed(runs):
        verdict, counts = judge(run), tally(run.checks)
        report = run.directory / "report.html"
        place = f"runs/{run.directory.name}/report.html"
        if report.exists():
            pages[place] = report.read_bytes()
        rows.append(
            RunRow(
                run.directory.name,
                str(run.info.get("name")),
                str(run.info.get("started")),
                verdict.word,
                verdict.passed,
                f"{counts.passed} passed, {counts.failed} failed, {counts.known} known",
                place if report.exists() else "",
            )
        )
    drawn = [
        (
            item,
            drawings.add(f"trend-{n}", f"{item.title} over {len(item.points)} runs", plots.trend(item)),
            text_of(item),
        )
        for n, item in enumerate(trends)
    ]
    scored = next((run for run in reversed(runs) if scorecard(run)), None)
    cards = scorecard(scored) if scored is not None else []
    values = {
        "title": title,
        "rows": rows,
        "trends": drawn,
        "worse": [item for item in trends if item.regression],
        "problems": problems,
        "cards": cards,
        "profiles": score_profiles(cards),
        "levels": LEVELS,
        "scored": scored.directory.name if scored is not None else "",
        "newest": rows[0],
        "dark_plots": Markup(dark_variables()),  # noqa: S704 - our own colours
    }
    pages["index.html"] = str(pages_environment().get_template("site.html.j2").render(values))
    return pages


def text_of(trend: Trend) -> str:
    newest = trend.points[-1].value
    shown = format_duration(newest) if trend.unit == "s" else f"{newest:.4g} {trend.unit}".strip()
    if trend.regression:
        return f"{shown}: worse, {trend.regression}"
    return f"{shown}: as before" if trend.judged else f"{shown}: not judged, {trend.unjudged}"
