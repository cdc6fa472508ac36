"""Colours of plots and pages. One thing has one colour, on every page and in every plot.

Kinds of things: runtimes have warm hues and greens, percentiles blues that darken towards the tail (lighten, on a dark
page), what was planned or expected is grey, errors are red and have a mark of their own. Hues are Okabe and Ito's,
told apart with any colour vision; nothing is told by colour alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

INK, SOFT, EDGE, GRID = "#1c2530", "#4b5563", "#8a929c", "#e3e6ea"
PLAN = EDGE
ERROR = "#c0262d"
GOOD, WORSE, SAME = "#009e73", "#d55e00", "#0072b2"
PERCENTILES = {
    "p50": "#56b4e9",
    "p90": "#3394cc",
    "p95": "#0072b2",
    "p99": "#004b7a",
    "p99_9": "#00304f",
    "max": "#7d8691",
}
PODS = {"ready": SAME, "desired": WORSE, "offered": GOOD}
VERDICTS = {"faster": GOOD, "slower": WORSE, "equivalent": SAME, "undecided": EDGE}
_RUNTIMES = {
    "kserve": "#d55e00",
    "mlserver": "#009e73",
    "triton": "#e69f00",
    "torchserve": "#cc79a7",
    "reference": "#8c6d31",
    "huggingface": "#b8428c",
    "vllm": "#5b8c00",
    "sklearn": "#c98b52",
    "xgboost": "#7a9a8c",
}
_OTHER = "#6f5f8f"
PHASES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a929c", "#b8a800")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))

DARK = {
    INK: "#e6eaf0",
    SOFT: "#a9b4c0",
    EDGE: "#7d8793",
    GRID: "#303844",
    ERROR: "#ff6b6b",
    GOOD: "#2cc295",
    WORSE: "#ff8a3d",
    SAME: "#5aa9e6",
    "#56b4e9": "#2f7fb5",
    "#3394cc": "#4f9dd0",
    "#004b7a": "#9fd3f5",
    "#00304f": "#d3ecfb",
    "#7d8691": "#98a2ae",
    "#8c6d31": "#c9a45a",
    "#b8428c": "#e07cba",
    "#5b8c00": "#9ccc3c",
    _OTHER: "#a996cf",
}
"""What a colour becomes on a dark page; others stay as they are."""


def colour_of(runtime: str) -> str:
    """A runtime's colour is that of its family: versions differ by the kind of line."""
    return _RUNTIMES.get(runtime.partition("@")[0], _OTHER)


def styles(runtimes: Iterable[str]) -> list[tuple[str, object]]:
    """Colour and kind of line, so that no two of the same colour look the same."""
    seen: dict[str, int] = {}
    found: list[tuple[str, object]] = []
    for runtime in runtimes:
        colour = colour_of(runtime)
        place = seen[colour] = seen.get(colour, -1) + 1
        found.append((colour, LINES[place % len(LINES)]))
    return found


def themed(svg: str) -> str:
    """Colours that differ on a dark page become CSS variables of the page, with themselves as the default."""
    return re.sub(
        "|".join(map(re.escape, DARK)), lambda match: f"var({_variable(match[0])},{match[0]})", svg, flags=re.IGNORECASE
    )


def dark_variables() -> str:
    """CSS declarations for a dark page."""
    return " ".join(f"{_variable(light)}:{dark};" for light, dark in DARK.items())


def _variable(colour: str) -> str:
    return f"--p{colour.lower().removeprefix('#')}"
