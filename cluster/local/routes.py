"""Which pods stand behind a host name, and how many requests each has in flight."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

DOMAIN = "example.com"


@dataclass(eq=False)
class Backend:
    """A ready pod. ``removed`` once it left the route; requests in flight still finish."""

    pod: str
    revision: str
    host: str
    http_port: int
    grpc_port: int | None
    in_flight: int = 0
    removed: bool = False
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def idle(self) -> None:
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()


@dataclass(eq=False)
class Route:
    """An InferenceService as the gateway sees it; no backends means nothing is ready."""

    namespace: str
    name: str
    backends: list[Backend] = field(default_factory=list)
    timeout_s: float = 300.0
    _turn: int = 0

    def choose(self) -> Backend | None:
        """The backend with the fewest requests in flight, in turn where they are equal."""
        if not self.backends:
            return None
        self._turn += 1
        count = len(self.backends)
        return min(
            (self.backends[(self._turn + offset) % count] for offset in range(count)), key=lambda item: item.in_flight
        )


class RouteTable:
    def __init__(self, domain: str = DOMAIN) -> None:
        self.domain = domain
        self._routes: dict[tuple[str, str], Route] = {}
        self._pods: dict[str, Backend] = {}

    def host(self, namespace: str, name: str) -> str:
        return f"{name}.{namespace}.{self.domain}"

    def find(self, host: str) -> Route | None:
        """``<isvc>[-predictor].<namespace>.<domain>`` or the cluster-local name; a port is ignored."""
        labels = host.rsplit(":", 1)[0].lower() if ":" in host else host.lower()
        for suffix in (self.domain, "svc.cluster.local", "svc"):
            if labels.endswith("." + suffix):
                name, _, namespace = labels[: -len(suffix) - 1].partition(".")
                return self.find_service(namespace, name) or self.find_service(
                    namespace, name.removesuffix("-predictor")
                )
        return None

    def find_service(self, namespace: str, name: str) -> Route | None:
        return self._routes.get((namespace, name))

    def hosts(self) -> list[str]:
        return [self.host(*key) for key in sorted(self._routes)]

    def set(self, namespace: str, name: str, backends: list[Backend], timeout_s: float) -> None:
        """Backends that stay keep their counts; those that left get no new request from now on."""
        route = self._routes.setdefault((namespace, name), Route(namespace, name))
        route.timeout_s = timeout_s
        wanted = {(item.pod, item.http_port): item for item in backends}
        kept = [item for item in route.backends if (item.pod, item.http_port) in wanted]
        have = {(item.pod, item.http_port) for item in kept}
        for item in route.backends:
            item.removed = item not in kept
        added = [item for key, item in wanted.items() if key not in have]
        route.backends = kept + added
        for item in added:
            self._pods[item.pod] = item

    def remove(self, namespace: str, name: str) -> None:
        route = self._routes.pop((namespace, name), None)
        for item in route.backends if route else []:
            item.removed = True

    def withdraw(self, pod: str) -> None:
        """Takes a pod out of every route at once, before it is told to stop."""
        for route in self._routes.values():
            for item in route.backends:
                if item.pod == pod:
                    item.removed = True
            route.backends = [item for item in route.backends if item.pod != pod]

    async def drained(self, pod: str) -> None:
        """Returns when nothing is in flight to the pod, which gets nothing new."""
        self.withdraw(pod)
        backend = self._pods.pop(pod, None)
        if backend:
            await backend.idle()
