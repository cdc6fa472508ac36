"""What Kubernetes' events say of how often something happened and when. Pure functions."""

from __future__ import annotations

from typing import Any, NamedTuple

Object = dict[str, Any]


class Happened(NamedTuple):
    """``about`` is the name of the object that it happened to."""

    times: int
    about: str
    message: str


def times(event: Object) -> int:
    """How often it happened. An event that happens again counts up; the list of events does not grow."""
    return int((event.get("series") or {}).get("count") or event.get("count") or 1)


def last_stamp(event: Object) -> str | None:
    """When it happened last."""
    stamp = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return None if stamp is None else str(stamp)


def more_often(before: dict[str, Happened], after: dict[str, Happened]) -> list[Happened]:
    """What happened between two readings, by the uids of events, each with how often."""
    return [
        found._replace(times=count)
        for uid, found in after.items()
        if (count := found.times - (before[uid].times if uid in before else 0)) > 0
    ]


def likely_offset_s(bounds_s: tuple[float, float]) -> float:
    """How far the cluster's clock is ahead, from what is known of it: nothing, where that may be; else the middle."""
    low, high = bounds_s
    return 0.0 if low <= 0 <= high else (low + high) / 2
