"""Scales revisions as Knative's pod autoscaler does: scrapes each second, decides every two, and takes the last
pod away only when the activator has been in the path for a while.

``python -m cluster.local.controllers.autoscaler TRACE.json`` replays a recorded trace and prints it with this
autoscaler's own outputs in the same columns, for anyone who wants to compare.

Source: knative/serving, pkg/reconciler/autoscaling/kpa (scaler.go, kpa.go), pkg/autoscaler/scaling/multiscaler.go.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from cluster.local.api.faults import NONE, Faults
from cluster.local.api.resources import BY_KIND, Object, path
from cluster.local.api.store import Change, Recorder, Store
from cluster.local.ingress.routes import RevisionRoute, RouteTable
from harness.kubernetes.kpa import GRANULARITY_S, TICK_S, Autoscaler, Decision, Spec
from harness.kubernetes.kpa_settings import CONFIG_MAP, NAMESPACE, Settings, check_config, settings_of

UNKNOWN = -1
PROGRESS_DEADLINE_S = 600.0
CONFIG = BY_KIND["ConfigMap"]
_log = logging.getLogger("servecert.cluster")
State = Literal["activating", "active", "inactive"]


@dataclass
class RevisionScaler:
    """Of one revision. ``replicas`` is how many pods there shall be; times are of a monotonic clock."""

    settings: Settings
    now_s: float
    reachable: bool = True
    faults: Faults = NONE
    replicas: int = field(init=False)
    desired: int = UNKNOWN
    """What the decisions say, before bounds and the rules for zero."""
    state: State = "activating"
    initialized: bool = False
    """Whether it ever had the pods that it starts with."""

    def __post_init__(self) -> None:
        self.replicas = max(self.settings.initial, self.settings.least)
        self.model = Autoscaler(self.settings.spec, 0, self.now_s)
        self.since_s = self.now_s
        """Of the state."""
        self.excess = -1
        self.proxied_since_s: float | None = self.now_s
        """Since when the activator has been in the path; None while it is not."""
        self._late: deque[tuple[float, int]] = deque()
        self._decisions = 0

    @property
    def activator(self) -> bool:
        return self.proxied_since_s is not None

    def change(self, settings: Settings, *, reachable: bool, faults: Faults) -> None:
        self.settings, self.reachable, self.faults = settings, reachable, faults
        spec = replace(settings.spec, reachable=reachable)
        if spec != self.model.spec:
            self.model.change(spec)

    def record(self, now_s: float, value: float, ready: int) -> None:
        """Nothing is scraped where there is no pod; the activator then speaks up only for what waits."""
        if (ready or value) and "metrics-lost" not in self.faults:
            self.model.record(now_s, value)

    def decide(self, now_s: float, ready: int) -> None:
        if "autoscaler-frozen" in self.faults:
            self.desired = self.replicas
            return
        decision = self.model.decide(now_s, ready)
        if not decision.valid:
            return
        self.excess = decision.excess_burst_capacity
        self.desired = self._broken(now_s, decision.desired)

    def _broken(self, now_s: float, desired: int) -> int:
        """What faults make of a decision."""
        if not self.faults.values:
            return desired
        self._decisions += 1
        if "autoscaler-overshoots" in self.faults and desired > 1:
            desired = round(desired * self.faults.value("autoscaler-overshoots"))
        if "autoscaler-oscillates" in self.faults and desired:
            desired += self._decisions // 2 % 2
        if "autoscaler-slow" in self.faults:
            self._late.append((now_s + self.faults.value("autoscaler-slow"), desired))
            desired = self.desired if self.desired != UNKNOWN else self.replicas
            while self._late and self._late[0][0] <= now_s:
                desired = self._late.popleft()[1]
        if "never-zero" in self.faults:
            desired = max(1, desired)
        return desired

    def follow(self, now_s: float, ready: int) -> None:
        """From the latest decision and the ready pods to how many there shall be, and the activator's place."""
        want = self._scale(now_s)
        proxied = not (want > 0 and self.excess >= 0)
        if proxied != self.activator:
            self.proxied_since_s = now_s if proxied else None
        threshold = max(1, self._least) if self.initialized else max(self._least, self.settings.initial)
        if ready >= threshold:
            self.initialized = True
        if want == 0 or threshold == 0:
            self._become("inactive", now_s)
        elif ready < threshold:
            self._become("activating" if want > 0 or self.state != "inactive" else "inactive", now_s)
        elif want > 0 or self.state != "inactive":
            self._become("active", now_s)

    @property
    def _least(self) -> int:
        return self.settings.least if self.reachable else 0

    def _become(self, state: State, now_s: float) -> None:
        if state != self.state:
            self.state, self.since_s = state, now_s

    def _scale(self, now_s: float) -> int:
        """What is wanted; ``replicas`` follows unless the time for it has not come."""
        desired = self.desired
        if desired < 0 and self.state != "activating":
            return desired
        least = self._least
        if not self.initialized and self.reachable:
            least = max(least, self.settings.initial)
        desired = max(least, desired, 0)
        if self.settings.most:
            desired = min(self.settings.most, desired)
        if desired > 0:
            self.replicas = desired
            return desired
        return self._to_zero(now_s)

    def _to_zero(self, now_s: float) -> int:
        for_s = now_s - self.since_s
        if not self.settings.scale_to_zero:
            self.replicas = 1
            return 1
        if self.state == "activating":
            if (not self.initialized and not self.reachable) or for_s > PROGRESS_DEADLINE_S:
                self.replicas = 0  # it never ran, and nothing leads to it any more
                return 0
            return UNKNOWN
        if self.state == "active":
            if for_s >= self.settings.spec.stable_window_s:
                return 0
            self.replicas = min(self.replicas, 1)
            return self.replicas
        retention_s = self.settings.retention_s if self.reachable else 0.0
        grace_s = self.settings.grace_s
        proxied_s = now_s - self.proxied_since_s if self.proxied_since_s is not None else 0.0
        if for_s >= max(grace_s, retention_s) or (for_s >= retention_s and proxied_s >= grace_s):
            self.replicas = 0
        return 0


