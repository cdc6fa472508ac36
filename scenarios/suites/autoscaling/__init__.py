"""Autoscaling: how the number of pods follows the load, and what that costs those who ask."""

from scenarios.suites.autoscaling.suite import Course, autoscaling

__all__ = ["Course", "autoscaling"]
