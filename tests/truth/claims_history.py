"""History: a night in which nothing changed is rarely called worse, and one that is worse is found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from harness.results.history import Point, Trend, change_points, judged
from tests.truth.claim import Claim, Seen

SERIES = 12
Noise = Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.float64]]
"""Of series and runs, as logarithms of the values."""


def _normal(generator: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(1 + generator.normal(0, 0.02, shape), 0.1))


def _lognormal(generator: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    return generator.normal(0, 0.3, shape)


def _heavy(generator: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    return 0.05 * generator.standard_t(3, shape)


def _autocorrelated(generator: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Each night keeps 0.3 of what moved the one before."""
    drawn = generator.normal(0, 0.02, shape)
    for night in range(1, shape[1]):
        drawn[:, night] = 0.3 * drawn[:, night - 1] + np.sqrt(1 - 0.3**2) * drawn[:, night]
    return drawn


def _night(values: npt.NDArray[np.float64], counts: npt.NDArray[np.int64] | None = None, of: int = 0) -> list[Trend]:
    series = []
    for number, row in enumerate(values):
        points = tuple(
            Point(str(place), "", float(value), None if counts is None else (int(counts[number, place]), of))
            for place, value in enumerate(row)
        )
        higher = counts is None and number % 3 == 2
        metric = "p99" if counts is None else "errors"
        series.append(Trend("svc", str(number), metric, "s", higher, points, tuple(change_points(row))))
    return judged(series, margin=0.0)


def _quiet(name: str, words: str, noise: Noise, earlier: int, trials: int, quick: int) -> Claim:
    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng((seed, earlier))
        nights = (_night(np.exp(noise(generator, (SERIES, earlier + 1)))) for _ in range(trials))
        return Seen(sum(any(item.regression for item in night) for night in nights), trials)

    promise = f"A night of {SERIES} series in which nothing changed is called worse ({words}, {earlier} earlier runs)"
    return Claim(f"history_quiet_{name}_{earlier}", promise, 0.05, False, measure, trials, quick)


def _errors(share: float, of: int, earlier: int, trials: int, quick: int) -> Claim:
    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng(seed)
        called = 0
        for _ in range(trials):
            counts = generator.binomial(of, share, (SERIES, earlier + 1))
            called += any(item.regression for item in _night(counts / of, counts, of))
        return Seen(called, trials)

    promise = (
        f"A night of {SERIES} series is called worse by its errors ({share:.1%} of {of} in each of its runs,"
        f" {earlier} earlier ones)"
    )
    return Claim(f"history_errors_{share:g}_{earlier}", promise, 0.05, False, measure, trials, quick)


def _found(worse: float, spread: float, earlier: int) -> Claim:
    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng(seed)
        found = 0
        for _ in range(trials):
            values = np.exp(generator.normal(0, spread, (SERIES, earlier + 1)))
            values[0, -1] *= 1 + worse
            found += bool(_night(values)[0].regression)
        return Seen(found, trials)

    promise = f"A night that is worse by {worse:.0%} in one of {SERIES} series is found ({spread:.0%} between runs)"
    return Claim(f"history_found_{earlier}", f"{promise}, {earlier} earlier runs", 0.95, True, measure, 600, quick=60)


def _errors_found(trials: int, seed: int) -> Seen:
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(trials):
        counts = generator.binomial(1000, 0.002, (SERIES, 6))
        counts[0, -1] = generator.binomial(1000, 0.05)
        found += bool(_night(counts / 1000, counts, 1000)[0].regression)
    return Seen(found, trials)


CLAIMS = [
    _quiet("normal", "noise of 2 %", _normal, 5, 1500, 100),
    _quiet("normal", "noise of 2 %", _normal, 20, 200, 15),
    _quiet("lognormal", "lognormal noise of 30 %", _lognormal, 5, 1500, 100),
    _quiet("heavy", "Student's t with 3 degrees of freedom", _heavy, 5, 4000, 400),
    _quiet("heavy", "Student's t with 3 degrees of freedom", _heavy, 20, 400, 20),
    _quiet("drifting", "normal, autocorrelation 0.3", _autocorrelated, 5, 1500, 100),
    _quiet("drifting", "normal, autocorrelation 0.3", _autocorrelated, 20, 200, 15),
    _errors(0.001, 1000, 5, 500, 20),
    _errors(0.05, 1000, 20, 100, 10),
    _found(0.30, 0.02, 5),
    _found(0.30, 0.02, 20),
    Claim(
        "history_errors_found",
        "A night in which one of 12 series fails in 5 % of 1000 requests is found (0.2 % in 5 earlier runs)",
        0.95,
        True,
        _errors_found,
        trials=400,
        quick=30,
    ),
]