Changed = Callable[[str, str], None]


class Autoscaling:
    """All revisions of the cluster. ``changed`` is told the namespace and revision whose pods shall be others."""

    def __init__(self, store: Store, routes: RouteTable, changed: Changed) -> None:
        self.store = store
        self.routes = routes
        self.changed = changed
        self.config: Mapping[str, str] = {}
        self.recorder = Recorder(store, "autoscaler")
        self._scalers: dict[tuple[str, str], RevisionScaler] = {}
        self._ready: dict[tuple[str, str], int] = {}
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self.store.subscribe(self._config_changed)
        if found := self.store.find("ConfigMap", NAMESPACE, CONFIG_MAP):
            self._take_config(found)

    def stop(self) -> None:
        if self._unsubscribe:
            self._unsubscribe()

    def _config_changed(self, change: Change) -> None:
        metadata = change.object["metadata"]
        if change.resource is CONFIG and (metadata["namespace"], metadata["name"]) == (NAMESPACE, CONFIG_MAP):
            if change.type == "DELETED":
                self.config = {}
            else:
                self._take_config(change.object)
            for key in list(self._scalers):
                self.changed(*key)

    def _take_config(self, item: Object) -> None:
        data = item.get("data") or {}
        try:
            check_config(data)
        except ValueError as error:
            self.recorder.event(item, "InvalidConfig", f"the configuration before stays in force: {error}", "Warning")
            _log.warning("%s", error)
            return
        self.config = data

    def sync(self, revision: Object, ready: int, *, reachable: bool, faults: Faults) -> RevisionScaler:
        """The scaler of a revision, up to date with its annotations, its place in the route and its ready pods."""
        metadata = revision["metadata"]
        key = (metadata["namespace"], metadata["name"])
        concurrency = int(path(revision, "spec", "containerConcurrency", default=0))
        scaler = self._scalers.get(key)
        try:
            settings = settings_of(metadata.get("annotations") or {}, self.config, concurrency)
        except ValueError as error:
            self.recorder.event(revision, "InvalidAutoscaling", str(error), "Warning")
            settings = scaler.settings if scaler else settings_of({}, self.config, concurrency)
        now_s = time.monotonic()
        if scaler is None:
            scaler = self._scalers[key] = RevisionScaler(settings, now_s, reachable, faults)
            self.routes.revision(*key).cold = self._poke
        self._ready[key] = ready
        scaler.change(settings, reachable=reachable, faults=faults)
        scaler.follow(now_s, ready)
        self._place_activator(key, scaler)
        return scaler

    def _place_activator(self, key: tuple[str, str], scaler: RevisionScaler) -> None:
        self.routes.revision(*key).activator = scaler.activator

    def forget(self, namespace: str, name: str) -> None:
        self._scalers.pop((namespace, name), None)
        self._ready.pop((namespace, name), None)

    def scaler(self, namespace: str, name: str) -> RevisionScaler | None:
        return self._scalers.get((namespace, name))

    def _poke(self, revision: RevisionRoute) -> None:
        """The activator has a request and no pod for it: nobody waits for the next decision."""
        key = (revision.namespace, revision.name)
        scaler = self._scalers.get(key)
        if scaler is not None and scaler.replicas == 0:
            now_s = time.monotonic()
            scaler.record(now_s, float(max(1, revision.waiting)), 0)
            self._decide(key, scaler, now_s)

    def _decide(self, key: tuple[str, str], scaler: RevisionScaler, now_s: float) -> None:
        before = (scaler.replicas, scaler.state, scaler.activator)
        ready = self._ready.get(key, 0)
        scaler.decide(now_s, ready)
        scaler.follow(now_s, ready)
        self._place_activator(key, scaler)
        if (scaler.replicas, scaler.state, scaler.activator) != before:
            self.changed(*key)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        second = int(loop.time())
        while True:
            second += GRANULARITY_S
            await asyncio.sleep(max(0.0, second - loop.time()))
            second = max(second, int(loop.time()))  # a loop that stood still does not make up for it
            now_s = time.monotonic()
            for key, scaler in list(self._scalers.items()):
                concurrency, rate = self.routes.revision(*key).meter.take()
                value = rate if scaler.settings.metric == "rps" else concurrency
                scaler.record(now_s, value, self._ready.get(key, 0))
                if second % TICK_S == 0:
                    self._decide(key, scaler, now_s)


