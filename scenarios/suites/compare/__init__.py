"""Compare: whether variants of a service differ in speed, use and answers, and how sure that is."""

from __future__ import annotations

from scenarios.suites.compare.model import CompareStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Comparison", CompareStep)
