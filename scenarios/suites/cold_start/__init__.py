"""Cold start: how long a service that is scaled to zero takes to answer, and where the time goes."""

from __future__ import annotations

from scenarios.suites.cold_start.model import ColdStartStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Cold start", ColdStartStep)
