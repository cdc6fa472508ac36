"""The values that people write into scenario files: durations, rates and shares, each with its unit."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from harness.base.units import parse_duration, parse_rate, parse_share

NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


def _duration(value: object) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError(f"expected a duration with a unit (us, ms, s, m, h) such as 30s or 250ms, got {value!r}")


def _rate(value: object) -> object:
    if isinstance(value, str | int | float):
        return parse_rate(value)
    raise ValueError(f"expected a rate such as 200/s, got {value!r}")


def _share(value: object) -> object:
    share = parse_share(value) if isinstance(value, str) else value
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"expected a share such as 5% or 0.05, got {value!r}")
    return share


METAVARS = {_duration: "T", _rate: "R", _share: "SHARE"}
"""How help texts call a value that is read so."""
_UNIT = {"type": "string", "pattern": r"^\s*(\d+(\.\d+)?\s*(us|ms|s|m|h)\s*)+$", "examples": ["30s", "250ms", "1m30s"]}
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(lambda value: f"{value:.9g}s", return_type=str),
    WithJsonSchema(_UNIT),
]
Rate = Annotated[
    float,
    BeforeValidator(_rate),
    PlainSerializer(lambda value: f"{value:g}/s", return_type=str),
    WithJsonSchema({"type": ["string", "number"], "examples": ["200/s", "600/m", 200]}),
]
Share = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(lambda value: f"{value * 100:.9g}%", return_type=str),
    WithJsonSchema({"type": ["string", "number"], "examples": ["5%", 0.05]}),
]


class Strict(BaseModel):
    """An unknown field is a mistake, and nothing changes after it was read."""

    # Built when first used: most commands need few of the models.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
