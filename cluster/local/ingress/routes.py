"""What stands behind a host name: revisions with their shares of the traffic, the pods of each, and the requests that
are under way to them or wait for them.

A request goes to a revision by the route's percentages, or by its tag, and there gets a slot at a pod. With the
activator in the path, or without a ready pod, it waits centrally; without it, it waits at its pod, as in queue-proxy.

Source: knative/serving, pkg/activator/net/throttler.go, pkg/queue/breaker.go; docs/scaling/SYSTEM.md.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.local.api.faults import NONE, Faults

DOMAIN = "example.com"
ACTIVATOR_QUEUE = 10_000
QUEUE_FACTOR, QUEUE_LEAST = 10, 10
"""Of queue-proxy: so many requests wait at a pod for each that it may have, and at least so many."""
TYPICAL_WEIGHT = 0.1
_DICE = random.Random()  # noqa: S311 - nothing secret: which of the requests goes where
DROP_S = 0.5
"""How long connections break when they break at a roll-over."""


@dataclass(eq=False)
class Backend:
    """A ready pod. ``removed`` once it left the route; requests in flight, and those in its queue, still finish."""

    pod: str
    revision: str
    host: str
    http_port: int
    grpc_port: int | None
    in_flight: int = 0
    removed: bool = False
    served: int = 0
    """Requests that it has been given so far."""
    waiting: deque[Ticket] = field(default_factory=deque)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        self.in_flight += 1
        self.served += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def idle(self) -> None:
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()


class Meter:
    """How many requests a revision had on average, and how many began, since somebody last asked."""

    def __init__(self) -> None:
        self._since = self._changed = time.monotonic()
        self._count = 0
        self._integral = 0.0
        self._began = 0

    def add(self, change: int) -> None:
        now = time.monotonic()
        self._integral += self._count * (now - self._changed)
        self._changed = now
        self._count += change
        if change > 0:
            self._began += 1

    def take(self) -> tuple[float, float]:
        """Average concurrency, and requests a second."""
        self.add(0)
        elapsed = max(self._changed - self._since, 1e-6)
        result = self._integral / elapsed, self._began / elapsed
        self._since, self._integral, self._began = self._changed, 0.0, 0
        return result


class Ticket:
    """A request's place: first in a queue, then at a pod, until ``finish``."""

    def __init__(
        self, revision: RevisionRoute, ready: Callable[[Backend], None], refused: Callable[[int, str], None]
    ) -> None:
        self.revision = revision
        self.ready = ready
        self.refused = refused
        self.backend: Backend | None = None
        self.begun_s = 0.0
        self.later: asyncio.TimerHandle | None = None
        self.finished = False

    def finish(self) -> None:
        """Idempotent."""
        if not self.finished:
            self.finished = True
            if self.later:
                self.later.cancel()
            self.revision.finished(self)


