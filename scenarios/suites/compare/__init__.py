"""Compare: two or more variants under the same load, block by block in turns, and whether one is faster.

Variants are services of the scenario, or one service asked by other protocols. All of them are there at once, or each
is deployed when it is its turn. The order of blocks alternates, so that whatever drifts hits all of them alike. What a
block gives is one value a metric.
"""

from __future__ import annotations

from scenarios.suites.compare.contenders import Comparing, Contender
from scenarios.suites.compare.suite import compare

__all__ = ["Comparing", "Contender", "compare"]
