"""The statistics of comparisons, on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.results.comparison import (
    Ratio,
    Verdict,
    between_runs,
    corrected,
    interleaved,
    paired_ratio,
    unpaired_ratio,
)
from harness.results.stats import SEARCH_RESOLUTION, percentile

BLOCKS = 12
REQUESTS = 600
ROUNDS = 200


def blocks(generator: np.random.Generator, slower: float, q: float) -> tuple[list[float], list[float]]:
    """Percentiles of interleaved blocks: latencies are skewed, each block is disturbed as a whole, and the machine
    drifts."""
    order = interleaved(2, BLOCKS, int(generator.integers(1 << 30)))
    found: tuple[list[float], list[float]] = ([], [])
    for place, which in enumerate(order):
        drift = 1 + 0.1 * place / len(order)
        disturbed = float(np.exp(generator.normal(0, 0.01)))
        latency = generator.lognormal(0, 0.25, REQUESTS) * drift * disturbed * (slower if which else 1.0)
        found[which].append(percentile(np.sort(latency), q))
    return found


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_a_against_a_calls_a_difference_in_at_most_five_percent(q: float) -> None:
    generator = np.random.default_rng(11)
    called = 0
    for number in range(ROUNDS):
        ratio = paired_ratio(*blocks(generator, 1.0, q), seed=number)
        called += ratio.verdict in (Verdict.FASTER, Verdict.SLOWER)
    assert called <= 0.05 * ROUNDS, f"{called} of {ROUNDS}"


def test_few_blocks_are_not_called_different_either() -> None:
    generator = np.random.default_rng(16)
    called = found = 0
    for _ in range(ROUNDS):
        a, b = (np.exp(generator.normal(0, 0.02, 6)) for _ in range(2))
        called += paired_ratio(list(a), list(b)).verdict in (Verdict.FASTER, Verdict.SLOWER)
        found += paired_ratio(list(a), list(b * 1.3)).verdict is Verdict.SLOWER
    assert called <= 0.05 * ROUNDS
    assert found == ROUNDS


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_a_true_slowdown_of_five_percent_is_found(q: float) -> None:
    generator = np.random.default_rng(12)
    ratios = [paired_ratio(*blocks(generator, 1.05, q), margin=0.02, seed=number) for number in range(ROUNDS)]
    found = sum(ratio.verdict is Verdict.SLOWER for ratio in ratios)
    assert found >= 0.9 * ROUNDS, f"{found} of {ROUNDS}"
    covered = sum(ratio.low <= 1.05 <= ratio.high for ratio in ratios)
    assert covered >= 0.9 * ROUNDS, f"the truth was in {covered} of {ROUNDS} intervals"


def test_an_undecided_one_says_how_many_blocks_would_decide_it() -> None:
    """And with so many, nine in ten are decided."""
    generator = np.random.default_rng(13)

    def noisy(count: int) -> tuple[list[float], list[float]]:
        drawn = np.exp(generator.normal(0, 0.08, (2, count)))
        return list(drawn[0]), list(drawn[1] * 1.04)

    undecided = [ratio for _ in range(40) if (ratio := paired_ratio(*noisy(8))).verdict is Verdict.UNDECIDED]
    assert len(undecided) > 10
    assert all(ratio.needed > 8 for ratio in undecided)
    needed = int(np.median([ratio.needed for ratio in undecided]))
    decided = sum(paired_ratio(*noisy(needed)).verdict is not Verdict.UNDECIDED for _ in range(60))
    assert decided >= 30


def test_verdicts() -> None:
    generator = np.random.default_rng(14)
    a = list(np.exp(generator.normal(0, 0.01, 10)))
    for factor, expected in ((1.3, Verdict.SLOWER), (0.7, Verdict.FASTER), (1.0, Verdict.EQUIVALENT)):
        b = [value * factor * float(np.exp(generator.normal(0, 0.005))) for value in a]
        ratio = paired_ratio(a, b)
        assert ratio.verdict is expected
        assert ratio.low <= ratio.ratio <= ratio.high
        assert ratio.ratio == pytest.approx(factor, rel=0.03)
        assert ratio.needed == 0
    throughput = paired_ratio(a, [value * 1.3 for value in a[::-1]], higher_is_better=True)
    assert throughput.verdict is Verdict.FASTER
    significant = [value * 1.02 for value in a]
    assert paired_ratio(a, significant).verdict is Verdict.EQUIVALENT, "a difference within the margin is none"


def test_runs_of_their_own_are_compared_without_pairs() -> None:
    generator = np.random.default_rng(15)
    called = found = 0
    for number in range(ROUNDS):
        a, b = (list(np.exp(generator.normal(0, 0.03, BLOCKS))) for _ in range(2))
        called += unpaired_ratio(a, b, seed=number).verdict in (Verdict.FASTER, Verdict.SLOWER)
        found += unpaired_ratio(a, [value * 1.08 for value in b], seed=number).verdict is Verdict.SLOWER
    assert called <= 0.05 * ROUNDS
    assert found >= 0.9 * ROUNDS


def test_between_runs_the_spread_is_that_of_runs() -> None:
    slower = between_runs([1.0, 1.02, 0.98], [1.3, 1.28, 1.33])
    assert (slower.verdict, slower.blocks, slower.needed) == (Verdict.SLOWER, 3, 0)
    assert slower.low < 1.3 < slower.high
    assert between_runs([1.3, 1.28, 1.33], [1.0, 1.02, 0.98], higher_is_better=True).verdict is Verdict.SLOWER
    assert between_runs([1.0, 1.001, 0.999], [1.0, 0.999, 1.002]).verdict is Verdict.EQUIVALENT
    undecided = between_runs([1.0, 1.2, 0.8], [1.1, 0.9, 1.3])
    assert undecided.verdict is Verdict.UNDECIDED
    assert undecided.needed > 3
    with pytest.raises(ValueError, match="at least 2 runs"):
        between_runs([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="0 or more"):
        between_runs([1.0, math.nan], [1.0, 2.0])


def test_runs_that_failed_are_counted_and_no_ratio_is_made_of_them() -> None:
    inf = math.inf
    few = between_runs([1.0, 1.0, 1.0], [inf, inf, inf])
    assert few.verdict is Verdict.UNDECIDED, "3 of 3 against 0 of 3: p = 0.05"
    assert math.isnan(few.ratio)
    assert between_runs([1.0] * 5, [inf] * 5).verdict is Verdict.SLOWER
    assert between_runs([inf] * 5, [1.0] * 5).verdict is Verdict.FASTER
    assert between_runs([0.0] * 5, [9.0] * 5, higher_is_better=True).verdict is Verdict.FASTER


def test_runs_that_came_out_the_same_are_no_certainty() -> None:
    for other in ([1000.0, 1000.0], [1091.0, 1091.0]):
        nothing = between_runs([1000.0, 1000.0], other)
        assert nothing.verdict is Verdict.UNDECIDED
        assert nothing.ratio == pytest.approx(other[0] / 1000)
        assert math.isnan(nothing.low)
    one_sided = between_runs([1.0, 1.0, 1.0], [1.06, 1.10, 1.14])
    assert one_sided.verdict is Verdict.UNDECIDED, "the other side's spread is theirs too"
    assert one_sided.low < 1


def test_capacities_are_known_no_better_than_the_search_knows_them() -> None:
    def compared(a: float, b: float, runs: int) -> Ratio:
        return between_runs([a] * runs, [b] * runs, higher_is_better=True, resolution=SEARCH_RESOLUTION)

    for runs in (2, 3, 10):
        assert compared(1000, 1044, runs).verdict is Verdict.UNDECIDED, "one step of the search"
    assert compared(1000, 950, 2).verdict is Verdict.UNDECIDED
    assert compared(1000, 1000, 2).verdict is Verdict.UNDECIDED
    assert compared(1000, 1000, 3).verdict is Verdict.EQUIVALENT
    assert compared(1000, 850, 3).verdict is Verdict.SLOWER
    wide = between_runs([900, 1000, 1100], [700, 800, 900], higher_is_better=True)
    same = between_runs([900, 1000, 1100], [700, 800, 900], higher_is_better=True, resolution=SEARCH_RESOLUTION)
    assert wide == same, "a floor, and nothing on top"


def test_too_little_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 6 blocks"):
        paired_ratio([1.0] * 5, [1.0] * 5)
    with pytest.raises(ValueError, match="as many blocks of each"):
        paired_ratio([1.0] * 6, [1.0] * 7)
    with pytest.raises(ValueError, match="above 0"):
        paired_ratio([1.0] * 6, [0.0] * 6)


def test_the_order_cancels_a_drift_and_depends_on_the_seed_only() -> None:
    order = interleaved(2, 8, 3)
    assert order == interleaved(2, 8, 3)
    assert order != interleaved(2, 8, 4) or order != interleaved(2, 8, 5)
    for start in range(0, 16, 4):
        assert order[start : start + 2] == order[start + 2 : start + 4][::-1], "ABBA or BAAB"
    three = interleaved(3, 4, 1)
    assert all(sorted(three[start : start + 3]) == [0, 1, 2] for start in range(0, 12, 3))


def test_several_metrics_are_corrected() -> None:
    assert corrected(0.95, 1) == 0.95
    assert corrected(0.95, 5) == pytest.approx(0.99)
