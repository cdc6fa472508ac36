"""What a scenario says of a parity step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.base.fields import Strict
from harness.target.numeric import Tolerance
from scenarios.model.steps import Step


class ToleranceChoice(Strict):
    relative: float = Field(0.0, ge=0, allow_inf_nan=False)
    absolute: float = Field(0.0, ge=0, allow_inf_nan=False)


class ParityStep(Step):
    """Whether the service gives the numbers that the model's framework gives offline."""

    needs_golden: ClassVar[bool] = True
    through_ingress: ClassVar[bool] = False

    suite: Literal["parity"]
    tolerances: dict[str, ToleranceChoice] = Field(default_factory=dict, description="by datatype, such as FP32")

    def chosen(self) -> dict[str, Tolerance]:
        return {name: Tolerance(item.relative, item.absolute) for name, item in self.tolerances.items()}

    def asks_grpc(self) -> bool:
        return True
