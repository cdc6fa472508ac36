"""Quantities as people write them: ``30s``, ``250ms``, ``200/s``, ``0.1%``."""

from __future__ import annotations

import math
import re

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h)")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%\s*of\s+(\S.*)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds from ``1m30s``, ``30s``, ``250ms``. Raises ValueError; a bare number has no unit and is refused."""
    squeezed = text.strip()
    parts = _DURATION.findall(squeezed)
    if not parts or _DURATION.sub("", squeezed).strip():
        raise ValueError(f"expected a duration with a unit (us, ms, s, m, h) such as 30s or 250ms, got {text!r}")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_share(text: str) -> float:
    """A part of one from ``0.1%`` or ``0.001``. Raises ValueError."""
    number = text.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise ValueError(f"expected a share such as 0.1% or 0.001, got {text!r}") from None


def parse_rate(text: str | float) -> float:
    """Requests a second from ``200/s``, ``600/m``, ``150% of 200/s`` or a plain number. Raises ValueError."""
    if isinstance(text, bool):
        raise ValueError(f"expected a rate such as 200/s, got {text!r}")
    if isinstance(text, int | float):
        rate = float(text)
    elif match := _SHARE.fullmatch(text.strip()):
        rate = float(match[1]) / 100 * parse_rate(match[2])
    elif match := _RATE.fullmatch(text.strip()):
        rate = float(match[1]) / _SECONDS[match[2]]
    else:
        try:
            rate = float(text)
        except ValueError:
            raise ValueError(f"expected a rate such as 200/s or 600/m, got {text!r}") from None
    if not 0 < rate < 1e9:
        raise ValueError(f"expected a rate above 0/s, got {text!r}")
    return rate


def format_duration(seconds: float) -> str:
    """Three significant digits in the unit a reader would choose; ``never`` of what has no end."""
    if seconds == math.inf:
        return "never"
    magnitude = abs(seconds)
    if magnitude >= 100:
        return f"{seconds:.0f} s"
    if magnitude >= 1:
        return f"{seconds:.3g} s"
    if magnitude >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"
