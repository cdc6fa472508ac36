"""Objectives as scenario files write them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from harness.base.errors import UsageError
from harness.results.slo import parse_slo


def _objective(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"expected an objective such as 'p99 < 50ms', got {value!r}")
    try:
        parse_slo(value)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return value


Slo = Annotated[
    str,
    BeforeValidator(_objective),
    WithJsonSchema({"type": "string", "examples": ["p99 < 50ms", "errors < 0.1%", "rate >= 99% of 200/s"]}),
]
