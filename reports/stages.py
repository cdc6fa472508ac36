"""A stage of load as reports show it: everything is worked out once, of any number of samples, into few points.

``latency`` counts from the due time and is infinite where a request failed, as everywhere. Curves end where only failed
requests are left; what is drawn over time is of those that succeeded, beside the errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.base.columns import let_go, pieces
from harness.results.dependence import share_interval
from harness.results.records import LoadResult, SampleBatch, TimelineEvent
from harness.results.stats import PERCENTILES, percentile

if TYPE_CHECKING:
    import pandas as pd

CURVE_POINTS = 400
BARS = 80
BINS = 160
LEAST_BIN_S = 0.25
MOST_MARKS = 20
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ErrorRow:
    """One class of errors. Seconds count from the start of the stage, of the requests' due times."""

    name: str
    count: int
    share: float
    low: float
    high: float
    """95 % interval of the share, for requests that depend on each other."""
    first_s: float
    last_s: float


@dataclass(frozen=True)
class Bins:
    """A stage in equal pieces of time, by when requests were due. NaN where none was."""

    middle_s: Floats
    p50_s: Floats
    p99_s: Floats
    max_s: Floats
    lag_p99_s: Floats
    due_per_s: Floats
    completed_per_s: Floats
    errors: Counts


@dataclass(frozen=True)
class StageView:
    load: LoadResult
    curve_distance: Floats
    """1 / (1 - share) of some ranks, which stretches the tail."""
    curve_s: Floats
    """The latencies at these ranks, ascending."""
    curve_share: Floats
    """How many samples are at or below each, as a share."""
    bar_edges_s: Floats
    bar_counts: Counts
    """A histogram over edges of equal ratio."""
    bins: Bins
    errors: list[ErrorRow]
    marks: list[tuple[float, str]]
    """What happened on the cluster meanwhile: seconds from the start, and what."""
    seconds: pd.DataFrame
    """The table by the second."""


def view(load: LoadResult, batch: SampleBatch, events: Sequence[TimelineEvent] = ()) -> StageView:
    latency = batch.latency_s
    bins = _bins(load, batch, latency)
    table = per_second(batch, latency)
    latency.sort()
    fine = latency[: int(np.searchsorted(latency, np.inf))]
    ranks = np.unique(np.geomspace(1, latency.size, CURVE_POINTS).astype(np.int64))
    places = latency.size - ranks[::-1]
    places = places[places < fine.size]
    # The last sample's percentile is 1: it is drawn where its rank is, half a rank early.
    shares = (places + 0.5) / latency.size
    edges, counts = _bars(fine)
    return StageView(
        load=load,
        curve_distance=1 / (1 - shares),
        curve_s=latency[places],
        curve_share=(places + 1) / latency.size,
        bar_edges_s=edges,
        bar_counts=counts,
        bins=bins,
        errors=_errors(batch),
        marks=_marks(load, events),
        seconds=table,
    )


def _bars(ordered: Floats) -> tuple[Floats, Counts]:
    if not ordered.size:
        return np.geomspace(1e-3, 1.0, BARS + 1), np.zeros(BARS, np.int64)
    low, high = max(float(ordered[0]), 1e-7), max(float(ordered[-1]), 1e-7)
    edges = np.geomspace(low, max(high, low * 1.01) * (1 + 1e-9), BARS + 1)
    reached = np.searchsorted(ordered, edges)
    reached[0], reached[-1] = 0, ordered.size
    return edges, np.diff(reached)


def _bins(load: LoadResult, batch: SampleBatch, latency: Floats) -> Bins:
    begin, span = int(batch.due_ns[0]), int(batch.due_ns[-1]) - int(batch.due_ns[0]) + 1
    count = int(min(BINS, max(1.0, load.duration_s / LEAST_BIN_S)))
    edges_ns = begin + np.rint(np.linspace(0, span, count + 1)).astype(np.int64)
    edges = np.searchsorted(batch.due_ns, edges_ns)
    values: dict[str, list[float]] = {name: [] for name in ("p50", "p99", "max", "lag")}
    errors = []
    for low, high in itertools.pairwise(edges.tolist()):
        part = _succeeded(latency[low:high])
        dispatched = batch.dispatched_ns[low:high]
        lag = np.sort((dispatched - batch.due_ns[low:high])[dispatched >= 0]) / 1e9
        values["p50"].append(percentile(part, 0.5) if part.size else math.nan)
        values["p99"].append(percentile(part, 0.99) if part.size else math.nan)
        values["max"].append(float(part[-1]) if part.size else math.nan)
        values["lag"].append(percentile(lag, 0.99) if lag.size else math.nan)
        errors.append(int(np.count_nonzero(batch.error[low:high])))
    let_go(batch.due_ns, batch.dispatched_ns, batch.error)
    completed = _counts(batch, edges_ns, batch.done_ns, fine=True)
    seconds = np.maximum(np.diff(edges_ns), 1) / 1e9
    return Bins(
        middle_s=(edges_ns[:-1] + edges_ns[1:]) / 2e9,
        p50_s=np.array(values["p50"]),
        p99_s=np.array(values["p99"]),
        max_s=np.array(values["max"]),
        lag_p99_s=np.array(values["lag"]),
        due_per_s=np.diff(edges) / seconds,
        completed_per_s=completed / seconds,
        errors=np.array(errors, np.int64),
    )


