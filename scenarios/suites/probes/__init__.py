"""Probes: whether readiness and liveness tell the truth, under load, while draining and while rolling over."""

from scenarios.suites.probes.suite import Probes, probes

__all__ = ["Probes", "probes"]
