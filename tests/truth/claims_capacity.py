"""The search for the capacity, of services whose capacity is known and whose trials are unlucky now and then."""

from __future__ import annotations

from functools import partial

import numpy as np

from harness.results.objectives import Answer
from harness.results.objectives import Seen as StageSeen
from harness.results.slo import parse_slo
from scenarios.suites.shared.search import CONFIRMING, Search, Trial, bracket, confirm, next_rate
from scenarios.suites.shared.stage import Plan
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


def shown_at(beyond: float, requests: int, trials: int, seed: int) -> Seen:
    """How often the trials of one rate together are called to meet ``p99``, looked at after three and after each more,
    where a share ``beyond`` of all requests is later."""
    generator = np.random.default_rng((seed, requests))
    search = Search(Plan("c", 5.0, objectives=(parse_slo("p99 < 1s"),)), 10.0, 1000.0)
    met = 0
    for _ in range(trials):
        stages = [_stage(beyond, requests, generator) for _ in range(search.repeats)]
        while not (shown := all(item.answer is Answer.MET for item in confirm(search, stages))):
            if len(stages) == search.repeats + CONFIRMING:
                break
            stages.append(_stage(beyond, requests, generator))
        met += shown
    return Seen(met, trials)


def _stage(beyond: float, requests: int, generator: np.random.Generator) -> StageSeen:
    latency = np.where(generator.random(requests) < beyond, 2.0, 0.1)
    return StageSeen(latency, np.zeros(requests, bool), 5.0, True, requests / 5)


CLAIMS = [
    Claim(
        "capacity.wrongly_shown",
        "A rate is called to meet p99, and 1.05 % are beyond it: looked at up to seven times, 1,000 requests a trial",
        0.05,
        False,
        partial(shown_at, 0.0105, 1000),
        2000,
        200,
    ),
    Claim(
        "capacity.shown",
        "A rate is called to meet p99, and 0.3 % are beyond it: looked at up to seven times, 1,000 requests a trial",
        0.95,
        True,
        partial(shown_at, 0.003, 1000),
        2000,
        200,
    ),
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
