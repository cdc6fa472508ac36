"""Load stages over time, as data: a table by the second, and a histogram log that HdrHistogram's tools read."""

from __future__ import annotations

import io
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

from harness.records import LoadResult, SampleBatch
from harness.stats import PERCENTILES, percentile

HISTOGRAM_DIGITS = 3
HIGHEST_NS = 3600 * 10**9
MOST_INTERVALS = 300


def per_second(batch: SampleBatch) -> pd.DataFrame:
    """One row a second of the stage, whether or not anything was due in it.

    ``due``, ``sent``, ``completed`` (without an error) and ``errors`` are counts of what happened in that second;
    ``in_flight`` is how many requests were due and not done at its end; the percentiles, in seconds, are of the
    requests due in it (nearest rank; empty where none was).
    """
    import pandas as pd  # takes a second, which commands that measure nothing need not spend

    begin = int(batch.due_ns[0] // 10**9)
    end = int(batch.done_ns.max() // 10**9)
    rows = np.arange(begin, end + 1)

    def counts(moments_ns: np.ndarray) -> np.ndarray:
        return np.bincount(moments_ns // 10**9 - begin, minlength=rows.size)[: rows.size]

    failed = batch.error != 0
    sent = batch.sent_ns[batch.sent_ns >= begin * 10**9]
    due, done = counts(batch.due_ns), counts(batch.done_ns)
    table = pd.DataFrame(
        {
            "second": rows,
            "due": due,
            "sent": counts(sent),
            "completed": counts(batch.done_ns[~failed]),
            "errors": counts(batch.done_ns[failed]),
            "in_flight": np.cumsum(due) - np.cumsum(done),
        }
    )
    edges = np.searchsorted(batch.due_ns, (np.append(rows, end + 1)) * 10**9)
    latency = batch.latency_s
    parts = [np.sort(latency[low:high]) for low, high in itertools.pairwise(edges)]
    for name, q in PERCENTILES.items():
        table[f"{name}_s"] = [percentile(part, q) if part.size else math.nan for part in parts]
    table["max_s"] = [float(part[-1]) if part.size else math.nan for part in parts]
    return table


def histogram_log(load: LoadResult, batch: SampleBatch) -> str:
    """Latencies in nanoseconds at three significant digits, in HdrHistogram's log format, an interval a second (or
    longer, for long stages). Errors are in it: a request that failed waited too."""
    from hdrh.histogram import HdrHistogram
    from hdrh.log import HistogramLogWriter

    text = io.StringIO()
    writer = HistogramLogWriter(text)
    writer.output_log_format_version()
    writer.output_comment(f"{load.step} of {load.service}: {load.offered}; latency in ns, from the due time")
    writer.output_legend()
    begin = int(batch.due_ns[0])
    span = int(batch.due_ns[-1]) - begin + 1
    width = max(1, math.ceil(span / 10**9 / MOST_INTERVALS)) * 10**9
    edges = np.searchsorted(batch.due_ns, begin + np.arange(0, span + width, width))
    latency_ns = np.clip(batch.done_ns - batch.due_ns, 1, HIGHEST_NS)
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        histogram = HdrHistogram(1, HIGHEST_NS, HISTOGRAM_DIGITS)
        values, counts = np.unique(_coarse(latency_ns[low:high]), return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            histogram.record_value(value, count)
        start_ns = begin + index * width
        writer.output_interval_histogram(
            histogram, start_ns / 1e9, min(start_ns + width, begin + span) / 1e9, 1_000_000.0
        )
    return text.getvalue()


def _coarse(values: np.ndarray) -> np.ndarray:
    """The lowest value of each value's bucket: what the histogram tells apart anyway, and far fewer of them."""
    bits = np.maximum(np.frexp(values.astype(np.float64))[1] - 11, 0)
    lowest: np.ndarray = (values >> bits) << bits
    return lowest
