"""Whether a candidate is slower than the version before it: shown, excluded, or not decided. Pure functions.

A pod that has nine times the requests is slower than its twin. Versions are therefore compared only while
each pod of both gets about as many requests, within ``COMPARABLE``: at 50 % with as many pods of each, at 20 %
with one pod to four. There, both answer in the same seconds, on the same nodes, behind the same ingress: what disturbs
one disturbs the other, and no drift between two windows is taken for a difference. A phase of its own for the version
before it, at the lower rate, would have none of this.

The unit is a block of time, not a request: requests that queue behind each other are not independent observations. Each
block gives the logarithm of the ratio of the two versions' percentiles, and Student's interval is taken over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.results.stats import PERCENTILES, percentile
from scenarios.suites.canary.errors import POWER
from scenarios.suites.shared.stage.background import Traffic

Values = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
COMPARED = ("p50", "p90", "p95", "p99")
COMPARABLE = 1.2
"""How many times the requests per pod of one version may be those of the other."""
LEAST_BLOCKS, MOST_BLOCKS = 6, 20
BLOCK_S = 1.0
BLOCK_REQUESTS = 100
"""Of each version: fewer have no 99th percentile."""
REQUESTS = 16 * BLOCK_REQUESTS
"""Of each version, planned where the two can be compared."""


def load_ratio(percent: int, candidate_pods: int, stable_pods: int) -> float:
    """Requests per pod of the candidate over those of the version before it; NaN where one has no pod."""
    if not candidate_pods or not stable_pods or percent >= 100:
        return math.nan
    return (percent / candidate_pods) / ((100 - percent) / stable_pods)


def is_comparable(ratio: float) -> bool:
    return 1 / COMPARABLE <= ratio <= COMPARABLE


def comparable_since(loads: Sequence[tuple[float, float]]) -> float | None:
    """From when on the load per pod has been comparable, up to the last of ``loads`` (when, and the ratio of the
    loads); None where it is not."""
    since = None
    for when_s, ratio in loads:
        since = (when_s if since is None else since) if is_comparable(ratio) else None
    return since


def comparable_time(loads: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The longest time in which it was, from one look at the pods to another; an autoscaler takes a while to follow."""
    longest: tuple[float, float] | None = None
    for count in range(1, len(loads) + 1):
        since = comparable_since(loads[:count])
        until = loads[count - 1][0]
        if since is not None and (longest is None or until - since > longest[1] - longest[0]):
            longest = since, until
    return longest


def requests_planned(percent: int) -> int:
    """Of both versions together."""
    return math.ceil(REQUESTS / (min(percent, 100 - percent) / 100))


@dataclass(frozen=True)
class Blocks:
    """``logs``, shape (blocks, percentiles of ``COMPARED``): logarithms of the candidate's over the other's."""

    logs: Values
    requests: int
    """Of both versions."""

    def __add__(self, other: Blocks) -> Blocks:
        return Blocks(np.concatenate([self.logs, other.logs]), self.requests + other.requests)

    def __len__(self) -> int:
        return len(self.logs)


NO_BLOCKS = Blocks(np.empty((0, len(COMPARED))), 0)


