"""Canary and rollback: a new version gets its part of the traffic and no more, is promoted, and is taken back, all
under load and without a request being lost."""

from __future__ import annotations

from scenarios.suites.canary.model import CanaryStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Canary and rollback", CanaryStep)
