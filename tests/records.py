"""Records to build runs from in tests of what reads them."""

from __future__ import annotations

from typing import Any

from harness.results.records import CheckResult, Deviation, Exchange, Level, LoadResult, Outcome


def check(
    check_id: str = "rest.infer.status",
    outcome: Outcome = Outcome.PASSED,
    level: Level = Level.MUST,
    service: str = "svc",
    deviation: str = "",
    **fields: Any,
) -> CheckResult:
    values: dict[str, Any] = {
        "suite": "conformance",
        "runtime": "mlserver@1.7.1",
        "requirement": "A valid request is answered 200.",
        "source": "Open Inference Protocol, inference_rest.md, Inference",
        "expected": "200",
        "observed": "500",
        "evidence": (Exchange("curl -X POST http://h/v2", "{}", "500 (text/html)", "<b>oops</b>"),),
        "step": "1",
        **fields,
    }
    return CheckResult(
        id=check_id,
        level=level,
        outcome=outcome,
        service=service,
        deviation=Deviation(deviation, "https://example.test/1") if deviation else None,
        **values,
    )


def load_result(
    latency_s: dict[str, float] | None = None,
    requests: int = 1000,
    errors: int = 0,
    achieved: float = 100.0,
    **fields: Any,
) -> LoadResult:
    latency = {
        "p50": 0.01,
        "p90": 0.02,
        "p95": 0.03,
        "p99": 0.04,
        "p99_9": 0.05,
        "max": 0.06,
        "mean": 0.012,
        **(latency_s or {}),
    }
    values: dict[str, Any] = {
        "service": "svc",
        "step": "1",
        "runtime": "mlserver@1.7.1",
        "protocol": "rest",
        "offered_rate_per_s": 100.0,
        "concurrency": None,
        "offered": "100/s poisson",
        "goodput_per_s": {},
        "streaming": {},
        "generator_stall_s": 0.001,
        "generators": 1,
        "arrivals": "poisson",
        "duration_s": 10.0,
        "warmup_s": 1.0,
        "errors_by_class": {"timeout": errors} if errors else {},
        "latency_ci_s": {"p50": (0.009, 0.011)},
        "service_time_s": latency,
        "send_lag_s": {"p50": 1e-5, "p90": 2e-5, "p95": 3e-5, "p99": 1e-4, "p99_9": 2e-4, "max": 3e-4, "mean": 2e-5},
        "error_rate_ci": (0.0, 0.01),
        "generator_cpu": 0.1,
        "valid": True,
        "invalid_reason": "",
        "checked_answers": 10,
        "samples": "samples/1-svc.parquet",
        "seed": 1,
        **fields,
    }
    return LoadResult(latency_s=latency, requests=requests, errors=errors, achieved_rate_per_s=achieved, **values)
