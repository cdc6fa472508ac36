"""Columns of numbers that need not fit into memory: an hour of load has tens of millions of rows.

A folder holds a file a column, plain numbers in this machine's byte order. What is written is appended piece by piece;
what is read is mapped, so that it lies in the page cache and in no process until it is touched.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

PIECE_ROWS = 1 << 18
"""Long columns are worked on in pieces of so many rows."""
WHOLE_PAGES_ROWS = 1 << 15
"""So many rows of any column fill whole pages of memory, however large those are."""
MOST_IN_MEMORY = 1 << 20
Array = npt.NDArray[Any]


class ColumnWriter:
    """Appends rows to the files of a folder, which it creates. Raises OSError when the disk is full."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, IO[bytes]] = {}

    def write(self, columns: Mapping[str, Array]) -> None:
        for name, values in columns.items():
            if name not in self._files:
                self._files[name] = (self.folder / name).open("wb")
                self.dtypes[name] = str(values.dtype)
            self._files[name].write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _FileMap(mmap.mmap):
    """A file's pages, which can be read again; those of a room cannot."""


def open_columns(folder: Path, dtypes: Mapping[str, str]) -> dict[str, Array]:
    """Read-only arrays over the files of ``folder``, which stay valid when the files are removed."""
    return {name: _mapped(folder / name, dtype) for name, dtype in dtypes.items()}


def _mapped(path: Path, dtype: str) -> Array:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return np.zeros(0, dtype)
        return np.frombuffer(_FileMap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def let_go(*arrays: Array) -> None:
    """Takes mapped arrays out of this process's memory until they are touched again; others stay as they are."""
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, memoryview):
            base = base.obj
        if isinstance(base, _FileMap):
            base.madvise(mmap.MADV_DONTNEED)


def pieces(rows: int) -> Iterator[slice]:
    """``rows`` in parts of at most ``PIECE_ROWS``."""
    for first in range(0, rows, PIECE_ROWS):
        yield slice(first, min(first + PIECE_ROWS, rows))


def elapsed_s(later_ns: Array, earlier_ns: Array) -> npt.NDArray[np.float64]:
    """Seconds between two moments, of the rows where both came (where neither is negative). Never holds more of mapped
    columns than a few pieces."""
    result = np.empty(later_ns.size)
    count = 0
    for number, part in enumerate(pieces(later_ns.size)):
        later, earlier = later_ns[part], earlier_ns[part]
        came = (later >= 0) & (earlier >= 0)
        seconds = (later[came] - earlier[came]) / 1e9
        result[count : count + seconds.size] = seconds
        count += seconds.size
        if number % 8 == 7:
            let_go(later_ns, earlier_ns)
    let_go(later_ns, earlier_ns)
    return result[:count]


class Room:
    """Zeros for ``rows`` rows in memory that is taken as they are written, and given back by ``discard``."""

    def __init__(self, rows: int, dtype: str) -> None:
        size = max(rows, 1) * np.dtype(dtype).itemsize
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._itemsize = np.dtype(dtype).itemsize
        self.array: Array = np.frombuffer(self._map, dtype, rows)

    def discard(self, first: int, last: int) -> None:
        """Rows ``first`` to ``last``, multiples of ``WHOLE_PAGES_ROWS``, are zeros again and cost nothing."""
        self._map.madvise(mmap.MADV_DONTNEED, first * self._itemsize, (last - first) * self._itemsize)


def gathered(parts: Iterable[Mapping[str, Array]], rows: int) -> dict[str, Array]:
    """Parts one after the other as whole columns: in memory, or in files where there are many rows."""
    if rows <= MOST_IN_MEMORY:
        found = list(parts)
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    with tempfile.TemporaryDirectory(prefix="servecert-samples-") as name:
        writer = ColumnWriter(Path(name))
        for part in parts:
            writer.write(part)
        writer.close()
        return open_columns(Path(name), writer.dtypes)


def together(parts: Sequence[Mapping[str, Array]], order: Array) -> dict[str, Array]:
    """The rows of all ``parts`` in ``order``; in files where there are many."""
    if order.size <= MOST_IN_MEMORY:
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    with tempfile.TemporaryDirectory(prefix="servecert-load-") as directory:
        writer = ColumnWriter(Path(directory))
        for name in parts[0]:
            values = np.concatenate([part[name] for part in parts])
            let_go(*(part[name] for part in parts))
            for piece in pieces(order.size):
                writer.write({name: values[order[piece]]})
        writer.close()
        return open_columns(Path(directory), writer.dtypes)
