"""The phases of one cold start, from what was seen of its pod. Pure functions.

The end of a phase is a span: the first and the last moment at which it may have been. What arrived over a watch is
known to the moment; a timestamp of Kubernetes is cut to the second, and by a clock that is known between two bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from harness.base.errors import MeasurementError
from harness.kubernetes.kserve import is_pod_ready, is_pod_running
from harness.kubernetes.podwatch import EventChange, PodChange

PHASES = ("created", "node", "scheduled", "storage", "image", "started", "ready", "first_byte")
"""Each ends with what it is called: the pod is there, a node that it needed is, it has its node, its model is
downloaded, its image is there, its process runs, it says that it is ready, the first byte of an answer has come. A
phase that a pod does not have (a node that was there, no model to download, an image that was there) takes no time."""
TOLERANCE_S = 1.5
"""Kubernetes' timestamps are cut to the second, and a watch is not instant."""
PRESENT = "already present"
"""What a kubelet says of an image that it did not have to pull."""
Object = dict[str, Any]


class Span(NamedTuple):
    """Seconds: the least and the most that something may be."""

    least: float
    most: float

    @property
    def middle(self) -> float:
        return self.least if self.least == self.most else (self.least + self.most) / 2

    @property
    def resolution(self) -> float:
        """How far the middle may be off, either way."""
        return 0.0 if self.least == self.most else (self.most - self.least) / 2

    def within(self, other: Span) -> Span:
        """As much of it as lies between the earliest and the latest of another."""
        least = min(max(self.least, other.least), other.most)
        return Span(least, max(least, min(self.most, other.most)))


def exactly(moment: float) -> Span:
    return Span(moment, moment)


UNKNOWN = Span(-float("inf"), float("inf"))


@dataclass(frozen=True)
class Trial:
    """``ends`` are counted from the first request, by phase; empty where no request was answered. ``done_s`` is when
    the last request ended, answered or not; ``lost`` of ``sent`` requests had no answer, or a wrong one."""

    ends: Mapping[str, Span]
    done_s: float = 0.0
    sent: int = 0
    lost: int = 0
    inspected: int = 0
    """Answers that were kept, so that a wrong one would have been noticed; large ones are kept up to a limit."""
    errors: str = ""
    wrong: Mapping[int, str] = field(default_factory=dict)
    skew: str = ""
    """What does not fit in Kubernetes' timestamps; empty where they agree."""

    @property
    def first_byte_s(self) -> float:
        return self.ends["first_byte"].middle

    @property
    def ready_late_s(self) -> float:
        """How long after the first answer the pod was called ready; negative where that was before."""
        return self.ends["ready"].middle - self.first_byte_s

    @property
    def phases(self) -> dict[str, Span]:
        """How long each took, as far as the first answer waited for it. Knative's activator asks a pod itself, and
        sends requests on before Kubernetes calls the pod ready."""
        waited = Span(0.0, self.ends["first_byte"].most)
        ends = [exactly(0.0), *(self.ends[name].within(waited) for name in PHASES)]
        return {
            name: exactly(max(0.0, after.least - before.least))
            if before.resolution == after.resolution == 0
            else Span(max(0.0, after.least - before.most), max(0.0, after.most - before.least))
            for name, (before, after) in zip(PHASES, pairwise(ends), strict=True)
        }

    @property
    def phases_s(self) -> dict[str, float]:
        """The same by the middles of the ends: together they are all of the time to the first byte."""
        ends = [0.0, *(min(self.ends[name].middle, self.first_byte_s) for name in PHASES)]
        return {name: max(0.0, after - before) for name, (before, after) in zip(PHASES, pairwise(ends), strict=True)}


def _has_condition(kind: str) -> Callable[[Object], bool]:
    def holds(pod: Object) -> bool:
        conditions = (pod.get("status") or {}).get("conditions") or []
        return any(item["type"] == kind and item["status"] == "True" for item in conditions)

    return holds


_ENDS: dict[str, Callable[[Object], bool]] = {
    "created": lambda pod: True,
    "scheduled": _has_condition("PodScheduled"),
    "storage": _has_condition("Initialized"),
    "started": is_pod_running,
    "ready": is_pod_ready,
}


