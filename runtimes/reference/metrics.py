"""Prometheus text exposition (format 0.0.4): requests by outcome and a histogram of durations, a model each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class _Series:
    successes: int = 0
    failures: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * len(BUCKETS_S))


@dataclass
class Observation:
    succeeded: bool = False


class Metrics:
    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    @contextmanager
    def observe(self, model: str) -> Iterator[Observation]:
        """Counts a request as failed unless ``succeeded`` is set before the block ends."""
        series = self._series.setdefault(model, _Series())
        observation = Observation()
        start = time.monotonic()
        try:
            yield observation
        finally:
            elapsed = time.monotonic() - start
            series.seconds += elapsed
            if observation.succeeded:
                series.successes += 1
            else:
                series.failures += 1
            for index, bound in enumerate(BUCKETS_S):
                series.buckets[index] += elapsed <= bound

    def text(self) -> str:
        lines = [
            "# HELP servecert_inference_requests_total Inference requests by model and outcome.",
            "# TYPE servecert_inference_requests_total counter",
        ]
        for model, series in self._series.items():
            for outcome, count in (("success", series.successes), ("failure", series.failures)):
                lines.append(f'servecert_inference_requests_total{{model="{model}",outcome="{outcome}"}} {count}')
        name = "servecert_inference_duration_seconds"
        lines += [f"# HELP {name} Time to answer an inference request.", f"# TYPE {name} histogram"]
        for model, series in self._series.items():
            total = series.successes + series.failures
            for bound, count in zip(BUCKETS_S, series.buckets, strict=True):
                lines.append(f'{name}_bucket{{model="{model}",le="{bound}"}} {count}')
            lines.append(f'{name}_bucket{{model="{model}",le="+Inf"}} {total}')
            lines.append(f'{name}_sum{{model="{model}"}} {series.seconds}')
            lines.append(f'{name}_count{{model="{model}"}} {total}')
        return "\n".join(lines) + "\n"
