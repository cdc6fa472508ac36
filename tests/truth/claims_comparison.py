"""Comparisons: sides that are the same are rarely called different, and slower ones are found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.results.comparison import Verdict, between_runs, corrected, interleaved, paired_ratio
from harness.results.stats import SEARCH_RESOLUTION, percentile
from tests.truth.claim import Claim, Seen

DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)
METRICS = (0.5, 0.9, 0.95, 0.99)
BLOCKS, REQUESTS = 12, 600


def _runs(generator: np.random.Generator, runs: int, slower: float, spread: float) -> npt.NDArray[np.float64]:
    """Percentiles of so many runs of 600 requests, a row each: every run is shifted as a whole."""
    levels = slower * np.exp(generator.normal(0, spread, (runs, 1)))
    latency = np.sort(levels * generator.lognormal(0, 0.25, (runs, REQUESTS)), axis=1)
    return np.array([[percentile(row, q) for q in METRICS] for row in latency])


def _verdicts(generator: np.random.Generator, runs: int, slower: float, spread: float) -> list[Verdict]:
    a, b = _runs(generator, runs, 1.0, spread), _runs(generator, runs, slower, spread)
    each = corrected(0.95, len(METRICS))
    return [between_runs(list(a[:, n]), list(b[:, n]), confidence=each).verdict for n in range(len(METRICS))]


def _same_runs(runs: int, spread: float) -> Claim:
    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng(seed)
        called = sum(any(item in DIFFERENT for item in _verdicts(generator, runs, 1.0, spread)) for _ in range(trials))
        return Seen(called, trials)

    promise = f"Two sides of {runs} runs of one thing are called different in a percentile ({spread:.0%} between runs)"
    return Claim(f"compare_same_runs_{runs}_{spread:g}", promise, 0.05, False, measure, trials=4000, quick=300)


def _same_capacities(runs: int, spread: float) -> Claim:
    """A search ends on a grid of 5 %, which lies anywhere."""

    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng(seed)
        step, called = np.log1p(0.05), 0
        for _ in range(trials):
            logs = generator.normal(generator.random() * step, spread, (2, runs))
            a, b = np.exp(np.floor(logs / step) * step)
            verdict = between_runs(a, b, higher_is_better=True, resolution=SEARCH_RESOLUTION).verdict
            called += verdict in DIFFERENT
        return Seen(called, trials)

    promise = f"Two sides of {runs} capacities of one thing are called different ({spread:.1%} between runs)"
    return Claim(f"compare_same_capacities_{runs}_{spread:g}", promise, 0.05, False, measure, trials=10000, quick=1000)


def _slower_runs(trials: int, seed: int) -> Seen:
    generator = np.random.default_rng(seed)
    found = sum(Verdict.SLOWER in _verdicts(generator, 3, 1.2, 0.02) for _ in range(trials))
    return Seen(found, trials)


def _blocks(
    generator: np.random.Generator, slower: float, kept: float, drift: float
) -> tuple[list[float], list[float]]:
    """Medians of interleaved blocks of one run. A share ``kept`` of each block's disturbance (1 %) stays in the next
    one, whichever variant that is of; the machine drifts by ``drift`` over the run."""
    order = interleaved(2, BLOCKS, int(generator.integers(1 << 30)))
    drawn = generator.normal(0, 0.01, len(order))
    for place in range(1, drawn.size):
        drawn[place] = kept * drawn[place - 1] + np.sqrt(1 - kept**2) * drawn[place]
    levels = np.exp(drawn) * (1 + drift * np.arange(len(order)) / len(order))
    latency = np.sort(generator.lognormal(0, 0.25, (len(order), REQUESTS)), axis=1)
    found: tuple[list[float], list[float]] = ([], [])
    for place, which in enumerate(order):
        found[which].append(percentile(latency[place], 0.5) * levels[place] * (slower if which else 1.0))
    return found


def _same_blocks(kept: float) -> Claim:
    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng(seed)
        called = 0
        for number in range(trials):
            called += paired_ratio(*_blocks(generator, 1.0, kept, 0.1), margin=0.005, seed=number).verdict in DIFFERENT
        return Seen(called, trials)

    promise = f"A against A in one run is called different (12 blocks, drift of 10 %, autocorrelation {kept:g})"
    return Claim(f"compare_same_blocks_{kept:g}", promise, 0.05, False, measure, trials=4000, quick=200)


def _slower_blocks(kept: float) -> Claim:
    def measure(trials: int, seed: int) -> Seen:
        generator = np.random.default_rng(seed)
        found = 0
        for number in range(trials):
            ratio = paired_ratio(*_blocks(generator, 1.05, kept, 0.1), margin=0.02, seed=number)
            found += ratio.verdict is Verdict.SLOWER
        return Seen(found, trials)

    promise = f"A slowdown of 5 % in one run is found (12 blocks, drift of 10 %, autocorrelation {kept:g})"
    return Claim(f"compare_slower_blocks_{kept:g}", promise, 0.90, True, measure, trials=800, quick=100)


CLAIMS = [
    _same_runs(3, 0.02),
    _same_runs(2, 0.02),
    _same_runs(5, 0.10),
    _same_capacities(2, 0.005),
    _same_capacities(3, 0.02),
    _same_capacities(5, 0.03),
    Claim(
        "compare_slower_runs",
        "A slowdown of 20 % is found with 3 runs a side and 2 % between runs",
        0.90,
        True,
        _slower_runs,
        trials=2000,
        quick=200,
    ),
    *(_same_blocks(kept) for kept in (0.0, 0.5, 0.9)),
    *(_slower_blocks(kept) for kept in (0.0, 0.9)),
]
