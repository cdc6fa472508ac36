"""Capacity: the highest rate at which a service meets its objectives."""

from __future__ import annotations

from scenarios.suites.capacity.model import CapacityStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Capacity", CapacityStep)
