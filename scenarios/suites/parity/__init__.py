"""Parity: whether a service gives the numbers that the model's framework gives offline."""

from __future__ import annotations

from scenarios.suites.parity.model import ParityStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Parity", ParityStep)
