"""Plots of load stages and of what a cluster did, as figures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("svg")
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from harness.base.units import format_duration
from harness.results.history import Trend
from harness.results.records import Comparison, LoadResult, Series
from harness.results.stats import accepted_counts
from reports.comparisons import title_of
from reports.drawings import STYLE
from reports.palette import (
    ERROR,
    GRID,
    PERCENTILES,
    PHASES,
    PLAN,
    PODS,
    SAME,
    SOFT,
    VERDICTS,
    WORSE,
    styles,
)
from reports.stages import StageView
from reports.tables import COLUMN_TITLES, stage_label

_P = ParamSpec("_P")
WIDTH = 8.6
"""Inches."""
_TICKS = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999)
SPLIT_ALPHA = 0.001
"""Of the band in the plot of a split; the check has its own."""


def _styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    @functools.wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def _latency_axis(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_duration(value)))
    axis.set_minor_locator(NullLocator())


def _log_latency(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    _latency_axis(axis)


def _titled(name: str) -> str:
    return COLUMN_TITLES.get(name, name)


@_styled
def percentile_curves(views: Sequence[StageView]) -> Figure:
    """Latency by percentile; the horizontal axis stretches the tail, each decade as far as the one before."""
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    axes = figure.add_subplot()
    furthest = max([10.0, *(float(view.curve_distance[-1]) for view in views if view.curve_distance.size)])
    for view, (colour, line) in zip(views, styles(view.load.runtime for view in views), strict=True):
        axes.step(
            view.curve_distance, view.curve_s, where="pre", color=colour, linestyle=line, linewidth=1.6,
            label=stage_label(view.load),
        )  # fmt: skip
    ticks = [tick for tick in _TICKS if 1 / (1 - tick) <= furthest]
    axes.set_xscale("log")
    axes.set_xlim(1, furthest * 1.05)
    axes.xaxis.set_major_locator(FixedLocator([1.0, *(1 / (1 - tick) for tick in ticks)]))
    axes.xaxis.set_major_formatter(FixedFormatter(["min", *(f"p{tick * 100:.10g}" for tick in ticks)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    _log_latency(axes.yaxis)
    axes.set_ylabel("latency from the due time")
    axes.grid(True)
    figure.legend(frameon=False, loc="outside upper left", fontsize=9, ncols=2)
    return figure


@_styled
def distributions(views: Sequence[StageView]) -> Figure:
    """How latencies are spread: the share at or below each (CDF), and how many there are of each (histogram)."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    shares, bars = figure.subplots(1, 2)
    for view, (colour, line) in zip(views, styles(view.load.runtime for view in views), strict=True):
        style: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 1.5}
        shares.step(view.curve_s, view.curve_share, where="post", label=stage_label(view.load), **style)
        bars.stairs(view.bar_counts / view.load.requests, view.bar_edges_s, fill=len(views) == 1, alpha=0.85, **style)
    shares.set_ylim(0, 1.02)
    shares.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    shares.set_ylabel("requests answered within")
    bars.set_ylim(bottom=0)
    bars.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}" if value < 0.01 else f"{value:.0%}"))
    bars.set_ylabel("share of requests")
    for axes in (shares, bars):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
        _latency_axis(axes.xaxis)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("latency from the due time")
        axes.grid(True)
    figure.legend(*shares.get_legend_handles_labels(), frameon=False, loc="outside upper left", fontsize=9, ncols=2)
    return figure


@_styled
def timeline(view: StageView) -> Figure:
    """A stage over time, by when requests were due: latency, what was offered and what was answered, errors, and how
    late the generator itself was; with what happened on the cluster meanwhile."""
    bins, failed = view.bins, bool(view.errors)
    heights = [2.2, 1.1, *([0.7] if failed else []), 0.8]
    figure = Figure(figsize=(WIDTH, 0.7 + 0.85 * sum(heights)), layout="constrained")
    panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    latency, rates, lag = panels[0], panels[1], panels[-1]
    seconds = bins.middle_s
    latency.plot(seconds, bins.max_s, linestyle="none", marker="_", color=PERCENTILES["max"], label="max")
    latency.plot(seconds, bins.p99_s, color=PERCENTILES["p99"], linewidth=1.1, label="p99")
    latency.plot(seconds, bins.p50_s, color=PERCENTILES["p50"], linewidth=1.8, label="p50")
    latency.set_ylim(bottom=0)
    latency.set_ylabel("latency")
    _latency_axis(latency.yaxis)
    rates.step(seconds, bins.due_per_s, where="mid", color=PLAN, linestyle="--", linewidth=1, label="due")
    rates.step(seconds, bins.completed_per_s, where="mid", color=PODS["offered"], linewidth=1.3, label="answered")
    rates.set_ylim(bottom=0)
    rates.set_ylabel("requests/s")
    if failed:
        width = float(np.diff(seconds).mean()) if seconds.size > 1 else 1.0
        panels[2].bar(seconds, bins.errors, width=width, color=ERROR, label="errors")
        panels[2].set_ylabel("errors")
        panels[2].yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lag.plot(seconds, bins.lag_p99_s, color=PERCENTILES["p99"], linewidth=1, label="send lag p99")
    lag.set_ylim(bottom=0)
    lag.set_ylabel("send lag")
    lag.yaxis.set_major_locator(MaxNLocator(3))
    _latency_axis(lag.yaxis)
    lag.set_xlabel("seconds since the start of the stage")
    for place, (moment_s, _) in enumerate(view.marks, 1):
        for axes in panels:
            axes.axvline(moment_s, color=SOFT, linewidth=0.8, linestyle=":")
        latency.annotate(
            str(place), (moment_s, 1), xycoords=("data", "axes fraction"), fontsize=7, ha="center", va="bottom"
        )
    for axes in panels:
        axes.grid(True, axis="y")
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 0.97), borderpad=0)
    return figure


