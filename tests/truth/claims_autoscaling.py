"""Whether decisions that are Knative's are told from late ones: simulated clusters whose autoscaler is known.

The simulated autoscaler scrapes each second and decides every two, each at a phase of its own; a scrape is of a second
that ended up to a second ago, holds 85 % to 100 % of the load that the generator sees, and 2 % of noise. What is
desired shows up to half a second later, and is read four times a second; pods are ready one to four seconds after they
are desired.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from harness.kubernetes.kpa import TICK_S, Autoscaler
from harness.kubernetes.kpa_settings import Settings, settings_of
from scenarios.suites.autoscaling.analysis import Steps, Watched
from scenarios.suites.autoscaling.fit import best_fit
from tests.truth.claim import Claim, Seen

Floats = npt.NDArray[np.float64]
FINE = 20
"""Steps of the load in a second."""
IDLE_S = 60


def _settings(**values: str) -> Settings:
    return settings_of(
        {f"autoscaling.knative.dev/{name.replace('_', '-')}": value for name, value in values.items()}, {}
    )


QUICK = (
    _settings(window="6s", target="2", max_scale="5"),
    np.concatenate([np.full(8, 0.4), np.full(16, 4.2), np.full(8, 0.4), np.zeros(12)]),
)
USUAL = (_settings(target="5"), np.concatenate([np.full(20, 2.0), np.full(30, 30.0), np.full(70, 2.0)]))


def _changed(changes: list[tuple[float, int]], seconds: int, every_s: float = 0.0) -> Floats:
    """By the second, as it was read every so often, or exactly."""
    ordered = sorted(changes)
    known = Steps(np.array([at for at, _ in ordered]), np.array([float(value) for _, value in ordered]))
    if not every_s:
        return known.by_second(seconds)
    readings = np.arange(-every_s, seconds, every_s)
    return Steps(readings, np.array([known.at(float(at)) for at in readings])).by_second(seconds)


def simulate(settings: Settings, concurrency: Floats, rng: np.random.Generator, late_s: float) -> Watched:
    """A course of a cluster that decides as Knative does, and carries scale-outs out ``late_s`` later."""
    seconds = concurrency.size
    fine = np.concatenate([np.zeros(2 * FINE), np.repeat(concurrency, FINE)])
    share, scrape, tick = rng.uniform(0.85, 1.0), rng.uniform(0, 1), rng.uniform(0, TICK_S)
    moments = sorted(
        [(second + scrape, True) for second in range(-IDLE_S, seconds)]
        + [(TICK_S * count + tick, False) for count in range(-IDLE_S // TICK_S, seconds // TICK_S)]
    )
    autoscaler = Autoscaler(settings.spec, 0, float(-IDLE_S))
    wanted = shown = 1
    desired, pods = [(-99.0, 1)], [-99.0]
    ready = [(-99.0, 1)]
    waiting: list[tuple[float, int]] = []
    for now_s, is_scrape in moments:
        while waiting and waiting[0][0] <= now_s:
            at_s, shown = waiting.pop(0)
            pods = sorted(pods)[:shown] + [at_s + float(rng.uniform(1, 4)) for _ in range(shown - len(pods))]
            desired.append((at_s, shown))
            ready.append((at_s, sum(pod <= at_s for pod in pods)))
            ready += [(pod, sum(other <= pod for other in pods)) for pod in pods if pod > at_s]
        if is_scrape:
            end = max(FINE, int((now_s - rng.uniform(0, 1) + 2) * FINE))
            value = float(fine[end - FINE : end].mean()) * share * (1 + float(rng.normal(0, 0.02)))
            autoscaler.record(now_s, max(0.0, value))
            continue
        decision = autoscaler.decide(now_s, sum(pod <= now_s for pod in pods))
        if decision.valid and (to := settings.bounded(max(1, decision.desired))) != wanted:
            at_s = now_s + float(rng.uniform(0, 0.5)) + (late_s if to > wanted else 0.0)
            waiting = sorted([item for item in waiting if item[0] < at_s] + [(at_s, to)])
            wanted = to
    return Watched(
        offered=concurrency,
        concurrency=concurrency,
        desired=_changed(desired, seconds, 0.25),
        ready=_changed(ready, seconds),
        load_s=float(seconds),
    )


def _agreeing(late_s: float, trials: int, seed: int) -> Seen:
    rng = np.random.default_rng(seed)
    agreed = 0
    for number in range(trials):
        settings, concurrency = (QUICK, USUAL)[number % 2]
        course = simulate(settings, concurrency, rng, late_s)
        agreed += best_fit(settings, course, IDLE_S if settings is USUAL[0] else 6).agrees
    return Seen(agreed, trials)


def _sound(trials: int, seed: int) -> Seen:
    return _agreeing(0.0, trials, seed)


def _late(trials: int, seed: int) -> Seen:
    return replace(seen := _agreeing(10.0, trials, seed), hits=seen.trials - seen.hits)


def _later(trials: int, seed: int) -> Seen:
    return replace(seen := _agreeing(5.0, trials, seed), hits=seen.trials - seen.hits)


CLAIMS = [
    Claim(
        "autoscaling.model.sound",
        "decisions of an autoscaler that is Knative's agree with its model, whatever the phases of its scrapes are",
        0.95,
        True,
        _sound,
        trials=200,
        quick=30,
    ),
    Claim(
        "autoscaling.model.late_10s",
        "a scale-out that is ten seconds late is noticed",
        1.0,
        True,
        _late,
        trials=200,
        quick=12,
    ),
    Claim(
        "autoscaling.model.late_5s",
        "a scale-out that is five seconds late is noticed",
        0.8,
        True,
        _later,
        trials=200,
        quick=12,
    ),
]
