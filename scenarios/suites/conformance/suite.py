"""Conformance to the Open Inference Protocol (v2): one function a requirement, grouped as in the specification."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from harness.base.errors import MeasurementError, UsageError
from harness.results.records import CheckResult, Outcome
from harness.target.endpoint import Endpoint
from scenarios.suites.conformance import (
    datatypes,
    generate,
    grpc_checks,
    grpc_errors,
    metrics,
    openai,
    repository,
    rest_binary,
    rest_errors,
    rest_infer,
    rest_metadata,
    statistics,
)
from scenarios.suites.conformance.checks import Check, run_check
from scenarios.suites.conformance.sources import REGISTRY
from scenarios.suites.conformance.target import health_status, open_target

GONE_S = 10.0
"""A server that answers nothing for so long, while checks fail, has gone; until then it may be restarting."""

__all__ = ["PROFILES", "REGISTRY", "conformance", "select"]

MODULES = (
    rest_metadata,
    rest_infer,
    datatypes,
    rest_errors,
    rest_binary,
    grpc_checks,
    grpc_errors,
    repository,
    statistics,
    metrics,
    openai,
    generate,
)
"""Each enters its checks into the registry when it is imported."""


PROFILES: dict[str, tuple[str, ...]] = {
    "rest": (
        "rest.health",
        "rest.server_metadata",
        "rest.model_metadata",
        "rest.model_ready",
        "rest.infer",
        "rest.datatypes",
        "rest.errors",
    ),
    "binary": ("rest.binary",),
    "grpc": ("grpc.health", "grpc.metadata", "grpc.infer", "grpc.datatypes", "grpc.errors"),
    "statistics": ("statistics.model", "statistics.counts"),
    "openai": ("openai.models", "openai.chat", "openai.completions", "openai.errors", "openai.stream"),
    "generate": ("generate.answer", "generate.stream"),
    "metrics": ("metrics.text", "metrics.counters", "metrics.histograms"),
    "repository": ("repository.index", "repository.unload", "repository.load", "repository.grpc"),
}
"""In the order in which they are carried out: a server may lose its model in the last."""


def select(profiles: Sequence[str]) -> list[Check]:
    """The checks of the profiles, in their order. Raises UsageError for an unknown profile."""
    for profile in profiles:
        if profile not in PROFILES:
            raise UsageError(f"unknown profile {profile!r}; expected one of {', '.join(PROFILES)}")
    return REGISTRY.in_groups(group for name, groups in PROFILES.items() if name in profiles for group in groups)


async def conformance(endpoint: Endpoint, profiles: Sequence[str], step: str = "") -> AsyncIterator[CheckResult]:
    """Raises UnreachableError when the server does not answer at all; everything after that is a result."""
    checks = select(profiles)
    use_grpc = bool({"grpc", "repository"} & set(profiles))
    async with open_target(endpoint, use_grpc=use_grpc, asked=profiles) as target:
        last_id, answered_s = "", time.monotonic()
        for place, check in enumerate(checks):
            result = await run_check(
                check,
                target,
                suite="conformance",
                service=endpoint.service,
                runtime=endpoint.runtime,
                deviations=endpoint.deviations,
                step=step,
            )
            yield result
            if result.outcome not in (Outcome.PASSED, Outcome.FAILED):
                continue
            if result.outcome is Outcome.PASSED or await health_status(target) is not None:
                last_id, answered_s = check.id, time.monotonic()
            elif time.monotonic() - answered_s > GONE_S:
                left = len(checks) - place - 1
                raise MeasurementError(
                    f"{endpoint.url} does not answer any more, since {last_id or 'the beginning'} or the check after"
                    f" it; {left} of {len(checks)} checks were not carried out. The server's own log may say why"
                )
