"""Which errors a stage met: how many of each class and status, and what the first of them said. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.columns import let_go, pieces
from harness.base.shown import SAID_BYTES, visible
from harness.load.recording import ERRORS, WRONG_ANSWER, Example, Examples
from harness.load.runner import StageResult
from harness.results.records import ErrorSeen

NOTHING = Example(0.0, "")
SHORT = 120
"""Characters of what a server said, where a check says it in one line."""


def errors_seen(
    error: npt.NDArray[np.int16], status: npt.NDArray[np.int32], done_ns: npt.NDArray[np.int64], examples: Examples
) -> tuple[ErrorSeen, ...]:
    """Of the rows given, the most frequent first; ``done_ns`` counts from the start of the stage."""
    counts: dict[tuple[int, int], int] = {}
    first_ns: dict[tuple[int, int], int] = {}
    for part in pieces(error.size):
        bad = np.flatnonzero(error[part])
        kinds = np.stack([error[part][bad], status[part][bad]], axis=1).astype(np.int64)
        found, which = np.unique(kinds, axis=0, return_inverse=True)
        ends = np.full(len(found), np.iinfo(np.int64).max)
        np.minimum.at(ends, which.ravel(), done_ns[part][bad])
        sizes = np.bincount(which.ravel(), minlength=len(found))
        for (kind, code), count, end in zip(found.tolist(), sizes.tolist(), ends.tolist(), strict=True):
            counts[kind, code] = counts.get((kind, code), 0) + count
            first_ns[kind, code] = min(first_ns.get((kind, code), end), end)
    let_go(error, status, done_ns)
    rows = []
    for (kind, code), count in counts.items():
        seen = examples.get((kind, code), NOTHING)
        first_s = round(first_ns[kind, code] / 1e9, 6)
        rows.append(ErrorSeen(ERRORS[kind], code, count, first_s, seen.detail, seen.location))
    return tuple(sorted(rows, key=lambda row: (-row.count, row.kind, row.status)))


def in_words(seen: tuple[ErrorSeen, ...]) -> str:
    """For a check's line: counts, statuses and the first words; empty where there is no error."""
    return ", ".join(f"{row.count} {row.name}" + (f" {visible(row.said, SHORT)}" if row.said else "") for row in seen)


def stage_errors(stage: StageResult, errors: npt.NDArray[np.int16] | None = None) -> str:
    """The same of a whole stage, or of its first rows; ``errors`` in the place of its own, one a row."""
    columns = stage.columns
    found = columns["error"] if errors is None else errors
    return in_words(
        errors_seen(found, columns["status"][: found.size], columns["done_ns"][: found.size], stage.examples)
    )


def mark_wrong(columns: dict[str, Any], wrong: Mapping[int, str]) -> dict[str, Any]:
    """A copy of the columns in which a wrong answer is an error; ``wrong`` by row."""
    errors = columns["error"].copy()
    errors[np.isin(columns["row"], list(wrong))] = WRONG_ANSWER
    return {**columns, "error": errors}


def with_wrong(stage: StageResult, columns: dict[str, npt.NDArray[Any]], wrong: dict[int, str]) -> StageResult:
    """The stage with an example of its wrong answers, which are found after it; ``columns`` count them as errors."""
    examples = dict(stage.examples)
    for place in np.flatnonzero(columns["error"] == WRONG_ANSWER).tolist():
        what = wrong[int(columns["row"][place])]
        example = Example(columns["done_ns"][place] / 1e9, visible(what, SAID_BYTES))
        examples.setdefault((WRONG_ANSWER, int(columns["status"][place])), example)
    return replace(stage, examples=examples)
