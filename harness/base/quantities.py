"""Kubernetes quantities: ``500m``, ``2Gi``."""

from __future__ import annotations

import re
from typing import Any

from harness.base.errors import UsageError

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([numkKMGTPE]?i?)B?")
_FACTORS = {
    "": 1,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "m": 1e-3,
    "u": 1e-6,
    "n": 1e-9,
}
_FACTORS |= {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", 1)}


def parse_quantity(value: Any) -> float | None:
    """A Kubernetes quantity as a number; None where it is none."""
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None or match[2] not in _FACTORS:
        return None
    return float(match[1]) * _FACTORS[match[2]]


def parse_bytes(text: str) -> float:
    """Bytes from ``2Gi``, ``500MB`` or a number. Raises UsageError."""
    found = parse_quantity(text)
    if found is None or found <= 0:
        raise UsageError(f"expected a size such as 2Gi or 500MB, got {text!r}")
    return found
