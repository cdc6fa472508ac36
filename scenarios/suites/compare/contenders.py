"""Who is compared, and in what."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from harness.target.endpoint import Endpoint
from scenarios.model.counters import Counter
from scenarios.suites.shared.deployed import Deployed, Turn
from scenarios.suites.shared.stage.beforehand import first_answer
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.requests import Encoded

FIRST_ANSWER_S = 60.0
UNITS = {"throughput": "/s", "capacity": "/s", "cpu": "s", "memory": "bytes", "cost": "per million"}
"""Of metrics that are not times."""
HIGHER_IS_BETTER = ("throughput", "capacity")


@dataclass(frozen=True)
class Contender:
    """One variant: a server that is there, or with ``turn`` one that is deployed for each of its blocks.

    ``deployed`` is None for a server without a cluster. ``price_per_hour`` is of what it runs on.
    """

    name: str
    endpoint: Endpoint | None
    plan: Plan
    deployed: Deployed | None = None
    turn: Turn | None = None
    price_per_hour: float | None = None

    @property
    def described(self) -> Endpoint:
        """What records say of it; before its first turn nobody knows an address."""
        if self.endpoint is not None:
            return self.endpoint
        assert self.turn is not None
        return Endpoint(service=self.turn.service, runtime=self.turn.runtime, url="", model="")


@dataclass(frozen=True)
class Comparing:
    rounds: int
    metrics: tuple[str, ...]
    margin: float
    confidence: float
    fail_on: tuple[str, ...]
    seed: int
    cpu: Counter | None = None
    memory: Counter | None = None
    conformance: tuple[str, ...] = ()
    tolerance: float = 0.05


@dataclass(frozen=True)
class Present:
    """A contender that can be asked. ``cold_start_s`` counts from its deployment to its first answer."""

    endpoint: Endpoint
    deployed: Deployed | None
    cold_start_s: float | None = None


@dataclass
class Taken:
    """What is known of one variant, block by block."""

    encoded: list[Encoded] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    inspected: int = 0
    conformance: dict[str, str] = field(default_factory=dict)
    """The outcome of each check, where variants are checked."""

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


class Stage:
    """Brings contenders up when it is their turn, one at a time."""

    def __init__(self) -> None:
        self._turn: Turn | None = None

    async def enter(self, contender: Contender) -> Present:
        """Those that are there stay as they are. Raises what keeps a contender from being ready."""
        if contender.turn is None:
            assert contender.endpoint is not None
            return Present(contender.endpoint, contender.deployed)
        await self.leave()
        started = time.monotonic()
        self._turn = contender.turn
        deployed = await contender.turn.up()
        await first_answer(deployed.endpoint, contender.plan, FIRST_ANSWER_S)
        return Present(deployed.endpoint, deployed, time.monotonic() - started)

    async def leave(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            await turn.down()
