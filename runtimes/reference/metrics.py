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
    rows: int = 0
    """Of the requests that succeeded: a batch of five is one request and five inferences."""
    success_ns: int = 0
    fail_ns: int = 0
    last_ms: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * len(BUCKETS_S))


@dataclass
class Observation:
    succeeded: bool = False
    rows: int = 1


class Metrics:
    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    @contextmanager
    def observe(self, model: str) -> Iterator[Observation]:
        """Counts a request as failed unless ``succeeded`` is set before the block ends."""
        series = self._series.setdefault(model, _Series())
        observation = Observation()
        start_ns = time.monotonic_ns()
        try:
            yield observation
        finally:
            elapsed_ns = time.monotonic_ns() - start_ns
            elapsed = elapsed_ns / 1e9
            series.seconds += elapsed
            if observation.succeeded:
                series.successes += 1
                series.rows += observation.rows
                series.success_ns += elapsed_ns
                series.last_ms = time.time_ns() // 1_000_000
            else:
                series.failures += 1
                series.fail_ns += elapsed_ns
            for index, bound in enumerate(BUCKETS_S):
                series.buckets[index] += elapsed <= bound

    def statistics(self, model: str, version: str) -> dict[str, object]:
        """Triton's statistics extension; all of the time counts as computing, nothing is queued."""
        series = self._series.get(model, _Series())

        def part(count: int, ns: int) -> dict[str, int]:
            return {"count": count, "ns": ns}

        return {
            "name": model,
            "version": version,
            "last_inference": series.last_ms,
            "inference_count": series.rows,
            "execution_count": series.successes,
            "inference_stats": {
                "success": part(series.successes, series.success_ns),
                "fail": part(series.failures, series.fail_ns),
                "queue": part(series.successes, 0),
                "compute_input": part(series.successes, 0),
                "compute_infer": part(series.successes, series.success_ns),
                "compute_output": part(series.successes, 0),
            },
            "batch_stats": [],
        }

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