def phase_ends(
    changes: Sequence[PodChange],
    pulled: Span | None,
    begun_s: float,
    first_byte_s: float,
    node: Span | None = None,
) -> dict[str, Span]:
    """From ``begun_s`` to the end of each phase, in their order; ``pulled`` (on the same clock) is when the image was
    there, None where nobody had to fetch it, and ``node`` when the pod's node was ready, None where that was before the
    pod. Raises MeasurementError for an end that was not seen."""
    ends = {}
    for name, holds in _ENDS.items():
        at = next((change.at_s for change in changes if change.type != "DELETED" and holds(change.pod)), None)
        if at is None:
            raise MeasurementError(f"the pod was never seen {name}")
        ends[name] = exactly(at - begun_s)

    def between(moment: Span | None, earliest: str, latest: str) -> Span:
        first = ends[earliest].least
        if moment is None:
            return exactly(first)
        limits = Span(first, max(first, ends[latest].most))
        return Span(moment.least - begun_s, moment.most - begun_s).within(limits)

    ends["image"] = between(pulled, "storage", "started")
    ends["node"] = between(node, "created", "scheduled")
    ends["first_byte"] = exactly(first_byte_s - begun_s)
    return {name: ends[name] for name in PHASES}


def settled(events: Sequence[EventChange], pod: Object) -> bool:
    """Whether the kubelet has told of every image of the pod that it is there."""
    mine = [event for event in events if event.pod == pod["metadata"]["name"]]
    spec = pod.get("spec") or {}
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    told = [event for event in mine if event.reason == "Pulled"]
    return len(told) >= len(containers) and not _unfinished(mine)


def pulled(events: Sequence[EventChange], pod: str) -> Span | None:
    """When the last image of a pod was there, on the clock of the events' arrival; None where all of them were there
    before. Where the kubelet was not heard of that, it may have been at any time."""
    mine = [event for event in events if event.pod == pod]
    told = [event for event in mine if event.reason == "Pulled"]
    if not told or _unfinished(mine):
        return UNKNOWN
    fetched = [event.at_s for event in told if PRESENT not in event.message]
    return exactly(max(fetched)) if fetched else None


def _unfinished(events: Sequence[EventChange]) -> bool:
    """Whether there is an image of which only the beginning of its way was heard."""
    begun = sum(event.reason == "Pulling" for event in events)
    ended = sum(event.reason == "Pulled" and PRESENT not in event.message for event in events)
    return begun > ended


def stamped(stamp: str, offset_s: tuple[float, float]) -> Span:
    """When a timestamp of Kubernetes was, in seconds of this machine's clock; one without a fraction is cut to the
    second."""
    moment = datetime.fromisoformat(stamp)
    width = 0.0 if moment.microsecond else 1.0
    return Span(moment.timestamp() - offset_s[1], moment.timestamp() + width - offset_s[0])


def node_ready(node: Object, created: PodChange, offset_s: tuple[float, float]) -> Span | None:
    """None for a node that was there before the pod; on the clock of ``PodChange.at_s``."""
    born = datetime.fromisoformat(node["metadata"]["creationTimestamp"]).timestamp()
    asked = datetime.fromisoformat(created.pod["metadata"]["creationTimestamp"]).timestamp()
    if born < asked:
        return None
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = next((item for item in conditions if item["type"] == "Ready" and item["status"] == "True"), None)
    span = stamped(ready["lastTransitionTime"] if ready else node["metadata"]["creationTimestamp"], offset_s)
    shift = created.at_s - created.wall_s
    return Span(span.least + shift, span.most + shift)


def clock_conflicts(
    changes: Sequence[PodChange], offset_s: tuple[float, float], events: Sequence[EventChange] = ()
) -> str:
    """Whether Kubernetes' timestamps of the pod and ours of their arrival can both be right; empty where they can."""
    pod = changes[-1].pod
    conditions = {item["type"]: item for item in (pod.get("status") or {}).get("conditions") or []}
    moments: list[tuple[str, str | None, float | None]] = []

    def seen(name: str) -> float | None:
        return next((change.wall_s for change in changes if _ENDS[name](change.pod)), None)

    moments.append(("created", pod["metadata"].get("creationTimestamp"), seen("created")))
    for name, kind in (("scheduled", "PodScheduled"), ("storage", "Initialized"), ("ready", "Ready")):
        if conditions.get(kind, {}).get("status") == "True":
            moments.append((name, conditions[kind].get("lastTransitionTime"), seen(name)))
    for event in events:
        if event.pod == pod["metadata"]["name"] and event.reason == "Pulled":
            stamp = event.event.get("eventTime") or event.event.get("firstTimestamp")
            moments.append(("image", stamp, event.wall_s))
    compared = [(name, stamp, at) for name, stamp, at in moments if stamp is not None and at is not None]
    if not compared:
        return "the pod has no timestamp that could be compared"
    for name, stamp, at in compared:
        span = stamped(stamp, offset_s)
        if not span.least - TOLERANCE_S <= at <= span.most + TOLERANCE_S:
            off = at - datetime.fromisoformat(stamp).timestamp()
            return f"{name}: Kubernetes says {stamp}, and it was seen {off:+.1f} s from that"
    return ""
