"""What a scenario file may say: the cluster, the services, and the steps that are carried out on them.

The JSON schema of the format comes from this model and those of the suites.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from cluster.model import ClusterChoice, Local
from harness.base.fields import NAME, Strict
from scenarios.model.services import Service
from scenarios.model.steps import Step
from scenarios.suites import suites

if TYPE_CHECKING:
    AnyStep = Step
else:
    AnyStep = Annotated[reduce(or_, [suite.step for suite in suites().values()]), Field(discriminator="suite")]
    """A step of one of the suites that there are."""


class Scenario(Strict):
    """A servecert scenario."""

    name: str = Field(pattern=NAME)
    description: str = ""
    seed: int = 1
    cluster: ClusterChoice = Field(default_factory=Local)
    namespace: str = Field("servecert", pattern=NAME)
    services: dict[Annotated[str, Field(pattern=NAME)], Service] = Field(min_length=1)
    steps: list[AnyStep] = Field(min_length=1)

    def in_turn(self) -> set[str]:
        """Services that are deployed when it is their turn in a comparison, and not before."""
        turns = [step for step in self.steps if step.in_turn()]
        return {name for step in turns for name in (step.service, *(other for _, other in step.others()))}

    def step_name(self, index: int) -> str:
        step = self.steps[index]
        return step.name or f"{index + 1}-{step.suite}-{step.service}"
