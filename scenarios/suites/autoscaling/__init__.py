"""Autoscaling: how the number of pods follows the load."""

from __future__ import annotations

from scenarios.suites.autoscaling.model import AutoscalingStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Autoscaling", AutoscalingStep)
