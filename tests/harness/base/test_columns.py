"""Columns that do not fit into memory: what is written comes back, and costs nothing meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from harness.base import columns
from harness.base.columns import (
    WHOLE_PAGES_ROWS,
    ColumnWriter,
    Room,
    elapsed_s,
    gathered,
    let_go,
    open_columns,
    together,
)

MIB = 1 << 20


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def test_what_is_written_in_pieces_comes_back_after_the_files_are_gone(tmp_path: Path) -> None:
    writer = ColumnWriter(tmp_path)
    for first in range(0, 100, 30):
        part = np.arange(first, min(first + 30, 100), dtype=np.int64)
        writer.write({"a": part, "b": (part % 7).astype(np.int16), "none": part[:0]})
    writer.close()
    found = open_columns(tmp_path, writer.dtypes)
    for path in list(tmp_path.iterdir()):
        path.unlink()
    assert found["a"].tolist() == list(range(100))
    assert found["b"].dtype == np.int16
    assert found["none"].size == 0
    let_go(found["a"], found["a"][10:20], found["none"], np.zeros(3))
    assert found["a"][99] == 99, "what is let go is read again"


def test_elapsed_time_leaves_out_what_never_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "PIECE_ROWS", 3)
    earlier = np.array([0, -1, 10, 20, -1, 30, 40])
    assert elapsed_s(earlier + 2_000_000_000, earlier).tolist() == [2.0] * 5


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_parts_are_gathered_and_merged_alike_in_memory_and_in_files(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_IN_MEMORY", most)
    parts = [{"due": np.array([1, 4, 5])}, {"due": np.array([2, 3, 9])}]
    assert gathered(iter(parts), 6)["due"].tolist() == [1, 4, 5, 2, 3, 9]
    order = np.argsort([1, 4, 5, 2, 3, 9])
    assert together(parts, order)["due"].tolist() == [1, 2, 3, 4, 5, 9]


def test_room_that_is_given_back_is_zero_again_and_free() -> None:
    rows = 256 * WHOLE_PAGES_ROWS
    before = resident_bytes()
    room = Room(rows, "int64")
    room.array[:] = 1
    full = resident_bytes()
    room.discard(0, rows - WHOLE_PAGES_ROWS)
    assert full - before > 60 * MIB
    assert resident_bytes() - before < 20 * MIB
    assert room.array[0] == 0
    assert room.array[-1] == 1
