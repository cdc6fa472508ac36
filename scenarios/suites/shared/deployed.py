"""A service on a cluster, for suites that change it and watch what becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from harness.base.errors import ClusterError, DeployError, MeasurementError
from harness.kubernetes.kserve import KServe, hopeless, is_isvc_ready, is_pod_ready, traffic_of
from harness.target.endpoint import Endpoint
from scenarios.model.services import Variant

Object = dict[str, Any]
POLL_S = 0.1


@dataclass(frozen=True)
class Deployed:
    """``variant`` builds the predictor of another version of the service, and applies what it needs besides it."""

    kserve: KServe
    endpoint: Endpoint
    manifest: Object
    variant: Callable[[Variant], Awaitable[Object]]

    @property
    def name(self) -> str:
        return self.endpoint.service

    @property
    def predictor(self) -> Object:
        found: Object = self.manifest["spec"]["predictor"]
        return found

    async def isvc(self) -> Object:
        try:
            return await self.kserve.get(self.name)
        except LookupError as error:
            raise ClusterError(f"InferenceService {self.name} is gone") from error

    async def replace(self, predictor: Object) -> None:
        """Another predictor in place of the present one."""
        await self.kserve.apply({**self.manifest, "spec": {**self.manifest["spec"], "predictor": predictor}})

    async def restore(self) -> None:
        """As it was deployed."""
        await self.kserve.apply(self.manifest)

    async def settled(self, within_s: float) -> None:
        """Returns when what was asked for last is ready; what is on its way out does not count. Raises
        MeasurementError."""

        async def ready() -> bool:
            return is_isvc_ready(await self.isvc())

        await self.until("readiness after it was restored", ready, within_s)

    async def pods(self) -> list[Object]:
        return await self.kserve.pods(self.name)

    async def ready_pods(self) -> list[Object]:
        return [pod for pod in await self.pods() if is_pod_ready(pod)]

    async def component(self) -> Object:
        """``status.components.predictor``."""
        status = (await self.isvc()).get("status") or {}
        found: Object = (status.get("components") or {}).get("predictor") or {}
        return found

    async def traffic(self) -> dict[str, int]:
        return traffic_of(await self.isvc())

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]], within_s: float) -> float:
        """Seconds until the condition held. Raises MeasurementError when it did not."""
        started = time.monotonic()
        while not await condition():
            if time.monotonic() - started > within_s:
                raise MeasurementError(f"{self.name}: {what} did not come within {within_s:g} s")
            await asyncio.sleep(POLL_S)
        return time.monotonic() - started

    async def until_created_is_ready(self, before: str, within_s: float) -> str:
        """The name of a revision newer than ``before`` that is ready. Raises DeployError as soon as it cannot be."""
        deadline = time.monotonic() + within_s
        while True:
            isvc = await self.isvc()
            predictor = ((isvc.get("status") or {}).get("components") or {}).get("predictor") or {}
            created = predictor.get("latestCreatedRevision", "")
            if created and created != before and predictor.get("latestReadyRevision") == created:
                return str(created)
            pods = [pod for pod in await self.pods() if revision_of(pod) == created != before]
            if why := hopeless(isvc, pods):
                raise DeployError(f"revision {created} of {self.name}: {why}", await self.kserve.last_log(pods))
            if time.monotonic() > deadline:
                raise DeployError(
                    f"{self.name}: no revision after {before} was ready within {within_s:g} s",
                    await self.kserve.last_log(pods),
                )
            await asyncio.sleep(POLL_S)


@dataclass(frozen=True)
class Turn:
    """A service that is deployed when it is its turn. ``up`` returns when it is ready and raises what kept it from
    that, ``down`` returns when nothing of it is left."""

    service: str
    runtime: str
    up: Callable[[], Awaitable[Deployed]]
    down: Callable[[], Awaitable[None]]


def revision_of(pod: Object) -> str:
    """Knative's revision; in Standard mode the deployment, which KServe names in the label ``app``."""
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get("serving.knative.dev/revision") or labels.get("app", "").removeprefix("isvc."))
