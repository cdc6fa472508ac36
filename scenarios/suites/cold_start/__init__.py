"""Cold start: how long a service without a pod takes to answer, and where the time goes."""

from scenarios.suites.cold_start.suite import ColdStart, cold_start

__all__ = ["ColdStart", "cold_start"]