def _succeeded(latency: Floats) -> Floats:
    """Ascending."""
    return np.sort(latency[np.isfinite(latency)])


def _counts(batch: SampleBatch, edges_ns: Counts, moments_ns: Counts, *, fine: bool) -> Counts:
    """How many requests that failed (or, with ``fine``, did not) had their moment between each two edges."""
    counts = np.zeros(edges_ns.size - 1, np.int64)
    for part in pieces(len(batch)):
        place = np.searchsorted(edges_ns, moments_ns[part][(batch.error[part] == 0) == fine], side="right") - 1
        place = place[(place >= 0) & (place < counts.size)]
        counts += np.bincount(place, minlength=counts.size)
    let_go(moments_ns, batch.error)
    return counts


def per_second(batch: SampleBatch, latency_s: Floats | None = None) -> pd.DataFrame:
    """One row a second of the stage, whether or not anything was due in it.

    ``due``, ``sent``, ``completed`` (without an error) and ``errors`` are counts of what happened in that second;
    ``in_flight`` is how many requests were due and not done at its end; the percentiles, in seconds, are of the
    requests due in it that succeeded (nearest rank; empty where none did). ``latency_s`` is the batch's, where it is at
    hand.
    """
    import pandas as pd  # takes a second, which commands that measure nothing need not spend

    latency = batch.latency_s if latency_s is None else latency_s
    begin = int(batch.due_ns[0] // 10**9)
    end = max(int(batch.done_ns[part].max()) for part in pieces(len(batch))) // 10**9
    rows = np.arange(begin, end + 1)
    edges_ns = np.append(rows, end + 1) * 10**9
    edges = np.searchsorted(batch.due_ns, edges_ns)
    due = np.diff(edges)
    completed = _counts(batch, edges_ns, batch.done_ns, fine=True)
    errors = _counts(batch, edges_ns, batch.done_ns, fine=False)
    sent = np.zeros(rows.size, np.int64)
    for part in pieces(len(batch)):
        moments = batch.sent_ns[part]
        place = moments[moments >= begin * 10**9] // 10**9 - begin
        sent += np.bincount(place, minlength=rows.size)[: rows.size]
    let_go(batch.sent_ns, batch.done_ns, batch.due_ns)
    table = pd.DataFrame(
        {
            "second": rows,
            "due": due,
            "sent": sent,
            "completed": completed,
            "errors": errors,
            "in_flight": np.cumsum(due) - np.cumsum(completed + errors),
        }
    )
    parts = [_succeeded(latency[low:high]) for low, high in itertools.pairwise(edges)]
    for name, q in PERCENTILES.items():
        table[f"{name}_s"] = [percentile(part, q) if part.size else math.nan for part in parts]
    table["max_s"] = [float(part[-1]) if part.size else math.nan for part in parts]
    return table


def _errors(batch: SampleBatch) -> list[ErrorRow]:
    rows = []
    total = len(batch)
    for kind, count in enumerate(np.bincount(batch.error, minlength=len(batch.error_classes)).tolist()):
        if not kind or not count:
            continue
        which = batch.error == kind
        first, last = int(np.argmax(which)), total - 1 - int(np.argmax(which[::-1]))
        low, high = share_interval(which)
        rows.append(
            ErrorRow(
                batch.error_classes[kind],
                count,
                count / total,
                low,
                high,
                float(batch.due_ns[first]) / 1e9,
                float(batch.due_ns[last]) / 1e9,
            )
        )
    return sorted(rows, key=lambda row: -row.count)


def _marks(load: LoadResult, events: Sequence[TimelineEvent]) -> list[tuple[float, str]]:
    """What the harness says of its own steps is no event of the cluster."""
    if load.started_s is None:
        return []
    length_s = load.warmup_s + load.duration_s
    inside = [
        (round(event.monotonic_s - load.started_s, 3), f"{event.object}: {event.what}")
        for event in sorted(events, key=lambda event: event.monotonic_s)
        if event.source != "servecert" and 0 <= event.monotonic_s - load.started_s <= length_s
    ]
    return inside[:MOST_MARKS]
