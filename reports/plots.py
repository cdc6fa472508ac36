"""Plots of load stages and of what a cluster did, as inline SVG."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("svg")
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from harness.history import Trend
from harness.records import Comparison, LoadResult, SampleBatch, Series
from harness.stats import accepted_counts
from harness.units import format_duration

# Okabe and Ito's colours, told apart by readers with any colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_TICKS = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999)
SPLIT_ALPHA = 0.001
"""Of the band in the plot of a split; the check has its own."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "servecert",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": "#4b5563",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "grid.color": "#e3e6ea",
}


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" class="plot" ', 1)


def _latency_axis(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_duration(value)))
    axis.set_minor_locator(NullLocator())


def percentile_curves(stages: list[tuple[LoadResult, SampleBatch]]) -> str:
    """Latency by percentile; the horizontal axis stretches the tail, each decade as far as the one before."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        furthest = 10.0
        for index, (load, batch) in enumerate(stages):
            ordered = np.sort(batch.latency_s)
            # The last sample's percentile is 1: it is drawn where its rank is, half a rank early.
            shares = (np.arange(ordered.size) + 0.5) / ordered.size
            distance = 1 / (1 - shares)
            keep = np.unique(np.geomspace(1, ordered.size, 400).astype(int))
            places = ordered.size - keep[::-1]
            furthest = max(furthest, float(distance[-1]))
            axes.step(
                distance[places],
                ordered[places],
                where="pre",
                color=COLOURS[index % len(COLOURS)],
                linewidth=1.6,
                label=f"{load.service} ({load.runtime})",
            )
        ticks = [tick for tick in _TICKS if 1 / (1 - tick) <= furthest]
        axes.set_xscale("log")
        axes.set_xlim(1, furthest * 1.05)
        axes.xaxis.set_major_locator(FixedLocator([1.0, *(1 / (1 - tick) for tick in ticks)]))
        names = ["min", *(f"p{tick * 100:.10g}" for tick in ticks)]
        axes.xaxis.set_major_formatter(FixedFormatter(names))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        _latency_axis(axes.yaxis)
        axes.set_ylabel("latency from the due time")
        axes.grid(True)
        figure.legend(frameon=False, loc="outside upper left", fontsize=9, ncols=3)
        return _svg(figure, "Latency by percentile for each load stage")


def timelines(stages: list[tuple[LoadResult, SampleBatch]]) -> str:
    """One panel a stage: median, p99 and maximum by the time a request was due, and errors where they happened."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 2.1 * len(stages) + 0.5), layout="constrained")
        panels = figure.subplots(len(stages), 1, squeeze=False)
        for index, ((load, batch), row) in enumerate(zip(stages, panels, strict=True)):
            axes, colour = row[0], COLOURS[index % len(COLOURS)]
            due, latency = batch.due_ns / 1e9, batch.latency_s
            width = max(0.25, load.duration_s / 80)
            frame = pd.DataFrame({"bin": ((due - due[0]) / width).astype(int), "latency": latency})
            by_time = frame.groupby("bin")["latency"]
            centres = due[0] + (by_time.max().index.to_numpy() + 0.5) * width
            highest = by_time.max().to_numpy()
            medians = by_time.quantile(0.5, interpolation="higher").to_numpy()
            tails = by_time.quantile(0.99, interpolation="higher").to_numpy()
            axes.plot(centres, highest, linestyle="none", marker="_", color="#9aa3ad", label="max")
            axes.plot(centres, tails, color=colour, linewidth=1, alpha=0.55, label="p99")
            axes.plot(centres, medians, color=colour, linewidth=1.8, label="p50")
            bad = batch.error != 0
            if bad.any():
                axes.plot(due[bad], latency[bad], linestyle="none", marker="x", color="#c0262d", label="error")
            axes.set_title(f"{load.step} ({load.runtime})", loc="left", fontsize=10, color="#4b5563")
            axes.set_ylim(bottom=0)
            _latency_axis(axes.yaxis)
            axes.grid(True, axis="y")
            axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
            if index == len(stages) - 1:
                axes.set_xlabel("seconds since the start of the stage")
        return _svg(figure, "Latency over time for each load stage")