class RevisionRoute:
    """The pods of a revision. ``limit`` is its containerConcurrency, 0 for none."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.limit = 0
        self.timeout_s = 300.0
        self.activator = True
        self.holds = True
        """Whether requests wait while there is no pod; else they are refused."""
        self.faults: Faults = NONE
        self.backends: list[Backend] = []
        self.meter = Meter()
        self.cold: Callable[[RevisionRoute], None] = lambda revision: None
        """Told when a request waits and there is no pod."""
        self.crash: Callable[[str], None] = lambda pod: None
        self.broken_until_s = 0.0
        self._waiting: deque[Ticket] = deque()
        self._turn = 0
        self._typical_s = 0.001

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def acquire(self, ready: Callable[[Backend], None], refused: Callable[[int, str], None]) -> Ticket:
        """``ready`` is called with a pod, perhaps at once, or ``refused`` with an HTTP status and why."""
        ticket = Ticket(self, ready, refused)
        self.meter.add(1)
        if "errors" in self.faults and _DICE.random() < self.faults.value("errors"):
            self._refuse(ticket, 500, f"{self.name}: internal error")
        elif not self.backends:
            self._wait_for_pods(ticket)
        elif not self.activator:
            self._at_pod(ticket, self._least_busy())
        elif self._waiting or (backend := self._free()) is None:
            self._queue(ticket)
        else:
            self._give(ticket, backend)
        return ticket

    def _wait_for_pods(self, ticket: Ticket) -> None:
        if not self.holds or "cold-503" in self.faults:
            self._refuse(ticket, 503, f"{self.name}: no pod is ready")
            return
        self._queue(ticket)
        if not ticket.finished:
            self.cold(self)

    def _queue(self, ticket: Ticket) -> None:
        if len(self._waiting) >= ACTIVATOR_QUEUE:
            self._refuse(ticket, 503, f"{self.name}: {ACTIVATOR_QUEUE} requests wait already")
        else:
            self._waiting.append(ticket)

    def _at_pod(self, ticket: Ticket, backend: Backend) -> None:
        if not self.limit or backend.in_flight < self.limit:
            self._give(ticket, backend)
        elif len(backend.waiting) >= max(QUEUE_FACTOR * self.limit, QUEUE_LEAST):
            self._refuse(ticket, 503, f"{self.name}: pending request queue full")
        else:
            backend.waiting.append(ticket)

    def _least_busy(self) -> Backend:
        """In turn where they are equally busy."""
        self._turn += 1
        count = len(self.backends)
        return min(
            (self.backends[(self._turn + offset) % count] for offset in range(count)),
            key=lambda item: item.in_flight + len(item.waiting),
        )

    def _free(self) -> Backend | None:
        if not self.backends:
            return None
        backend = self._least_busy()
        return backend if not self.limit or backend.in_flight < self.limit else None

    def _refuse(self, ticket: Ticket, status: int, why: str) -> None:
        ticket.finish()
        ticket.refused(status, why)

    def _give(self, ticket: Ticket, backend: Backend) -> None:
        ticket.backend = backend
        backend.enter()
        ticket.begun_s = time.monotonic()
        if "crash-after" in self.faults and backend.served >= self.faults.value("crash-after"):
            self.crash(backend.pod)
        if "latency" in self.faults:
            delay_s = (self.faults.value("latency") - 1) * self._typical_s
            ticket.begun_s += delay_s
            ticket.later = asyncio.get_running_loop().call_later(delay_s, ticket.ready, backend)
        else:
            ticket.ready(backend)

    def finished(self, ticket: Ticket) -> None:
        self.meter.add(-1)
        backend = ticket.backend
        if backend is None:
            for queue in (self._waiting, *(item.waiting for item in self.backends)):
                if ticket in queue:
                    queue.remove(ticket)
            return
        took_s = max(0.0, time.monotonic() - ticket.begun_s)
        self._typical_s += TYPICAL_WEIGHT * (took_s - self._typical_s)
        if backend.waiting:  # the slot goes on, even of a pod that leaves: what waits at it is served by it
            following = backend.waiting.popleft()
            backend.leave()
            self._give(following, backend)
            return
        backend.leave()
        self.admit()

    def admit(self) -> None:
        """Lets waiting requests in, as far as there are slots."""
        while self._waiting and (backend := self._free()) is not None:
            ticket = self._waiting.popleft()
            if not ticket.finished:
                self._give(ticket, backend)

    def set_backends(self, backends: list[Backend]) -> list[Backend]:
        """Those that stay keep their counts; the answer is what was added."""
        wanted = {(item.pod, item.http_port): item for item in backends}
        kept = [item for item in self.backends if (item.pod, item.http_port) in wanted]
        have = {(item.pod, item.http_port) for item in kept}
        for item in self.backends:
            item.removed = item not in kept
        added = [item for key, item in wanted.items() if key not in have]
        self.backends = kept + added
        self.admit()
        return added

    def withdraw(self, pod: str) -> None:
        for item in self.backends:
            if item.pod == pod:
                item.removed = True
        self.backends = [item for item in self.backends if item.pod != pod]

    def close(self) -> None:
        """The revision is gone: whoever waits is told so."""
        for item in self.backends:
            item.removed = True
        self.backends = []
        while self._waiting:
            ticket = self._waiting.popleft()
            self._refuse(ticket, 503, f"{self.name} was deleted")

    @property
    def breaking(self) -> bool:
        return time.monotonic() < self.broken_until_s


@dataclass(frozen=True)
class Share:
    revision: RevisionRoute
    percent: float


@dataclass(eq=False)
class Route:
    """An InferenceService as the gateway sees it; no shares means that nothing was ever ready."""

    namespace: str
    name: str
    shares: list[Share] = field(default_factory=list)
    tags: dict[str, RevisionRoute] = field(default_factory=dict)

    @property
    def named(self) -> str:
        return f"{self.namespace}/{self.name}"

    def choose(self, tag: str = "") -> RevisionRoute | None:
        if tag:
            return self.tags.get(tag)
        total = sum(share.percent for share in self.shares)
        place = _DICE.random() * total
        for share in self.shares:
            place -= share.percent
            if place < 0:
                return share.revision
        return None


class RouteTable:
    def __init__(self, domain: str = DOMAIN) -> None:
        self.domain = domain
        self._routes: dict[tuple[str, str], Route] = {}
        self._revisions: dict[tuple[str, str], RevisionRoute] = {}
        self._pods: dict[str, Backend] = {}

    def host(self, namespace: str, name: str) -> str:
        return f"{name}.{namespace}.{self.domain}"

    def find(self, host: str) -> tuple[Route, str] | None:
        """``[<tag>-]<isvc>[-predictor].<namespace>.<domain>`` or the cluster-local name, with the tag that it carries;
        a port is ignored."""
        labels = host.rsplit(":", 1)[0].lower() if ":" in host else host.lower()
        for suffix in (self.domain, "svc.cluster.local", "svc"):
            if labels.endswith("." + suffix):
                name, _, namespace = labels[: -len(suffix) - 1].partition(".")
                return self._named(namespace, name)
        return None

    def _named(self, namespace: str, name: str) -> tuple[Route, str] | None:
        plain = name.removesuffix("-predictor")
        if route := self.find_service(namespace, name) or self.find_service(namespace, plain):
            return route, ""
        tag, _, rest = plain.partition("-")
        route = self.find_service(namespace, rest)
        if route is not None and name != plain and tag in route.tags:
            return route, tag
        return None

    def find_service(self, namespace: str, name: str) -> Route | None:
        return self._routes.get((namespace, name))

    def hosts(self) -> list[str]:
        return [self.host(*key) for key in sorted(self._routes)]

    def revision(self, namespace: str, name: str) -> RevisionRoute:
        return self._revisions.setdefault((namespace, name), RevisionRoute(namespace, name))

    def set_backends(self, namespace: str, name: str, backends: list[Backend]) -> None:
        for item in self.revision(namespace, name).set_backends(backends):
            self._pods[item.pod] = item

    def set(self, namespace: str, name: str, shares: list[Share], tags: dict[str, RevisionRoute]) -> None:
        route = self._routes.setdefault((namespace, name), Route(namespace, name))
        before = {share.revision: share.percent for share in route.shares}
        if before and before != {share.revision: share.percent for share in shares}:
            for revision in {*before, *(share.revision for share in shares)}:
                if "dropped-at-rollover" in revision.faults:
                    revision.broken_until_s = time.monotonic() + DROP_S
        route.shares, route.tags = shares, tags

    def remove(self, namespace: str, name: str) -> None:
        self._routes.pop((namespace, name), None)

    def remove_revision(self, namespace: str, name: str) -> None:
        if revision := self._revisions.pop((namespace, name), None):
            revision.close()

    def withdraw(self, pod: str) -> None:
        """Takes a pod out of its revision at once, before it is told to stop."""
        for revision in self._revisions.values():
            revision.withdraw(pod)

    async def drained(self, pod: str) -> None:
        """Returns when nothing is in flight to the pod, which gets nothing new."""
        self.withdraw(pod)
        backend = self._pods.pop(pod, None)
        if backend:
            await backend.idle()
