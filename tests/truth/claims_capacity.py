"""The search for the capacity, of services whose capacity is known and whose trials are unlucky now and then."""

from __future__ import annotations

import numpy as np

from scenarios.suites.capacity import Search, Trial, bracket, next_rate
from scenarios.suites.load import Plan
from tests.truth.claim import Claim, Seen

HICCUP = 0.02
"""How often a trial fails whatever the rate."""
NEAR = 0.03
"""Within so much of the capacity (as a share) a trial is met or not by chance."""


def search_of(truth: float, generator: np.random.Generator, most: float = 100_000.0, repeats: int = 3) -> float:
    """The rate that is found; 0 where none is, or the search did not end."""
    search = Search(Plan("c", 5.0), 10.0, most, repeats=repeats)
    trials: list[Trial] = []
    while (rate := next_rate(trials, search)) is not None:
        if len(trials) >= search.budget:
            return 0.0
        beyond = (rate / truth - 1) / NEAR
        met = generator.random() > 1 / (1 + np.exp(-np.clip(4 * beyond, -50, 50)))
        trials.append(Trial(rate, bool(met and generator.random() > HICCUP)))
    return bracket(trials, repeats)[0] or 0.0


def within_a_tenth(trials: int, seed: int) -> Seen:
    generator = np.random.default_rng(seed)
    truths = np.exp(generator.uniform(np.log(15), np.log(90_000), trials))
    return Seen(sum(abs(search_of(truth, generator) / truth - 1) <= 0.1 for truth in truths.tolist()), trials)


def clustered(trials: int, seed: int) -> Seen:
    """A disturbance that lasts for two trials in a row, once in a search."""
    generator = np.random.default_rng(seed)
    good = 0
    for truth in np.exp(generator.uniform(np.log(100), np.log(50_000), trials)).tolist():
        search, found = Search(Plan("c", 5.0), 10.0, 100_000.0), []
        begin = int(generator.integers(0, 12))
        while (rate := next_rate(found, search)) is not None and len(found) < search.budget:
            disturbed = begin <= len(found) < begin + 2
            found.append(Trial(rate, rate <= truth and not disturbed))
        good += abs((bracket(found, search.repeats)[0] or 0.0) / truth - 1) <= 0.1
    return Seen(good, trials)


CLAIMS = [
    Claim(
        "capacity.hiccups",
        "Capacity within 10 % of the truth, where 2 % of the trials fail by chance",
        0.95,
        True,
        within_a_tenth,
        5000,
        500,
    ),
    Claim(
        "capacity.disturbed",
        "Capacity within 10 % of the truth, where two trials in a row were disturbed",
        0.95,
        True,
        clustered,
        5000,
        500,
    ),
]