def capacity_curve(trials: list[LoadResult], knee_per_s: float | None) -> str:
    """Latency by offered rate over the trials of a search; the median of repeats."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        rates = np.array([load.offered_rate_per_s or 0.0 for load in trials])
        for index, name in enumerate(("p50", "p95", "p99")):
            values = pd.Series([load.latency_s[name] for load in trials]).groupby(rates).median()
            axes.plot(values.index, values.to_numpy(), marker="o", markersize=3.5, color=COLOURS[index], label=name)
        if knee_per_s is not None:
            axes.axvline(knee_per_s, color="#8a929c", linewidth=1, linestyle="--", label="knee")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        _latency_axis(axes.yaxis)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}/s"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("offered rate")
        axes.grid(True)
        figure.legend(frameon=False, loc="outside upper left", fontsize=9, ncols=4)
        return _svg(figure, "Latency by offered rate")


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
_PHASE_COLOURS = (*COLOURS, "#8a929c", "#f0e442")


def replicas(series: Series, batch: SampleBatch | None) -> str:
    """Pods and what the model would have, the load that was offered, and latency, on one time axis."""
    columns = {name: np.array(values) for name, values in series.columns.items()}
    seconds = columns["t_s"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 5.4), layout="constrained")
        pods, offered, latency = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1.2))
        pods.fill_between(
            seconds, columns["low"], columns["high"], step="post", color="#e3e6ea", label="what Knative's model wants"
        )
        pods.step(seconds, columns["ideal"], where="post", color="#8a929c", linestyle=":", label="needed")
        pods.step(seconds, columns["desired"], where="post", color=COLOURS[1], linewidth=1.2, label="desired")
        pods.step(seconds, columns["ready"], where="post", color=COLOURS[0], linewidth=2, label="ready")
        pods.set_ylabel("pods")
        pods.set_ylim(bottom=0)
        pods.yaxis.get_major_locator().set_params(integer=True)
        pods.legend(frameon=False, fontsize=8, ncols=4, loc="upper left")
        pods.set_ylim(top=pods.get_ylim()[1] * 1.2)
        offered.fill_between(seconds, columns["offered_per_s"], step="post", color=COLOURS[2], alpha=0.35)
        offered.set_ylabel("requests/s")
        offered.set_ylim(bottom=0)
        if batch is not None and len(batch):
            frame = pd.DataFrame({"second": (batch.due_ns / 1e9).astype(int), "latency": batch.latency_s})
            by_second = frame.groupby("second")["latency"]
            for name, q, colour in (("p50", 0.5, COLOURS[0]), ("p99", 0.99, COLOURS[3])):
                values = by_second.quantile(q, interpolation="higher")
                latency.plot(values.index + 0.5, values.to_numpy(), color=colour, linewidth=1.4, label=name)
            bad = batch.error != 0
            if bad.any():
                latency.plot(
                    batch.due_ns[bad] / 1e9,
                    batch.latency_s[bad],
                    linestyle="none",
                    marker="x",
                    color="#c0262d",
                    label="error",
                )
            latency.set_yscale("log")
            latency.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            _latency_axis(latency.yaxis)
            latency.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
        latency.set_ylabel("latency")
        latency.set_xlabel("seconds since the start of the load")
        for axes in (pods, offered, latency):
            axes.grid(True, axis="y")
        return _svg(figure, "Pods, offered load and latency over time")


def waterfall(series: Series) -> str:
    """A bar a trial: where the time from the first request to the first byte went."""
    names = [name for name in _PHASES if name in series.columns]
    trials = len(series.columns[names[0]])
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 1.1 + 0.32 * trials), layout="constrained")
        axes = figure.add_subplot()
        left = np.zeros(trials)
        places = np.arange(trials)
        for name, colour in zip(names, _PHASE_COLOURS, strict=False):
            widths = np.array(series.columns[name])
            axes.barh(places, widths, left=left, height=0.62, color=colour, label=_PHASES[name])
            left += widths
        axes.set_yticks(places, [f"trial {place + 1}" for place in places])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        _latency_axis(axes.xaxis)
        axes.grid(True, axis="x")
        axes.set_xlabel("since the first request")
        figure.legend(frameon=False, loc="outside upper left", fontsize=8, ncols=4)
        return _svg(figure, "Cold starts by phase")


_RATIOS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10)
_VERDICT_COLOURS = {"faster": COLOURS[2], "slower": COLOURS[1], "equivalent": COLOURS[0], "undecided": "#8a929c"}


def ratios(rows: list[Comparison]) -> str:
    """Each metric's ratio with its interval, and the margin within which nothing counts."""
    margin = rows[0].margin
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 0.9 + 0.34 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(1 / (1 + margin), 1 + margin, color="#e3e6ea", zorder=0)
        axes.axvline(1, color="#8a929c", linewidth=1)
        for place, row in enumerate(rows):
            colour = _VERDICT_COLOURS[row.verdict]
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
            axes.plot([row.ratio], [place], marker="o", color=colour, markersize=6)
        axes.set_yticks(range(len(rows)), [row.metric for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xscale("log")
        low, high = min(min(row.low for row in rows), 1 / (1 + margin)), max(max(row.high for row in rows), 1 + margin)
        axes.set_xlim(low / 1.03, high * 1.03)
        axes.xaxis.set_minor_locator(NullLocator())
        shown = [tick for tick in _RATIOS if low / 1.03 <= tick <= high * 1.03]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown], fontsize=8)
        axes.grid(True, axis="x")
        axes.set_xlabel("variant over baseline; the band is the margin")
        return _svg(figure, "Ratios with their intervals")