COLUMNS = (
    "t_s",
    "observed_concurrency",
    "ready_pods",
    "stable_average",
    "panic_average",
    "decided",
    "valid",
    "desired",
    "excess_burst_capacity",
)


class TraceError(Exception):
    """A trace that cannot be replayed; the message says what was expected."""


def replay(trace: dict[str, Any]) -> list[list[Any]]:
    """The trace's ticks with this autoscaler's outputs. Raises TraceError."""
    known = {item.name for item in fields(Spec)}
    spec, ticks, columns = trace.get("spec"), trace.get("ticks"), trace.get("columns")
    if not isinstance(spec, dict) or not isinstance(ticks, list) or not ticks or not isinstance(columns, list):
        raise TraceError('expected an object with "spec", "columns" and a list "ticks" that is not empty')
    if unknown := sorted(set(spec) - known):
        raise TraceError(f"spec: unknown {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    inputs = ("t_s", "observed_concurrency", "ready_pods", "decided")
    if missing := [name for name in inputs if name not in columns]:
        raise TraceError(f"columns: expected {', '.join(inputs)} among them, {', '.join(missing)} is missing")
    places = [columns.index(name) for name in inputs]
    try:
        first = [ticks[0][place] for place in places]
        autoscaler = Autoscaler(Spec(**spec), first[2], first[0])
        return [_replayed(autoscaler, *(tick[place] for place in places)) for tick in ticks]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise TraceError(f"a trace that cannot be replayed: {error}") from error


def _replayed(autoscaler: Autoscaler, now_s: float, observed: float, ready_pods: int, decided: bool) -> list[Any]:
    if observed >= 0:  # -1: nothing was scraped in that second
        autoscaler.record(now_s, observed)
    stable, panic = autoscaler.averages(now_s)
    decision = autoscaler.decide(now_s, ready_pods) if decided else Decision(valid=False)
    outcome = [decided, decision.valid, decision.desired, decision.excess_burst_capacity]
    return [now_s, observed, ready_pods, stable, panic, *outcome]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local.controllers.autoscaler", description="replays a KPA trace"
    )
    parser.add_argument("trace", type=Path, help="JSON: name, spec, columns, ticks")
    arguments = parser.parse_args()
    try:
        trace = json.loads(arguments.trace.read_text())
        if not isinstance(trace, dict):
            raise TraceError("expected a JSON object")
        ticks = replay(trace)
    except (OSError, ValueError, TraceError) as error:
        print(f"{arguments.trace}: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"name": trace.get("name"), "spec": trace["spec"], "columns": list(COLUMNS), "ticks": ticks}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
