"""How far one tensor is from another, element by element. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.target.protocol.tensors import InferResult, Tensor, to_raw


@dataclass(frozen=True)
class Tolerance:
    """Within, of finite numbers: ``|observed - expected| <= absolute + relative * |expected|``. Both zero asks for
    equal numbers."""

    relative: float = 0.0
    absolute: float = 0.0

    def __str__(self) -> str:
        return f"rtol {self.relative:g}, atol {self.absolute:g}" if self.relative or self.absolute else "exact"


EXACT = Tolerance()
TOLERANCES: dict[str, Tolerance] = {
    "FP16": Tolerance(2e-3, 1e-4),
    "BF16": Tolerance(1.6e-2, 1e-3),
    "FP32": Tolerance(1e-5, 1e-6),
    "FP64": Tolerance(1e-10, 1e-12),
}
"""Room for another order of summation in the same precision; every other datatype must be exact."""
_ORDERED: dict[str, Any] = {"FP16": np.int16, "BF16": np.int16, "FP32": np.int32, "FP64": np.int64}


@dataclass(frozen=True)
class Distance:
    """``excess`` is the worst element's error over its own tolerance: 1 is the limit, and infinite is what no tolerance
    covers (an infinity or a NaN beside anything else, or any difference where the tolerance is zero).

    ``worst_index`` is where ``excess`` is largest, and of equal ones where the absolute error is. ``max_rel_error``
    leaves out an expected zero that was met within its tolerance, which has no relative error.
    """

    elements: int
    max_abs_error: float
    max_rel_error: float
    max_ulp: int | None
    argmax_agreement: float | None
    worst_index: tuple[int, ...]
    worst_expected: str
    worst_observed: str
    within: bool
    excess: float = 0.0

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Orders distances: the largest is the worst."""
        return not self.within, self.excess, self.max_abs_error


def distance(expected: Tensor, observed: Tensor, tolerance: Tolerance) -> Distance:
    """Shapes and datatypes must agree (ValueError otherwise). An infinity equals the same infinity and NaN equals NaN,
    whatever the tolerance is; beside anything else they are infinitely far."""
    if expected.shape != observed.shape or expected.datatype != observed.datatype:
        raise ValueError(
            f"expected {expected.datatype} {list(expected.shape)}, got {observed.datatype} {list(observed.shape)}"
        )
    a, b = expected.array.reshape(expected.shape), observed.array.reshape(observed.shape)
    if a.size == 0:
        return Distance(0, 0.0, 0.0, None, None, (), "", "", True)
    if expected.datatype not in _ORDERED:
        return _exact_distance(a, b)
    with np.errstate(all="ignore"):
        wide_a, wide_b = a.astype(np.longdouble), b.astype(np.longdouble)
        same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
        # What overflows in the subtraction is infinitely far too: this type is no wider than FP64 on some machines.
        absolute = np.where(same, 0, np.abs(wide_b - wide_a))
        absolute = np.where(np.isfinite(wide_a) & np.isfinite(wide_b) | same, absolute, np.inf)
        limit = tolerance.absolute + tolerance.relative * np.abs(wide_a)
        within = same | (np.isfinite(absolute) & (absolute <= limit))
        excess = np.where(same, 0, absolute / limit)
        # A tolerance of zero, or none that can be computed, covers no difference.
        excess = np.where(within, np.where(np.isfinite(excess), excess, 0), np.where(excess > 1, excess, np.inf))
        relative = np.where(same | (within & (wide_a == 0)), 0, absolute / np.abs(wide_a))
        relative = np.where(np.isnan(relative), np.inf, relative)
    worst = np.where(excess == excess.max(), absolute, -1)
    place = np.unravel_index(int(np.argmax(worst)), a.shape) if a.shape else ()
    return Distance(
        elements=int(a.size),
        max_abs_error=float(absolute.max()),
        max_rel_error=float(relative.max()),
        max_ulp=_max_ulp(expected, observed),
        argmax_agreement=_argmax_agreement(a, b),
        worst_index=tuple(int(index) for index in place),
        worst_expected=repr(a[place].item()),
        worst_observed=repr(b[place].item()),
        within=bool(within.all()),
        excess=float(excess.max()),
    )


def other_outputs(wanted: Sequence[Tensor], came: InferResult) -> str:
    """What is wrong with the names of an answer's outputs: each that is expected must be there once, and no other."""
    expected, names = sorted(tensor.name for tensor in wanted), sorted(tensor.name for tensor in came.outputs)
    return "" if expected == names else f"expected the outputs {expected}, got {names}"


def _exact_distance(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> Distance:
    """Of whole numbers the worst is the furthest; of others, which have no distance, the first that differs."""
    differs = np.asarray(a != b)
    places = np.argwhere(differs) if a.shape else np.zeros((int(differs), 0), dtype=np.intp)
    if not len(places):
        first = tuple(0 for _ in a.shape)
        shown = repr(a[first] if a.dtype == object else a[first].item())
        return Distance(int(a.size), 0.0, 0.0, None, None, first, shown, shown, True)
    worst, error, rate = 0, math.inf, math.inf
    if a.dtype.kind in "iu":
        pairs = [(int(x), int(y)) for x, y in zip(a[differs], b[differs], strict=True)]
        gaps = [abs(x - y) for x, y in pairs]
        worst = gaps.index(max(gaps))
        error, rate = float(gaps[worst]), max(abs(x - y) / abs(x) if x else math.inf for x, y in pairs)
    index = tuple(int(step) for step in places[worst])
    expected, observed = (repr(side[index] if a.dtype == object else side[index].item()) for side in (a, b))
    return Distance(int(a.size), error, rate, None, None, index, expected, observed, False, math.inf)


def _max_ulp(expected: Tensor, observed: Tensor) -> int:
    """Representable numbers between the two: floats of one sign are ordered as their bits are, an infinity next to the
    largest number. NaN beside a number counts as far as its bits are, which is further than that."""
    kind = _ORDERED[expected.datatype]
    smallest = int(np.iinfo(kind).min)

    def ordered(tensor: Tensor) -> list[int]:
        bits = np.frombuffer(to_raw(tensor), kind)
        return [int(value) if value >= 0 else smallest - int(value) for value in bits[differs]]

    raw_a = np.frombuffer(to_raw(expected), kind)
    raw_b = np.frombuffer(to_raw(observed), kind)
    differs = np.flatnonzero(raw_a != raw_b)
    nan = np.isnan(expected.flat.astype(np.float64)) & np.isnan(observed.flat.astype(np.float64))
    differs = differs[~nan[differs]]
    return max((abs(x - y) for x, y in zip(ordered(expected), ordered(observed), strict=True)), default=0)


def _argmax_agreement(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float | None:
    """The share of rows whose largest element is at the same place; None where a row has a single element. NaN is
    larger than nothing, and a row that has NaN elsewhere agrees in nothing."""
    if a.ndim < 2 or a.shape[-1] < 2:
        return None
    rows_a, rows_b = (side.reshape(-1, a.shape[-1]) for side in (a, b))
    nan_a, nan_b = np.isnan(rows_a), np.isnan(rows_b)
    first, second = (np.where(nan, -np.inf, rows).argmax(axis=1) for nan, rows in ((nan_a, rows_a), (nan_b, rows_b)))
    return float(np.mean((first == second) & (nan_a == nan_b).all(axis=1)))
