"""Service level objectives as people write them: ``p99 < 50ms``, ``errors < 0.1%``, ``rate >= 99% of 200/s``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from harness.errors import MeasurementError, UsageError
from harness.records import LoadResult
from harness.stats import PERCENTILES
from harness.units import format_duration, parse_duration, parse_rate, parse_share

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EXPRESSION = re.compile(r"((?:(?:ttft|gap)\s+)?[a-z0-9_.]+)\s*(<=|>=|<|>)\s*(.+)")
_LATENCIES = {**{name: name for name in PERCENTILES}, "p99.9": "p99_9", "max": "max", "mean": "mean"}
_STREAMED = {f"{kind} {name}": f"{kind}.{key}" for kind in ("ttft", "gap") for name, key in _LATENCIES.items()}
"""Time to first token, and the gaps between tokens, of streamed answers."""


@dataclass(frozen=True)
class Objective:
    """``metric`` is a latency (seconds), ``errors`` (a share of requests) or ``rate`` (successes a second)."""

    text: str
    metric: str
    operator: str
    threshold: float

    def observed(self, result: LoadResult) -> float:
        if self.metric == "errors":
            return result.errors / result.requests
        if self.metric == "rate":
            return result.achieved_rate_per_s
        kind, _, name = self.metric.rpartition(".")
        if kind:
            values = result.streaming.get(f"{kind}_s", {})
            if name not in values:
                raise MeasurementError(f"{self.text!r}: the stage {result.step} had no streamed answer to judge")
            return values[name]
        return result.latency_s[self.metric]

    def met(self, result: LoadResult) -> bool:
        return _OPERATORS[self.operator](self.observed(result), self.threshold)

    @property
    def bounds_latency_above(self) -> bool:
        return self.operator in ("<", "<=") and self.metric not in ("errors", "rate")

    def describe(self, value: float) -> str:
        if self.metric == "errors":
            return f"{value:.3%}"
        if self.metric == "rate":
            return f"{value:.2f}/s"
        return format_duration(value)


def parse_slo(text: str) -> Objective:
    """Raises UsageError naming what is allowed."""
    match = _EXPRESSION.fullmatch(text.strip())
    names = ", ".join([*_LATENCIES, "errors", "rate", "ttft p99", "gap p99"])
    if match is None:
        raise UsageError(
            f"SLO {text!r}: expected METRIC < VALUE, such as 'p99 < 50ms', 'errors < 0.1%' or 'rate >= 99% of 200/s'"
            f" (metrics: {names})"
        )
    metric, comparison, value = match.groups()
    try:
        if metric in _LATENCIES:
            return Objective(text, _LATENCIES[metric], comparison, parse_duration(value))
        if " ".join(metric.split()) in _STREAMED:
            return Objective(text, _STREAMED[" ".join(metric.split())], comparison, parse_duration(value))
        if metric == "errors":
            return Objective(text, metric, comparison, parse_share(value))
        if metric == "rate":
            share, _, rate = value.rpartition(" of ")
            factor = parse_share(share) if share else 1.0
            return Objective(text, metric, comparison, factor * parse_rate(rate))
    except ValueError as error:
        raise UsageError(f"SLO {text!r}: {error}") from None
    raise UsageError(f"SLO {text!r}: unknown metric {metric!r}; expected one of {names}")
