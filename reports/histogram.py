"""A load stage as a histogram log that HdrHistogram's tools read."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np

from harness.base.columns import let_go
from harness.results.records import LoadResult, SampleBatch

HISTOGRAM_DIGITS = 3
HIGHEST_NS = 3600 * 10**9
MOST_INTERVALS = 300


def histogram_log(load: LoadResult, batch: SampleBatch) -> str:
    """Latencies in nanoseconds at three significant digits, in HdrHistogram's log format, an interval a second (or
    longer, for long stages). Requests that failed are not in it: they have no latency, however soon they failed."""
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
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        histogram = HdrHistogram(1, HIGHEST_NS, HISTOGRAM_DIGITS)
        fine = batch.error[low:high] == 0
        latency_ns = np.clip((batch.done_ns[low:high] - batch.due_ns[low:high])[fine], 1, HIGHEST_NS)
        values, counts = np.unique(_coarse(latency_ns), return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            histogram.record_value(value, count)
        start_ns = begin + index * width
        writer.output_interval_histogram(
            histogram, start_ns / 1e9, min(start_ns + width, begin + span) / 1e9, 1_000_000.0
        )
    let_go(batch.done_ns, batch.due_ns)
    return text.getvalue()


def _coarse(values: np.ndarray) -> np.ndarray:
    """The lowest value of each value's bucket: what the histogram tells apart anyway, and far fewer of them."""
    bits = np.maximum(np.frexp(values.astype(np.float64))[1] - 11, 0)
    lowest: np.ndarray = (values >> bits) << bits
    return lowest
