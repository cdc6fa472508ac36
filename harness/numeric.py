"""How far one tensor is from another, element by element. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.protocol.tensors import Tensor, to_raw


@dataclass(frozen=True)
class Tolerance:
    """Within: ``|observed - expected| <= absolute + relative * |expected|``; both zero asks for the same bits."""

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
    """``worst_index`` is where the relative error is largest (the first differing element of other datatypes)."""

    elements: int
    max_abs_error: float
    max_rel_error: float
    max_ulp: int | None
    argmax_agreement: float | None
    worst_index: tuple[int, ...]
    worst_expected: str
    worst_observed: str
    within: bool


def distance(expected: Tensor, observed: Tensor, tolerance: Tolerance) -> Distance:
    """Shapes and datatypes must agree (ValueError otherwise). NaN equals NaN and is infinitely far from a number."""
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
        absolute = np.where(same, 0, np.abs(wide_b - wide_a))
        absolute = np.where(np.isnan(absolute), np.inf, absolute)
        relative = np.where(same, 0, absolute / np.abs(wide_a))
        relative = np.where(np.isnan(relative), np.inf, relative)
        within = same | (absolute <= tolerance.absolute + tolerance.relative * np.abs(wide_a))
    place = np.unravel_index(int(np.argmax(relative)), a.shape) if a.shape else ()
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
    )


def _exact_distance(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> Distance:
    differs = np.asarray(a != b)
    numbers = a.dtype.kind in "iu"
    pairs = [(int(x), int(y)) for x, y in zip(a[differs], b[differs], strict=True)] if numbers else []
    gaps = [abs(x - y) for x, y in pairs]
    rates = [abs(x - y) / abs(x) if x else float("inf") for x, y in pairs]
    wrong = bool(differs.any())
    place = np.unravel_index(int(np.argmax(differs)), a.shape) if a.shape else ()
    error = 0.0 if not wrong else float(max(gaps)) if numbers else float("inf")
    rate = 0.0 if not wrong else max(rates) if numbers else float("inf")
    shown = [repr(side[place] if a.dtype == object else side[place].item()) for side in (a, b)]
    index = tuple(int(step) for step in place)
    return Distance(int(a.size), error, rate, None, None, index, shown[0], shown[1], not wrong)


def _max_ulp(expected: Tensor, observed: Tensor) -> int:
    """Representable numbers between the two: floats of one sign are ordered as their bits are."""
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
    """The share of rows whose largest element is at the same place; None where a row has a single element."""
    if a.ndim < 2 or a.shape[-1] < 2:
        return None
    width = a.shape[-1]
    return float(np.mean(a.reshape(-1, width).argmax(axis=1) == b.reshape(-1, width).argmax(axis=1)))
