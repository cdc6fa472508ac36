"""Canary and rollback: a new version gets its part of the traffic and no more, is promoted, and is taken back, all
under load and without a request being lost."""

from scenarios.suites.canary.phases import Rollout
from scenarios.suites.canary.rollout import canary

__all__ = ["Rollout", "canary"]
