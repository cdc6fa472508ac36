"""Processor time of a block, from kubelets that look at their pods every ten seconds or so and say when they did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from harness.base.errors import MeasurementError
from harness.kubernetes.kserve import KServe, Used

FRESH_WITHIN_S = 60.0
"""Kubelets look at a pod every 10 to 15 s."""
POLL_S = 0.5

Usage = Mapping[str, Used]


async def fresh(kserve: KServe, service: str) -> Usage:
    """What the pods of a service have used, as seen after this was called. Raises ClusterError, and MeasurementError
    where the kubelets do not look again."""
    first = await kserve.usage(service)
    deadline = time.monotonic() + FRESH_WITHIN_S
    while True:
        found = await kserve.usage(service)
        if _later(found, first):
            return found
        if time.monotonic() > deadline:
            raise MeasurementError(f"the kubelets have not looked at the pods of {service} for {FRESH_WITHIN_S:g} s")
        await asyncio.sleep(POLL_S)


def _later(found: Usage, first: Usage) -> bool:
    return all(found[pod].at_s > then.at_s for pod, then in first.items() if pod in found)


def busy_s(rest: Usage, before: Usage, after: Usage, block_s: float) -> float:
    """Processor seconds of a block of ``block_s`` that lies between two readings, without what the pods use at rest in
    the time between the readings that is not the block's. ``rest`` is a reading from before, since when they rested.

    Raises MeasurementError where pods went away meanwhile: nobody knows what they had used.
    """
    if gone := sorted(set(before) - set(after)):
        raise MeasurementError(f"{', '.join(gone)} went away during a block: its processor time is not known")
    total = 0.0
    for pod, now in after.items():
        then = before.get(pod)
        if then is None:
            total += now.cpu_s  # it came during the block
            continue
        idle = 0.0
        if (earlier := rest.get(pod)) is not None and then.at_s > earlier.at_s:
            idle = max(then.cpu_s - earlier.cpu_s, 0.0) / (then.at_s - earlier.at_s)
        outside_s = max(now.at_s - then.at_s - block_s, 0.0)
        total += now.cpu_s - then.cpu_s - idle * outside_s
    return total


class Meter:
    """Of one variant, over all of its blocks. Without ``cpu`` memory alone, which needs no waiting."""

    def __init__(self, *, cpu: bool) -> None:
        self._cpu = cpu
        self._last: Usage = {}
        self._before: Usage = {}
        self._begun = 0.0

    async def begin(self, kserve: KServe, service: str) -> None:
        if not self._cpu:
            self._before = await kserve.usage(service)
            return
        now: Usage = await kserve.usage(service)
        if not set(self._last) & set(now):  # the first block, or pods of its own
            self._last = await fresh(kserve, service)
            now = await fresh(kserve, service)
        elif not _later(now, self._last):
            now = await fresh(kserve, service)
        # Otherwise an older look will do: since the last block the pods have been at rest.
        self._before = now
        self._begun = time.monotonic()

    async def end(self, kserve: KServe, service: str) -> dict[str, float]:
        """``cpu``: processor seconds of the block; ``memory``: the most bytes at one of its ends."""
        block_s = time.monotonic() - self._begun
        after = await fresh(kserve, service) if self._cpu else await kserve.usage(service)
        held = [float(sum(item.memory_bytes for item in usage.values())) for usage in (self._before, after)]
        if not self._cpu:
            return {"memory": max(held)}
        cpu_s = busy_s(self._last, self._before, after, block_s)
        if cpu_s <= 0:
            raise MeasurementError(
                f"{service}: the kubelets saw no processor time in a block of {block_s:.1f} s; make 'duration' longer,"
                " or name a counter of the pods (cpu: {metric: process_cpu_seconds_total})"
            )
        self._last = after
        return {"cpu": cpu_s, "memory": max(held)}
