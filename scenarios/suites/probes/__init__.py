"""Probes: whether readiness and liveness tell the truth, under load, while draining and while rolling over."""

from __future__ import annotations

from scenarios.suites.probes.model import ProbesStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Probes", ProbesStep)
