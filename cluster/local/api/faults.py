"""Breaks the embedded cluster on purpose, so that a suite can be shown to notice.

The annotation ``local.servecert.io/faults`` on an InferenceService lists what is wrong with it, separated by commas,
some with a value: ``slow-load=3s, split-wrong``. In ``spec.predictor.annotations`` it goes into the revision that this
makes, and only that one is broken. Where nothing is listed, nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.base.units import parse_duration, parse_share

PREFIX = "local.servecert.io/"
ANNOTATION = PREFIX + "faults"


def _factor(text: str) -> float:
    return float(text.removesuffix("x"))


@dataclass(frozen=True)
class Kind:
    what: str
    read: Callable[[str], float] | None = None
    """None: the fault takes no value."""
    default: float = 0.0


KINDS: dict[str, Kind] = {
    # Starting
    "slow-image-pull": Kind("pulling the image takes so much longer", parse_duration, 3.0),
    "slow-load": Kind("the model loads for so much longer", parse_duration, 3.0),
    "hanging-load": Kind("the model never loads"),
    "crash-after": Kind("the container's process dies after so many requests", float, 50),
    "ready-before-load": Kind("the pod says that it is ready before its process has started"),
    "readiness-flaps": Kind("a ready pod says again and again that it is not"),
    "cold-503": Kind("requests are refused while no pod is ready, instead of waiting"),
    # Traffic
    "split-wrong": Kind("the newest revision gets so much more than its percentage", parse_share, 0.15),
    "split-ignored": Kind("revisions share the traffic equally, whatever their percentages say"),
    "split-leak": Kind("a revision from before the last gets so much traffic during a canary", parse_share, 0.05),
    "old-revision-revived": Kind("a new canary starts pods of a revision that has no traffic"),
    "dropped-at-rollover": Kind("connections break while the traffic moves"),
    "killed-not-drained": Kind("pods are killed with their requests, and leave the route afterwards"),
    # Scaling
    "autoscaler-frozen": Kind("the number of pods never changes"),
    "autoscaler-slow": Kind("decisions take effect so much later", parse_duration, 20.0),
    "autoscaler-overshoots": Kind("so many times the pods that are needed", _factor, 3.0),
    "autoscaler-oscillates": Kind("one pod more, one pod less, at every decision"),
    "metrics-lost": Kind("nothing is scraped"),
    "never-zero": Kind("the last pod stays"),
    # Answers
    "wrong-outputs": Kind("numbers in REST JSON answers are changed"),
    "errors": Kind("such a share of requests fails", parse_share, 0.02),
    "latency": Kind("requests take so many times longer", _factor, 3.0),
}


@dataclass(frozen=True)
class Faults:
    values: Mapping[str, float] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        assert name in KINDS, name
        return name in self.values

    def value(self, name: str, otherwise: float = 0.0) -> float:
        assert name in KINDS, name
        return self.values.get(name, otherwise)

    def __or__(self, other: Faults) -> Faults:
        return Faults({**self.values, **other.values})


NONE = Faults()


def parse(text: str) -> Faults:
    """Raises ValueError for a fault that does not exist, or a value that it does not take."""
    values: dict[str, float] = {}
    for item in filter(None, re.split(r"[,\s]+", text)):
        name, separator, value = item.partition("=")
        kind = KINDS.get(name)
        if kind is None:
            raise ValueError(f"unknown fault {name!r}; expected some of {', '.join(KINDS)}")
        if separator and kind.read is None:
            raise ValueError(f"fault {name!r} takes no value, got {value!r}")
        try:
            values[name] = kind.read(value) if separator and kind.read else kind.default
        except ValueError as error:
            raise ValueError(f"fault {name!r}: {error}") from None
    return Faults(values)


def faults_of(*items: dict[str, Any] | None) -> Faults:
    """Of objects by their annotations, the later ones over the earlier; what is not readable counts as none, since the
    controller has refused it."""
    found = NONE
    for item in items:
        text = ((item or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION, "")
        if text:
            try:
                found |= parse(text)
            except ValueError:
                continue
    return found


def revived(revisions: list[str], routed: set[str], created: str, faults: Faults) -> str:
    """The fault of an old revision that starts pods during a canary: which one; empty where there is none."""
    old = [name for name in revisions if name not in {*routed, created}]
    return old[-1] if old and len(routed) > 1 and "old-revision-revived" in faults else ""


def broken_split(shares: dict[str, float], revisions: list[str], faults: Faults) -> dict[str, float]:
    """What faults make of a canary's percentages; ``revisions`` are all that there are, oldest first."""
    split = [name for name in revisions if shares.get(name)]
    if len(split) < 2:
        return shares
    newest = split[-1]
    if "split-ignored" in faults:
        return dict.fromkeys(split, 100.0 / len(split))
    if "split-wrong" in faults:
        more = min(faults.value("split-wrong") * 100, 100 - shares[newest])
        rest = {
            name: percent * (100 - shares[newest] - more) / (100 - shares[newest]) for name, percent in shares.items()
        }
        return {**rest, newest: shares[newest] + more}
    older = [name for name in revisions[: revisions.index(split[0])] if name not in shares]
    if "split-leak" in faults and older:
        leak = faults.value("split-leak")
        return {**{name: percent * (1 - leak) for name, percent in shares.items()}, older[-1]: leak * 100}
    return shares