def blocks_of(due_s: Values, latency_s: Values, candidate: Bools, stable: Bools) -> Blocks:
    """Equal blocks of the time in which requests were due. As many as there are ``BLOCK_REQUESTS`` of each version for,
    at most ``MOST_BLOCKS`` and none shorter than ``BLOCK_S``; none at all where one would lack half of its requests."""
    used = candidate | stable
    requests = int(used.sum())
    fewest = min(int(candidate.sum()), int(stable.sum()))
    if not fewest:
        return Blocks(NO_BLOCKS.logs, requests)
    start, end = float(due_s[used].min()), float(due_s[used].max())
    count = min(MOST_BLOCKS, int((end - start) / BLOCK_S), fewest // BLOCK_REQUESTS)
    if not count:
        return Blocks(NO_BLOCKS.logs, requests)
    place = np.minimum(((due_s - start) / (end - start) * count).astype(np.int64), count - 1)
    rows = []
    for block in range(count):
        here = place == block
        ours, theirs = np.sort(latency_s[here & candidate]), np.sort(latency_s[here & stable])
        if min(ours.size, theirs.size) < BLOCK_REQUESTS / 2:
            return Blocks(NO_BLOCKS.logs, requests)
        rows.append(
            [
                math.log(max(percentile(ours, PERCENTILES[name]), 1e-9))
                - math.log(max(percentile(theirs, PERCENTILES[name]), 1e-9))
                for name in COMPARED
            ]
        )
    return Blocks(np.array(rows), requests)


@dataclass(frozen=True)
class Latencies:
    """``named``: ``failed`` requests whose version is known are among them. ``worst``: so are ``unnamed`` failed ones
    that may be either's, as the candidate's; a promotion has to be right even then."""

    named: Blocks = NO_BLOCKS
    worst: Blocks = NO_BLOCKS
    failed: int = 0
    unnamed: int = 0
    timeout_s: float = 0.0

    def __add__(self, other: Latencies) -> Latencies:
        return Latencies(
            self.named + other.named,
            self.worst + other.worst,
            self.failed + other.failed,
            self.unnamed + other.unnamed,
            max(self.timeout_s, other.timeout_s),
        )

    def failed_text(self) -> str:
        """How failed requests count; empty where none failed."""
        if not self.failed and not self.unnamed:
            return ""
        text = f"; {self.failed + self.unnamed} failed requests count with at least the timeout, {self.timeout_s:g} s"
        return text + (f", {self.unnamed} of them as the candidate's: they name no version" if self.unnamed else "")


NO_LATENCIES = Latencies()


def compare(traffic: Traffic, here: Bools, candidate: str, stable: str, timeout_s: float) -> Latencies:
    """Of the requests ``here``. A failed one waited for nothing: it counts with at least the timeout, however fast it
    failed."""
    failed = traffic.failed
    latency_s = np.where(failed, np.maximum(np.nan_to_num(traffic.latency_s), timeout_s), traffic.latency_s)
    ours = here & (traffic.version == candidate) & (candidate != "")
    theirs = here & (traffic.version == stable)
    unnamed = here & failed & ~ours & ~theirs
    named = blocks_of(traffic.due_s, latency_s, ours, theirs)
    worst = blocks_of(traffic.due_s, latency_s, ours | unnamed, theirs) if unnamed.any() else named
    return Latencies(named, worst, int((failed & (ours | theirs)).sum()), int(unnamed.sum()), timeout_s)


@dataclass(frozen=True)
class Ratio:
    """Of one percentile. ``low`` is surely exceeded with the confidence for a rollback, ``high`` surely not with that
    for a promotion; ``found`` is the ratio that would have been shown to be above the limit (chance ``POWER``)."""

    percentile: str
    ratio: float
    low: float
    high: float
    found: float
    needed: int | None
    """Blocks that would decide it; None where none do, the ratio being about the limit."""

    def text(self) -> str:
        return f"{self.percentile} {self.ratio:.2f} times ({self.low:.2f} to {self.high:.2f})"


def ratios(blocks: Blocks, limit: float, alpha_slower: float, alpha_no_slower: float) -> list[Ratio]:
    """One for each percentile; none of fewer than ``LEAST_BLOCKS``. The rollback's confidence is shared among the
    percentiles, since one is enough for it; a promotion needs all of them, each with its own."""
    from scipy.special import stdtrit

    n = len(blocks)
    if n < LEAST_BLOCKS:
        return []
    t_slower = float(stdtrit(n - 1, 1 - alpha_slower / len(COMPARED)))
    t_no_slower, t_power = float(stdtrit(n - 1, 1 - alpha_no_slower)), float(stdtrit(n - 1, POWER))
    found, bound = [], math.log(limit)
    for place, name in enumerate(COMPARED):
        logs = blocks.logs[:, place]
        mean, spread = float(logs.mean()), float(logs.std(ddof=1))
        error = spread / math.sqrt(n)
        margin = (t_no_slower if mean < bound else t_slower) * spread
        needed = math.ceil((margin / (bound - mean)) ** 2) if abs(bound - mean) > 1e-3 else None
        found.append(
            Ratio(
                name,
                math.exp(mean),
                math.exp(mean - t_slower * error),
                math.exp(mean + t_no_slower * error),
                limit * math.exp((t_slower + t_power) * error),
                needed,
            )
        )
    return found
