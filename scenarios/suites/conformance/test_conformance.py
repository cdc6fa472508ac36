"""Collected by ``pytest --pyargs scenarios.suites.conformance``; without --v2-url there is nothing to check."""

from __future__ import annotations

from scenarios.suites.conformance.checks import Check
from scenarios.suites.conformance.pytest_plugin import Bench, judge


def test_check(v2_check: Check, v2_bench: Bench) -> None:
    judge(v2_bench.run(v2_check))