def trend(item: Trend) -> str:
    """A metric over the runs, with its levels and where they change."""
    values = np.array([point.value for point in item.points])
    with matplotlib.rc_context({**_STYLE, "font.size": 8}):
        figure = Figure(figsize=(4.2, 1.7), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(values.size)
        axes.plot(places, values, color="#8a929c", linewidth=1)
        axes.plot(places, values, marker="o", markersize=3.5, linestyle="none", color=COLOURS[0])
        if item.regression:
            axes.plot(places[-1:], values[-1:], marker="o", markersize=6, linestyle="none", color=COLOURS[1])
        edges = [0, *item.changes, values.size]
        for start, end in pairwise(edges):
            level = float(np.median(values[start:end]))
            axes.plot([start, end - 1], [level, level], color=COLOURS[2], linewidth=1.4)
        for place in item.changes:
            axes.axvline(place - 0.5, color=COLOURS[3], linewidth=1, linestyle="--")
        axes.set_ylim(bottom=0)
        if item.unit == "s":
            _latency_axis(axes.yaxis)
        axes.set_xticks([0, values.size - 1], [item.points[0].started[:10], item.points[-1].started[:10]])
        axes.grid(True, axis="y")
        return _svg(figure, f"{item.title} over {values.size} runs")


def split(series: Series) -> str:
    """The candidate's share of each second's answers, what was asked for, and where chance would have it."""
    columns = {name: np.array(values) for name, values in series.columns.items()}
    asked, answers = columns["percent"] / 100, np.maximum(columns["requests"], 1)
    bounds = np.array(
        [accepted_counts(int(n), p, SPLIT_ALPHA) for n, p in zip(answers, asked, strict=True)], dtype=np.float64
    )
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 2.6), layout="constrained")
        axes = figure.add_subplot()
        place = np.arange(asked.size)
        axes.fill_between(
            place,
            100 * bounds[:, 0] / answers,
            100 * bounds[:, 1] / answers,
            color="#e3e6ea",
            label="binomial band, 99.9 %",
        )
        axes.step(place, 100 * asked, where="mid", color="#8a929c", linestyle="--", label="asked for")
        axes.plot(
            place,
            100 * columns["candidate"] / answers,
            marker="o",
            markersize=3.5,
            linestyle="none",
            color=COLOURS[0],
            label="observed",
        )
        axes.set_ylim(0, 100)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_ylabel("the candidate's share")
        axes.set_xlabel("seconds that count, one after the other")
        axes.grid(True, axis="y")
        figure.legend(frameon=False, loc="outside upper left", fontsize=8, ncols=3)
        return _svg(figure, "The candidate's share of the traffic over time")
