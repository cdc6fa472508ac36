"""How a candidate is offered, given more, promoted and taken back: by percentages of revisions in Knative mode, by
``spec.canary`` beside the stable deployment in Standard mode.

What a mode calls a revision is Knative's revision, or a deployment. Each operation returns when the status says that it
is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from harness.base.errors import DeployError
from harness.kubernetes.kserve import hopeless, is_pod_ready
from scenarios.suites.shared.deployed import Deployed, revision_of

Object = dict[str, Any]
STATUS_S = 30.0
"""How long the status may take to follow the specification."""
CLEAR = "canaryTrafficPercent"
STANDARD = ("Standard", "RawDeployment")
_FIXED = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "name")
"""What a canary of Standard mode must not set, or sets itself."""


class Mode(Protocol):
    field: str
    """What a person would write to give a candidate its part."""

    async def current(self) -> str:
        """The revision that serves; empty where there is none."""
        ...

    async def offer(self, name: str, wanted: Object, percent: int, current: str) -> str:
        """The candidate's revision, ready and with its part. Raises DeployError where it does not become ready."""
        ...

    async def shift(self, created: str, current: str, percent: int) -> None: ...

    async def promote(self, created: str, current: str) -> None: ...

    async def back(self, created: str, current: str) -> None:
        """After a promotion: the revision before it gets everything again."""
        ...

    async def withdraw(self, current: str) -> None:
        """Before a promotion: the candidate loses its part."""
        ...

    async def offer_broken(self, wrong: Object, current: str) -> str:
        """A candidate that cannot load; its revision, when its failure is there."""
        ...

    async def history(self) -> tuple[str, str] | None:
        """What the status says is rolled out, and what was before; None where it does not say."""
        ...

    async def share_of(self, revision: str) -> int:
        """Its part in percent, as the status has it."""
        ...

    async def without(self, revisions: set[str]) -> None:
        """Waits until none of them gets requests."""
        ...


async def mode_of(deployed: Deployed, ready_within_s: float) -> Mode:
    said = ((await deployed.isvc()).get("status") or {}).get("deploymentMode", "")
    return (StandardMode if said in STANDARD else KnativeMode)(deployed, ready_within_s)


@dataclass
class KnativeMode:
    deployed: Deployed
    ready_within_s: float
    field: str = CLEAR

    async def current(self) -> str:
        return str((await self.deployed.component()).get("latestReadyRevision", ""))

    async def offer(self, name: str, wanted: Object, percent: int, current: str) -> str:
        await self.deployed.replace({**wanted, CLEAR: percent})
        created = await self.deployed.until_created_is_ready(current, self.ready_within_s)
        await self._share({created: percent, current: 100 - percent})
        return created

    async def shift(self, created: str, current: str, percent: int) -> None:
        await self._patch(percent)
        await self._share({created: percent, current: 100 - percent})

    async def promote(self, created: str, current: str) -> None:
        await self._patch(None)
        await self._share({created: 100})

    async def back(self, created: str, current: str) -> None:
        await self.withdraw(current)

    async def withdraw(self, current: str) -> None:
        await self._patch(0)
        await self._share({current: 100})

    async def offer_broken(self, wrong: Object, current: str) -> str:
        await self.deployed.replace({**wrong, CLEAR: 50})
        created = ""

        async def fails() -> bool:
            nonlocal created
            created = str((await self.deployed.component()).get("latestCreatedRevision", ""))
            return created != current and await _is_hopeless(self.deployed, created)

        await self.deployed.until("the failure of a version without a model", fails, self.ready_within_s)
        return created

    async def history(self) -> tuple[str, str] | None:
        status = await self.deployed.component()
        return str(status.get("latestRolledoutRevision")), str(status.get("previousRolledoutRevision"))

    async def share_of(self, revision: str) -> int:
        return (await self.deployed.traffic()).get(revision, 0)

    async def without(self, revisions: set[str]) -> None:
        async def none() -> bool:
            shares = await self.deployed.traffic()
            return bool(shares) and not any(shares.get(name) for name in revisions)

        await self.deployed.until("traffic to the service as it was", none, self.ready_within_s)

    async def _patch(self, percent: int | None) -> None:
        await self.deployed.kserve.patch(self.deployed.name, {"spec": {"predictor": {CLEAR: percent}}})

    async def _share(self, wanted: dict[str, int]) -> None:
        """Waits until the status has these shares; revisions with none may be absent."""

        async def agrees() -> bool:
            shares = {name: share for name, share in (await self.deployed.traffic()).items() if share}
            return shares == {name: share for name, share in wanted.items() if share}

        await self.deployed.until(f"traffic {wanted} in the status", agrees, STATUS_S)


