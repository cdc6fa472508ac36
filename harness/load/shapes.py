"""Rates over time as people write them: ``ramp 10/s to 200/s``, ``steps 50/s 100/s 200/s``,
``spike 50/s to 500/s for 5s``, ``pulse 5/s to 60/s for 3s every 10s``, ``sine 100/s +- 50/s every 20s``."""

from __future__ import annotations

import re

from harness.base.units import parse_duration, parse_rate
from harness.load import arrivals

_RATE = r"(\S+/[smh])"
_FORMS = (
    (re.compile(rf"ramp\s+{_RATE}\s+to\s+{_RATE}"), "ramp"),
    (re.compile(r"steps\s+(\S.*)"), "steps"),
    (re.compile(rf"spike\s+{_RATE}\s+to\s+{_RATE}\s+for\s+(\S+)"), "spike"),
    (re.compile(rf"pulse\s+{_RATE}\s+to\s+{_RATE}\s+for\s+(\S+)\s+every\s+(\S+)"), "pulse"),
    (re.compile(rf"sine\s+{_RATE}\s+(?:\+-|±)\s+{_RATE}\s+every\s+(\S+)"), "sine"),
)
EXPECTED = (
    "expected 'ramp 10/s to 200/s', 'steps 50/s 100/s 200/s', 'spike 50/s to 500/s for 5s',"
    " 'pulse 5/s to 60/s for 3s every 10s' or 'sine 100/s +- 50/s every 20s'"
)


def parse_shape(text: str, duration_s: float) -> list[arrivals.Segment]:
    """Raises ValueError saying what is allowed."""
    for form, kind in _FORMS:
        match = form.fullmatch(text.strip())
        if match is None:
            continue
        parts = match.groups()
        if kind == "ramp":
            return arrivals.ramp(parse_rate(parts[0]), parse_rate(parts[1]), duration_s)
        if kind == "steps":
            return arrivals.steps([parse_rate(item) for item in parts[0].split()], duration_s)
        if kind == "spike":
            return arrivals.spike(parse_rate(parts[0]), parse_rate(parts[1]), parse_duration(parts[2]), duration_s)
        if kind == "pulse":
            width_s, period_s = parse_duration(parts[2]), parse_duration(parts[3])
            return arrivals.pulse(parse_rate(parts[0]), parse_rate(parts[1]), width_s, period_s, duration_s)
        return arrivals.sine(parse_rate(parts[0]), parse_rate(parts[1]), parse_duration(parts[2]), duration_s)
    raise ValueError(f"{EXPECTED}, got {text!r}")
