"""Load: one stage at a rate (open loop) or a concurrency (closed loop), judged against objectives."""

from __future__ import annotations

from scenarios.suites.load.model import LoadStep
from scenarios.suites.shared.suite import Suite

SUITE = Suite("Load", LoadStep)
