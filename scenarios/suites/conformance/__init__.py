"""Conformance to the Open Inference Protocol (v2): one function a requirement, grouped as in the specification."""

from __future__ import annotations

from scenarios.suites.conformance.model import ConformanceStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Conformance", ConformanceStep)
