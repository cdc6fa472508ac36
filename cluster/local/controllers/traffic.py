"""Which revision gets how much of an InferenceService's traffic. Pure functions.

Source: kserve/kserve, pkg/controller/v1beta1/inferenceservice/reconcilers/knative/ksvc_reconciler.go, and
PropagateStatus in pkg/apis/serving/v1beta1/inference_service_status.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROUNDS = 4


@dataclass(frozen=True)
class Target:
    revision: str
    percent: int
    latest: bool
    tag: str = ""

    def status(self, host: str) -> dict[str, Any]:
        """As in ``status.components.predictor.traffic``; ``host`` is what its tag, if any, is reached by."""
        entry: dict[str, Any] = {"revisionName": self.revision, "latestRevision": self.latest, "percent": self.percent}
        if self.tag:
            entry |= {"tag": self.tag, "url": f"http://{host}"}
        return entry


@dataclass(frozen=True)
class Rollout:
    """What the status remembers of revisions that had all the traffic."""

    rolled_out: str = ""
    previous: str = ""


def _targets(latest_ready: str, rolled_out: str, percent: int | None, tagged: bool) -> list[Target]:
    tag = "latest" if tagged else ""
    if percent is None or not rolled_out:
        return [Target(latest_ready, 100, True, tag)]
    targets = [Target(latest_ready, percent, True, tag)]
    if percent < 100:
        targets.append(Target(rolled_out, 100 - percent, False, "prev"))
    return targets


def _remember(targets: list[Target], rollout: Rollout, latest_created: str) -> Rollout:
    latest = targets[0]
    if rollout.rolled_out != latest.revision:
        if latest.percent == 100:
            return Rollout(latest.revision, rollout.rolled_out)
        return rollout
    everything = sum(target.percent for target in targets if target.revision == latest.revision)
    rolled_back = latest.revision == latest_created and latest.percent < 100 and everything == 100
    if rolled_back and rollout.previous:
        return Rollout(rollout.previous, rollout.previous)
    return rollout


def route_traffic(
    latest_created: str, latest_ready: str, rollout: Rollout, percent: int | None, *, tagged: bool
) -> tuple[list[Target], Rollout]:
    """Targets, the latest revision first, and what the status remembers from now on; none before anything is ready.

    ``percent`` is ``canaryTrafficPercent``. The two depend on each other: they are followed until they agree.
    """
    if not latest_ready:
        return [], rollout
    for _ in range(ROUNDS):
        targets = _targets(latest_ready, rollout.rolled_out, percent, tagged)
        remembered = _remember(targets, rollout, latest_created)
        if remembered == rollout:
            break
        rollout = remembered
    return targets, rollout
