"""What a person who watches a stage of load sees of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from harness.base.errors import ServecertError
from harness.base.units import format_duration
from harness.kubernetes.kserve import is_pod_ready
from harness.load.runner import Progress
from scenarios.suites.shared.deployed import Deployed

REPLICAS_S = 2.0
RATE_OVER_S = 2.0


class Live:
    """Puts each progress into words: how far, the rate right now, percentiles so far, errors, and pods."""

    def __init__(self, name: str, total_s: float, tell: Callable[[str], None]) -> None:
        self.name = name
        self.total_s = total_s
        self.tell = tell
        self.pods = ""
        self._seen: list[Progress] = []

    def show(self, progress: Progress) -> None:
        if self._seen and progress.elapsed_s < self._seen[-1].elapsed_s:
            self._seen = []  # another stage: a warm-up, or a trial of a search
        self._seen.append(progress)
        while len(self._seen) > 2 and progress.elapsed_s - self._seen[0].elapsed_s > RATE_OVER_S:
            del self._seen[0]
        self.tell(self._words(progress))

    def _words(self, progress: Progress) -> str:
        first = self._seen[0]
        seconds, done = progress.elapsed_s, progress.done
        if len(self._seen) > 1:
            seconds, done = seconds - first.elapsed_s, done - first.done
        parts = [f"{self.name}: {min(progress.elapsed_s, self.total_s):.0f} of {self.total_s:.0f} s"]
        if seconds > 0:
            parts.append(f"{done / seconds:.1f}/s now")
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            if (value := progress.percentile_s(q)) is not None:
                parts.append(f"{name} {format_duration(value)}")
        parts += [f"{progress.done} done", f"{progress.errors} errors", f"{progress.in_flight} in flight"]
        return ", ".join(parts) + self.pods

    @contextlib.asynccontextmanager
    async def counting_pods(self, deployed: Deployed | None) -> AsyncIterator[None]:
        """Counts the service's pods meanwhile; what cannot be had is not worth failing for."""
        if deployed is None:
            yield
            return
        task = asyncio.create_task(self._count(deployed))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _count(self, deployed: Deployed) -> None:
        while True:
            with contextlib.suppress(ServecertError):
                pods = await deployed.pods()
                self.pods = f"; {sum(map(is_pod_ready, pods))} of {len(pods)} pods ready"
            await asyncio.sleep(REPLICAS_S)