@_styled
def capacity_curve(trials: Sequence[LoadResult], knee_per_s: float | None) -> Figure:
    """Latency by offered rate over the trials of a search; the median of repeats."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.add_subplot()
    rates = np.array([load.offered_rate_per_s or 0.0 for load in trials])
    for name in ("p50", "p95", "p99"):
        values = pd.Series([load.latency_s[name] for load in trials]).groupby(rates).median()
        values = values[np.isfinite(values)]  # where that many failed there is no latency
        axes.plot(
            values.index, values.to_numpy(), marker="o", markersize=3.5, color=PERCENTILES[name], label=_titled(name)
        )
    if knee_per_s is not None:
        axes.axvline(knee_per_s, color=PLAN, linewidth=1, linestyle="--", label="knee")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _log_latency(axes.yaxis)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}/s"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("offered rate")
    axes.grid(True)
    figure.legend(frameon=False, loc="outside upper left", fontsize=9, ncols=4)
    return figure


_PHASES = {
    "created": "pod created",
    "node": "node added",
    "scheduled": "scheduled",
    "storage": "model downloaded",
    "image": "image pulled",
    "started": "process started",
    "ready": "ready",
    "first_byte": "first byte",
}


@_styled
def replicas(series: Series, view: StageView | None) -> Figure:
    """Pods and what the model would have, the load that was offered, and latency, on one time axis."""
    columns = {name: np.array(values) for name, values in series.columns.items()}
    seconds = columns["t_s"]
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    pods, offered, latency = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1.2))
    pods.fill_between(
        seconds, columns["low"], columns["high"], step="post", color=GRID, label="what Knative's model wants"
    )
    pods.step(seconds, columns["ideal"], where="post", color=PLAN, linestyle=":", label="needed")
    pods.step(seconds, columns["desired"], where="post", color=PODS["desired"], linewidth=1.2, label="desired")
    pods.step(seconds, columns["ready"], where="post", color=PODS["ready"], linewidth=2, label="ready")
    pods.set_ylabel("pods")
    pods.set_ylim(bottom=0)
    pods.yaxis.get_major_locator().set_params(integer=True)
    pods.legend(frameon=False, fontsize=8, ncols=4, loc="upper left")
    pods.set_ylim(top=pods.get_ylim()[1] * 1.2)
    offered.fill_between(seconds, columns["offered_per_s"], step="post", color=PODS["offered"], alpha=0.35)
    offered.set_ylabel("requests/s")
    offered.set_ylim(bottom=0)
    if view is not None:
        table = view.seconds
        for name in ("p50", "p99"):
            latency.plot(table["second"] + 0.5, table[f"{name}_s"], color=PERCENTILES[name], linewidth=1.4, label=name)
        bad = table[table["errors"] > 0]
        if len(bad):
            latency.plot(
                bad["second"] + 0.5,
                bad["max_s"],
                linestyle="none",
                marker="x",
                color=ERROR,
                label="errors in this second",
            )
        latency.set_yscale("log")
        _log_latency(latency.yaxis)
        latency.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    latency.set_ylabel("latency")
    latency.set_xlabel("seconds since the start of the load")
    for axes in (pods, offered, latency):
        axes.grid(True, axis="y")
    return figure


@_styled
def waterfall(series: Series) -> Figure:
    """A bar a trial: where the time from the first request to the first byte went. One without an answer has none."""
    names = [name for name in _PHASES if name in series.columns]
    trials = len(series.columns[names[0]])
    answered = np.isfinite([series.columns[name] for name in names]).all(axis=0)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.32 * trials), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(trials)
    places = np.arange(trials)
    for name, colour in zip(names, PHASES, strict=False):
        widths = np.where(answered, series.columns[name], 0.0)
        axes.barh(places, widths, left=left, height=0.62, color=colour, label=_PHASES[name])
        left += widths
    for place in np.flatnonzero(~answered):
        axes.annotate(
            "no answer", (0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=ERROR
        )
    axes.set_yticks(places, [f"trial {place + 1}" for place in places])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    _latency_axis(axes.xaxis)
    axes.grid(True, axis="x")
    axes.set_xlabel("since the first request")
    figure.legend(frameon=False, loc="outside upper left", fontsize=8, ncols=4)
    return figure


_RATIOS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10)


@_styled
def ratios(rows: list[Comparison]) -> Figure:
    """Each metric's ratio with its interval, and the margin within which nothing counts."""
    margin = rows[0].margin
    figure = Figure(figsize=(WIDTH, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(1 / (1 + margin), 1 + margin, color=GRID, zorder=0)
    axes.axvline(1, color=PLAN, linewidth=1)
    for place, row in enumerate(rows):
        colour = VERDICTS[row.verdict]
        if not all(math.isfinite(number) for number in (row.ratio, row.low, row.high)):
            words = f"no ratio: {row.verdict}"
            axes.annotate(words, (1, place), (6, 0), textcoords="offset points", va="center", color=colour, fontsize=8)
            continue
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([row.ratio], [place], marker="o", color=colour, markersize=6)
    axes.set_yticks(range(len(rows)), [title_of(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    ends = [end for row in rows for end in (row.low, row.high) if math.isfinite(end)]
    low, high = min([*ends, 1 / (1 + margin)]), max([*ends, 1 + margin])
    axes.set_xlim(low / 1.03, high * 1.03)
    axes.xaxis.set_minor_locator(NullLocator())
    shown = [tick for tick in _RATIOS if low / 1.03 <= tick <= high * 1.03]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown], fontsize=8)
    axes.grid(True, axis="x")
    axes.set_xlabel("variant over baseline; the band is the margin")
    return figure


@_styled
def trend(item: Trend) -> Figure:
    """A metric over the runs, with its levels and where they change."""
    values = np.array([point.value for point in item.points])
    figure = Figure(figsize=(4.2, 1.7), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(values.size)
    axes.plot(places, values, color=PLAN, linewidth=1)
    axes.plot(places, values, marker="o", markersize=3.5, linestyle="none", color=SAME)
    if item.regression:
        axes.plot(places[-1:], values[-1:], marker="o", markersize=6, linestyle="none", color=WORSE)
    edges = [0, *item.changes, values.size]
    for start, end in pairwise(edges):
        level = float(np.median(values[start:end]))
        axes.plot([start, end - 1], [level, level], color=SOFT, linewidth=1.4)
    for place in item.changes:
        axes.axvline(place - 0.5, color=WORSE, linewidth=1, linestyle="--")
    axes.set_ylim(bottom=0)
    if item.unit == "s":
        _latency_axis(axes.yaxis)
    axes.set_xticks([0, values.size - 1], [item.points[0].started[:10], item.points[-1].started[:10]])
    axes.grid(True, axis="y")
    return figure


@_styled
def split(series: Series) -> Figure:
    """The candidate's share of each second's answers, what was asked for, and where chance would have it."""
    columns = {name: np.array(values) for name, values in series.columns.items()}
    asked, answers = columns["percent"] / 100, np.maximum(columns["requests"], 1)
    bounds = np.array(
        [accepted_counts(int(n), p, SPLIT_ALPHA) for n, p in zip(answers, asked, strict=True)], dtype=np.float64
    )
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(asked.size)
    axes.fill_between(
        place,
        100 * bounds[:, 0] / answers,
        100 * bounds[:, 1] / answers,
        color=GRID,
        label="binomial band, 99.9 %",
    )
    axes.step(place, 100 * asked, where="mid", color=PLAN, linestyle="--", label="asked for")
    axes.plot(
        place,
        100 * columns["candidate"] / answers,
        marker="o",
        markersize=3.5,
        linestyle="none",
        color=SAME,
        label="observed",
    )
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_ylabel("the candidate's share")
    axes.set_xlabel("seconds that count, one after the other")
    axes.grid(True, axis="y")
    figure.legend(frameon=False, loc="outside upper left", fontsize=8, ncols=3)
    return figure


@_styled
def lines(series: Series) -> Figure:
    """Each column over the first, below one another: of a kind of series that nothing else is drawn for."""
    (first, places), *others = series.columns.items()
    figure = Figure(figsize=(WIDTH, 0.6 + 1.4 * max(len(others), 1)), layout="constrained")
    rows = figure.subplots(max(len(others), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(rows, others, strict=False):
        axes.plot(places, values, marker="o", markersize=3.5, color=SAME)
        axes.set_ylabel(name)
        axes.grid(True, axis="y")
    rows[-1].set_xlabel(first)
    return figure


_DRAWN: dict[str, tuple[Callable[[Series, StageView | None], Figure], str]] = {
    "replicas": (replicas, "Pods, offered load and latency over time"),
    "cold-start": (lambda series, _: waterfall(series), "Cold starts by phase"),
    "split": (lambda series, _: split(series), "The candidate's share of the traffic over time"),
}


def of_series(series: Series, stage: StageView | None) -> tuple[Figure, str]:
    """The drawing of a series of a step, and what it shows in words. ``stage`` is the step's load, where it has one."""
    if series.kind in _DRAWN:
        draw, label = _DRAWN[series.kind]
        return draw(series, stage), label
    return lines(series), f"{series.kind}: each column over {next(iter(series.columns))}"