@dataclass
class StandardMode:
    """Promotion makes the candidate's deployment the stable one, by its name, so that no pod is restarted."""

    deployed: Deployed
    ready_within_s: float
    field: str = "spec.canary[].trafficPercent"

    def __post_init__(self) -> None:
        self._wanted: dict[str, Object] = {}
        """The predictor of each deployment that was offered or served."""
        self._names: dict[str, str] = {}

    async def current(self) -> str:
        serving = {revision_of(pod) for pod in await self.deployed.ready_pods()}
        if len(serving) != 1:
            return ""
        (found,) = serving
        self._wanted.setdefault(found, self.deployed.predictor)
        return found

    async def offer(self, name: str, wanted: Object, percent: int, current: str) -> str:
        created = f"{self.deployed.name}-{name}-predictor"
        self._names[created] = name
        self._wanted[created] = wanted
        await self.shift(created, current, percent)
        return created

    async def shift(self, created: str, current: str, percent: int) -> None:
        await self._canary(self._names[created], self._wanted[created], percent)

        async def ready() -> bool:
            if await _is_hopeless(self.deployed, created):
                pods = [pod for pod in await self.deployed.pods() if revision_of(pod) == created]
                raise DeployError(f"{created} cannot start", await self.deployed.kserve.last_log(pods))
            return await self._status(self._names[created]) == (True, percent)

        await self.deployed.until(f"the canary {created} in the status", ready, self.ready_within_s)

    async def promote(self, created: str, current: str) -> None:
        await self._serve({**self._wanted[created], "name": self._names[created]}, created)

    async def back(self, created: str, current: str) -> None:
        name = self._names.get(current)
        predictor = self._wanted[current]
        await self._serve({**predictor, "name": name} if name else predictor, current)

    async def withdraw(self, current: str) -> None:
        await self.deployed.kserve.patch(self.deployed.name, {"spec": {"canary": None}})
        await self._only(current)

    async def offer_broken(self, wrong: Object, current: str) -> str:
        created = f"{self.deployed.name}-broken-predictor"
        await self._canary("broken", wrong, 50)

        async def fails() -> bool:
            return await _is_hopeless(self.deployed, created)

        await self.deployed.until("the failure of a version without a model", fails, self.ready_within_s)
        return created

    async def history(self) -> tuple[str, str] | None:
        return None

    async def share_of(self, revision: str) -> int:
        name = revision.removeprefix(f"{self.deployed.name}-").removesuffix("-predictor")
        ready, percent = await self._status(name)
        return percent if ready else 0  # a canary that is not ready has none, whatever it is to have

    async def without(self, revisions: set[str]) -> None:
        async def none() -> bool:
            pods = await self.deployed.pods()
            return any(map(is_pod_ready, pods)) and not any(revision_of(pod) in revisions for pod in pods)

        await self.deployed.until("the end of the candidates' pods", none, self.ready_within_s)

    async def _canary(self, name: str, wanted: Object, percent: int) -> None:
        predictor = {key: value for key, value in wanted.items() if key not in _FIXED}
        canary = [{"predictor": {**predictor, "name": name}, "trafficPercent": percent}]
        await self.deployed.kserve.patch(self.deployed.name, {"spec": {"canary": canary}})

    async def _status(self, name: str) -> tuple[bool, int]:
        status = (await self.deployed.isvc()).get("status") or {}
        for item in status.get("canaryStatuses") or []:
            if item["name"] == name:
                return bool(item.get("ready")), int(item.get("trafficPercent", 0))
        return False, 0

    async def _serve(self, predictor: Object, deployment: str) -> None:
        """``predictor`` as the stable one, without canaries."""
        await self.deployed.replace(predictor)
        await self._only(deployment)

    async def _only(self, deployment: str) -> None:
        async def alone() -> bool:
            pods = await self.deployed.pods()
            return {revision_of(pod) for pod in pods} == {deployment} and any(map(is_pod_ready, pods))

        await self.deployed.until(f"nothing but pods of {deployment}", alone, self.ready_within_s)


async def _is_hopeless(deployed: Deployed, revision: str) -> bool:
    pods = [pod for pod in await deployed.pods() if revision_of(pod) == revision]
    return hopeless(await deployed.isvc(), pods) is not None
