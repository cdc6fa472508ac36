"""What a stage of load says of its service: intervals of percentiles and errors, and objectives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from harness.results.dependence import percentile_intervals, share_interval
from harness.results.objectives import Answer, judge
from harness.results.objectives import Seen as StageSeen
from harness.results.slo import parse_slo
from tests.truth.claim import Claim, Seen
from tests.truth.queues import Samples, mm1, mm1_beyond

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def coverage(load: float, name: str, requests: int, trials: int, seed: int) -> Seen:
    """Of the intervals that are shown."""
    generator = np.random.default_rng((seed, round(load * 10), requests))
    truth, shown, covered = mm1_beyond(load, 1 - SHARES[name]), 0, 0
    for _ in range(trials):
        interval = percentile_intervals(mm1(load, requests, generator)).get(name)
        if interval is not None:
            shown += 1
            covered += interval[0] <= truth <= interval[1]
    return Seen(covered, shown)


def shown(load: float, name: str, requests: int, trials: int, seed: int) -> Seen:
    generator = np.random.default_rng((seed, round(load * 10), requests))
    return Seen(sum(name in percentile_intervals(mm1(load, requests, generator)) for _ in range(trials)), trials)


def independent(requests: int, generator: np.random.Generator) -> Samples:
    return generator.exponential(1.0, requests)


def stage(latency_s: Samples, failed: np.ndarray | None = None) -> StageSeen:
    lost = np.zeros(latency_s.size, bool) if failed is None else failed
    return StageSeen(np.where(lost, np.inf, latency_s), lost, 10.0, True, latency_s.size / 10)


def called(answer: Answer, draw: Callable[[np.random.Generator], StageSeen], text: str, trials: int, seed: int) -> Seen:
    generator = np.random.default_rng(seed)
    objective = parse_slo(text)
    return Seen(sum(judge(objective, draw(generator)).answer is answer for _ in range(trials)), trials)


def bound(name: str, load: float, beyond: float) -> str:
    """An objective that a share ``beyond`` of the requests of an M/M/1 queue breaks."""
    return f"{name} < {mm1_beyond(load, beyond):.6f}us"  # a mean service time is 1 µs


def queue(load: float, requests: int, generator: np.random.Generator) -> StageSeen:
    return stage(mm1(load, requests, generator) * 1e-6)


def hiccups(requests: int, share: float, length: int, generator: np.random.Generator) -> StageSeen:
    """1 ms, and a share of requests in pauses of ``length`` requests that take 100 ms."""
    latency = np.full(requests, 0.001) * generator.uniform(0.8, 1.2, requests)
    for start in np.flatnonzero(generator.random(requests) < share / length):
        latency[start : start + length] = 0.1
    return stage(latency)


def failures(requests: int, share: float, length: int, generator: np.random.Generator) -> StageSeen:
    """Requests fail, ``length`` in a row, at once."""
    failed = np.zeros(requests, bool)
    for start in np.flatnonzero(generator.random(requests) < share / length):
        failed[start : start + length] = True
    return stage(np.full(requests, 0.001), failed)


def errors_covered(requests: int, share: float, length: int, trials: int, seed: int) -> Seen:
    generator = np.random.default_rng(seed)
    # The pauses overlap, so that the true share is a little below.
    truth = 1 - (1 - share / length) ** length
    covered = 0
    for _ in range(trials):
        low, high = share_interval(failures(requests + length, share, length, generator).failed[length:])
        covered += low <= truth <= high
    return Seen(covered, trials)


CLAIMS: list[Claim] = []
for _load in (0.5, 0.8, 0.9):
    for _name, _requests in (("p50", 2000), ("p50", 10_000), ("p95", 10_000), ("p95", 40_000), ("p99", 40_000)):
        if (_load, _name, _requests) in (
            (0.9, "p50", 2000),
            (0.9, "p95", 10_000),
            (0.8, "p95", 10_000),
            (0.9, "p95", 40_000),
            (0.8, "p99", 40_000),
            (0.9, "p99", 40_000),
        ):
            continue  # too short for an interval that is shown more than now and then; see the claim of silence
        CLAIMS.append(
            Claim(
                f"load.interval.{_name}.{_load}.{_requests}",
                f"95 % interval of {_name} holds it: M/M/1 at load {_load}, {_requests} requests",
                0.92,
                True,
                partial(coverage, _load, _name, _requests),
                2000,
                800 if _requests < 40_000 and _load > 0.5 else 150,  # some are shown in a third of the trials
            )
        )
for _load, _name in ((0.9, "p99"), (0.9, "p95"), (0.8, "p99"), (0.8, "p95")):
    CLAIMS.append(
        Claim(
            f"load.silence.{_name}.{_load}",
            f"An interval of {_name} is shown: M/M/1 at load {_load}, 2,000 requests, which are too few",
            0.01,
            False,
            partial(shown, _load, _name, 2000),
            1000,
            200,
        )
    )
for _load in (0.5, 0.8, 0.9):
    for _name, _beyond, _text in (("p50", 0.52, "52 %"), ("p95", 0.055, "5.5 %"), ("p99", 0.015, "1.5 %")):
        for _requests in (500, 10_000):
            CLAIMS.append(
                Claim(
                    f"load.wrongly_met.{_name}.{_load}.{_requests}",
                    f"{_name} is called met, and {_text} are beyond it: M/M/1 at load {_load}, {_requests} requests",
                    0.05,
                    False,
                    partial(called, Answer.MET, partial(queue, _load, _requests), bound(_name, _load, _beyond)),
                    1000,
                    120,
                )
            )
for _load in (0.5, 0.8, 0.9):
    for _name, _beyond, _text in (("p50", 0.48, "48 %"), ("p95", 0.045, "4.5 %"), ("p99", 0.008, "0.8 %")):
        for _requests in (500, 2000, 10_000):
            CLAIMS.append(
                Claim(
                    f"load.wrongly_broken.{_name}.{_load}.{_requests}",
                    f"{_name} is called not met, and {_text} are beyond it: M/M/1 at load {_load},"
                    f" {_requests} requests",
                    0.05,
                    False,
                    partial(called, Answer.NOT_MET, partial(queue, _load, _requests), bound(_name, _load, _beyond)),
                    1000,
                    120,
                )
            )
CLAIMS += [
    Claim(
        "load.small_sample",
        "p99 is called met, and 2 % are beyond it: 100 independent requests",
        0.05,
        False,
        partial(called, Answer.MET, lambda generator: stage(independent(100, generator)), f"p99 < {np.log(50):.6f}s"),
        5000,
        500,
    ),
    Claim(
        "load.power",
        "p99 is called met, and 0.2 % are beyond it: 2,000 independent requests",
        0.9,
        True,
        partial(called, Answer.MET, lambda generator: stage(independent(2000, generator)), f"p99 < {np.log(500):.6f}s"),
        2000,
        200,
    ),
    Claim(
        "load.found_broken",
        "p99 is called not met, and 3 % are beyond it: 2,000 independent requests",
        0.95,
        True,
        partial(
            called, Answer.NOT_MET, lambda generator: stage(independent(2000, generator)), f"p99 < {np.log(33):.6f}s"
        ),
        2000,
        200,
    ),
    Claim(
        "load.pauses",
        "p99 is called met, and 1.5 % are in pauses of 30 requests: 20,000 requests",
        0.05,
        False,
        partial(called, Answer.MET, partial(hiccups, 20_000, 0.015, 30), "p99 < 50ms"),
        2000,
        300,
    ),
    Claim(
        "load.errors.none",
        "errors < 0.1% is called met, and 0.5 % fail: 100 requests",
        0.05,
        False,
        partial(called, Answer.MET, partial(failures, 100, 0.005, 1), "errors < 0.1%"),
        5000,
        500,
    ),
    Claim(
        "load.errors.long",
        "errors < 1% is called met, and 1.3 % fail, ten in a row: 5,000 requests",
        0.05,
        False,
        partial(called, Answer.MET, partial(failures, 5000, 0.013, 10), "errors < 1%"),
        2000,
        300,
    ),
    Claim(
        "load.errors.interval",
        "95 % interval of the share of errors holds it: 2 % fail, ten in a row, 20,000 requests",
        0.92,
        True,
        partial(errors_covered, 20_000, 0.02, 10),
        1000,
        150,
    ),
]
