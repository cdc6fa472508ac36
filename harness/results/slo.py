"""Service level objectives as people write them: ``p99 < 50ms``, ``errors < 0.1%``, ``rate >= 99% of 200/s``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from harness.base.errors import MeasurementError, UsageError
from harness.base.units import format_duration, parse_duration, parse_rate, parse_share
from harness.results.records import LoadResult
from harness.results.stats import PERCENTILES

OPERATORS: dict[str, Callable[[float, float], bool]] = {
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

    @property
    def kind(self) -> str:
        """``latency``, ``ttft``, ``gap``, ``errors`` or ``rate``."""
        kind, _, name = self.metric.rpartition(".")
        return kind or (name if name in ("errors", "rate") else "latency")

    @property
    def statistic(self) -> str:
        """Of a latency: ``p50`` … ``p99_9``, ``max`` or ``mean``."""
        return self.metric.rpartition(".")[2]

    @property
    def upper(self) -> bool:
        """Whether it bounds its metric from above."""
        return self.operator in ("<", "<=")

    @property
    def bounds_latency_above(self) -> bool:
        return self.upper and self.kind == "latency"

    def holds(self, value: float) -> bool:
        return OPERATORS[self.operator](value, self.threshold)

    def observed(self, result: LoadResult) -> float:
        """Infinite for a percentile of latency that failed requests have reached."""
        if self.kind == "errors":
            return result.errors / result.requests
        if self.kind == "rate":
            return result.achieved_rate_per_s
        if self.kind == "latency":
            return result.latency_s[self.statistic]
        values = result.streaming.get(f"{self.kind}_s", {})
        if self.statistic not in values:
            raise MeasurementError(f"{self.text!r}: the stage {result.step} had no streamed answer to judge")
        return values[self.statistic]

    def met(self, result: LoadResult) -> bool:
        """Whether the sample keeps it. Whether that says anything of the service is for ``objectives.py``."""
        return self.holds(self.observed(result))

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
            most = parse_share(value)
            if not 0 <= most <= 1 or (comparison == "<" and most == 0):
                raise ValueError("expected a share between 0% and 100%; 'errors <= 0%' asks that no request fails")
            return Objective(text, metric, comparison, most)
        if metric == "rate":
            share, _, rate = value.rpartition(" of ")
            factor = parse_share(share) if share else 1.0
            return Objective(text, metric, comparison, factor * parse_rate(rate))
    except ValueError as error:
        raise UsageError(f"SLO {text!r}: {error}") from None
    raise UsageError(f"SLO {text!r}: unknown metric {metric!r}; expected one of {names}")


DEFAULT_ERRORS = parse_slo("errors < 1%")
"""Of a stage whose objectives say nothing about errors."""


def with_errors(objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
    """What a stage is judged by: an objective for errors is always among it."""
    if any(objective.kind == "errors" for objective in objectives):
        return objectives
    return (*objectives, DEFAULT_ERRORS)
