"""How many requests each revision has had, by a counter that its pods keep."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from harness.base.errors import MeasurementError
from scenarios.model.counters import Counter
from scenarios.suites.shared.deployed import Deployed, revision_of


@dataclass(frozen=True)
class Reading:
    """By pod: its revision, and the counter."""

    pods: dict[str, tuple[str, float]]

    def since(self, before: Reading) -> dict[str, int]:
        """Requests by revision between two readings. What a pod counted that went in between is lost: the sum tells.
        Raises MeasurementError where a counter has begun anew."""
        found: dict[str, float] = {}
        for name, (revision, value) in self.pods.items():
            earlier = before.pods.get(name, (revision, 0.0))[1]
            if value < earlier:
                raise MeasurementError(
                    f"the counter of pod {name} fell from {earlier:g} to {value:g}: it was restarted"
                )
            found[revision] = found.get(revision, 0.0) + value - earlier
        return {revision: round(count) for revision, count in found.items()}


def total(text: str, metric: str) -> float:
    """All samples of a metric in a Prometheus exposition, added up. Raises MeasurementError where it has none."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        values = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric
        ]
    except ValueError as error:
        raise MeasurementError(f"not a Prometheus exposition: {error}") from error
    if not values:
        raise MeasurementError(f"expected samples of {metric}, got none")
    return float(sum(values))


async def read(deployed: Deployed, counter: Counter) -> Reading:
    """Of all pods that are ready. Raises MeasurementError where one does not count."""

    async def one(pod: dict[str, object]) -> tuple[str, tuple[str, float]]:
        name = str(pod["metadata"]["name"])  # type: ignore[index]
        text = await deployed.kserve.ask_pod(name, counter.port, counter.path)
        try:
            return name, (revision_of(pod), total(text, counter.metric))
        except MeasurementError as error:
            raise MeasurementError(f"pod {name}, {counter.path} on port {counter.port}: {error}") from error

    return Reading(dict(await asyncio.gather(*(one(pod) for pod in await deployed.ready_pods()))))
