"""Which pod has which GPU: what the scheduler and NVIDIA's device plugin do on a node. One GPU is one pod's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.local.api.resources import Object

GPU = "nvidia.com/gpu"


def gpus_asked(pod: Object) -> int:
    """GPUs of all its containers. Their limits tell: a request that does not equal its limit is not admitted."""
    resources = [container.get("resources") or {} for container in pod["spec"]["containers"]]
    return sum(int((item.get("limits") or {}).get(GPU) or 0) for item in resources)


class Devices:
    def __init__(self, uuids: Sequence[str]) -> None:
        self._free = list(uuids)
        self._taken: dict[str, list[str]] = {}
        self.given_back = asyncio.Event()
        """Set, and another in its place, when some are free again."""

    def take(self, pod: str, count: int) -> bool:
        """``count`` of them for the pod with that uid; False where that many are not free now."""
        if count > len(self._free):
            return False
        self._taken[pod], self._free = self._free[:count], self._free[count:]
        return True

    def of(self, pod: str) -> list[str]:
        return self._taken.get(pod, [])

    def give_back(self, pod: str) -> None:
        self._free += self._taken.pop(pod, [])
        self.given_back.set()
        self.given_back = asyncio.Event()
