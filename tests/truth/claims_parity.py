"""Parity: one wrong element among many is always noticed, and a sound tensor never is."""

from __future__ import annotations

import math

import numpy as np

from harness.target.endpoint import Endpoint
from harness.target.numeric import TOLERANCES
from harness.target.protocol.tensors import DTYPES, InferResult, Tensor
from scenarios.suites.parity.suite import outputs_beside
from tests.truth.claim import Claim, Seen

_ENDPOINT = Endpoint("svc", "r", "http://127.0.0.1:1", "m")
_SHAPE = (4, 5)


def _drawn(generator: np.random.Generator, datatype: str) -> Tensor:
    """Numbers of many sizes, some of them zero, some not finite (masked logits)."""
    values = generator.normal(0, 1, _SHAPE) * 10.0 ** generator.integers(-3, 4, _SHAPE)
    values[generator.random(_SHAPE) < 0.1] = 0
    for special in (math.inf, -math.inf, math.nan):
        values[generator.random(_SHAPE) < 0.1] = special
    return _tensor(datatype, values)


def _tensor(datatype: str, values: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    with np.errstate(over="ignore"):
        return Tensor("t", datatype, _SHAPE, values.astype(DTYPES[datatype]))


def _within(expected: Tensor, observed: Tensor, place: tuple[int, ...] | None = None) -> bool:
    """Whether parity passes; a planted place must be the one that is named."""
    pairs = [((expected,), InferResult("m", None, None, (observed,)))]
    (found,) = outputs_beside(_ENDPOINT, "golden.rest", pairs, TOLERANCES, "s")
    return found.within or (place is not None and found.worst_index != (0, *place))


def _planted(special: bool) -> Claim:
    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng(seed)
        noticed = 0
        for number in range(trials):
            datatype = list(TOLERANCES)[number % len(TOLERANCES)]
            expected = _drawn(generator, datatype)
            place = (int(generator.integers(_SHAPE[0])), int(generator.integers(_SHAPE[1])))
            values = expected.array.astype(np.float64).copy()
            old = values[place]
            if special or not math.isfinite(old):
                others = [v for v in (math.inf, -math.inf, math.nan) if not (v == old or (v != v and old != old))]
                others += [] if math.isfinite(old) else [3.0]
                values[place] = others[int(generator.integers(len(others)))]
            else:
                tolerance = TOLERANCES[datatype]
                limit = tolerance.absolute + tolerance.relative * abs(old)
                values[place] = old + float(generator.choice([-1, 1])) * limit * 3
            noticed += not _within(expected, _tensor(datatype, values), place)
        return Seen(noticed, trials)

    what = "an infinity, a NaN or a number in its place" if special else "an element at three times its tolerance"
    name = "parity_not_finite" if special else "parity_wrong_element"
    return Claim(name, f"Parity notices {what}, and names it", 1.0, True, measure, trials=20_000, quick=800)


def _sound(trials: int, seed: int) -> Seen:
    generator = np.random.default_rng(seed)
    called = 0
    for number in range(trials):
        datatype = list(TOLERANCES)[number % len(TOLERANCES)]
        expected = _drawn(generator, datatype)
        tolerance = TOLERANCES[datatype]
        values = expected.array.astype(np.float64)
        with np.errstate(invalid="ignore"):
            shift = generator.uniform(-0.4, 0.4, _SHAPE) * (tolerance.absolute + tolerance.relative * np.abs(values))
        values = np.where(np.isfinite(values), values + np.where(np.isfinite(shift), shift, 0), values)
        called += not _within(expected, _tensor(datatype, values))
    return Seen(called, trials)


CLAIMS = [
    _planted(special=True),
    _planted(special=False),
    Claim(
        "parity_sound", "Parity calls outputs within their tolerances different", 0.0, False, _sound, 20_000, quick=800
    ),
]
