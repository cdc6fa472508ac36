"""What a revision scales by: its ``autoscaling.knative.dev`` annotations over the ConfigMap ``config-autoscaler``.

Source: knative/serving, pkg/autoscaler/config, pkg/reconciler/autoscaling/resources and pkg/apis/autoscaling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from harness.kubernetes.kpa import Spec

T = TypeVar("T")

PREFIX = "autoscaling.knative.dev/"
NAMESPACE, CONFIG_MAP = "knative-serving", "config-autoscaler"
WINDOW_S = (6.0, 3600.0)
TARGET_LEAST = 0.01
METRICS = ("concurrency", "rps")

DEFAULTS = {
    "enable-scale-to-zero": "true",
    "allow-zero-initial-scale": "false",
    "max-scale-up-rate": "1000",
    "max-scale-down-rate": "2",
    "container-concurrency-target-percentage": "70",
    "container-concurrency-target-default": "100",
    "requests-per-second-target-default": "200",
    "target-burst-capacity": "211",
    "panic-window-percentage": "10",
    "panic-threshold-percentage": "200",
    "initial-scale": "1",
    "min-scale": "0",
    "max-scale": "0",
    "stable-window": "60s",
    "scale-down-delay": "0s",
    "scale-to-zero-grace-period": "30s",
    "scale-to-zero-pod-retention-period": "0s",
}
RPS_UTILIZATION = 0.7
_NOT_OURS = {"pod-autoscaler-class", "activator-capacity", "max-scale-limit", "_example"}
"""Keys of the ConfigMap that decide nothing here."""
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Settings:
    spec: Spec
    metric: str = "concurrency"
    """What is measured of each pod: ``concurrency`` or ``rps``."""
    least: int = 0
    most: int = 0
    """0: no bound."""
    initial: int = 1
    scale_to_zero: bool = True
    grace_s: float = 30.0
    """The activator has been in the path for so long before the last pod goes."""
    retention_s: float = 0.0
    """The last pod stays so long after nothing wanted it."""

    def bounded(self, desired: int) -> int:
        desired = max(self.least, desired)
        return min(self.most, desired) if self.most else desired


def duration_s(text: str) -> float:
    """A duration as Go writes it, such as ``90s`` or ``1m30s``. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"expected a duration such as 60s or 1m30s, got {text!r}")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _number(least: float, most: float = float("inf"), *, open_end: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most or (open_end and value == least):
            raise ValueError(f"expected a number {'above' if open_end else 'of at least'} {least:g}, got {text!r}")
        return value

    return read


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(f"expected 0 or more, got {text!r}")
    return value


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def _window(text: str) -> float:
    value = duration_s(text)
    if not WINDOW_S[0] <= value <= WINDOW_S[1] or value != round(value):
        raise ValueError(f"expected whole seconds between 6s and 1h, got {text!r}")
    return value


def _burst(text: str) -> float:
    value = float(text)
    if value < 0 and value != -1:
        raise ValueError(f"expected -1, or 0 or more, got {text!r}")
    return value


def _positive_duration(text: str) -> float:
    value = duration_s(text)
    if value <= 0:
        raise ValueError(f"expected more than 0s, got {text!r}")
    return value


def _percentage(text: str) -> float:
    """For old times' sake a value up to 1 is a fraction already."""
    value = float(text)
    value = value / 100 if value > 1 else value
    if not 0 < value <= 1:
        raise ValueError(f"expected a percentage above 0 and up to 100, got {text!r}")
    return value


class _Reader:
    """One key after the other; an error names the key and where it stands."""

    def __init__(self, annotations: Mapping[str, str], config: Mapping[str, str]) -> None:
        self._annotations = annotations
        self._config = {**DEFAULTS, **config}

    def config(self, key: str, read: Callable[[str], T]) -> T:
        return self._read(f"{CONFIG_MAP}: {key}", self._config[key], read)

    def own(self, key: str, read: Callable[[str], T], otherwise: T) -> T:
        name = PREFIX + key
        if name not in self._annotations:
            return otherwise
        return self._read(f"annotation {name}", self._annotations[name], read)

    @staticmethod
    def _read(where: str, text: str, read: Callable[[str], T]) -> T:
        try:
            return read(text.strip())
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def check_config(data: Mapping[str, str]) -> None:
    """Raises ValueError naming the key that is unknown or wrong."""
    if unknown := sorted(set(data) - set(DEFAULTS) - _NOT_OURS):
        raise ValueError(f"{CONFIG_MAP}: unknown {', '.join(unknown)}; expected some of {', '.join(DEFAULTS)}")
    settings_of({}, data)


def settings_of(annotations: Mapping[str, str], config: Mapping[str, str], container_concurrency: int = 0) -> Settings:
    """Raises ValueError naming the annotation or key that is wrong. ``Spec.reachable`` is left at True."""
    reader = _Reader(annotations, config)
    own, shared = reader.own, reader.config

    def metric_name(text: str) -> str:
        if text not in METRICS:
            raise ValueError(f"expected concurrency or rps (Knative's pod autoscaler has no other), got {text!r}")
        return text

    metric = own("metric", metric_name, "concurrency")
    target = own("target", _number(TARGET_LEAST), 0.0)
    if metric == "rps":
        total = target or shared("requests-per-second-target-default", _number(TARGET_LEAST))
        utilization = RPS_UTILIZATION
    else:
        default = shared("container-concurrency-target-default", _number(TARGET_LEAST))
        total = target or float(container_concurrency) or default
        if container_concurrency:
            total = min(total, container_concurrency)
        utilization = shared("container-concurrency-target-percentage", _percentage)
    utilization = own("target-utilization-percentage", _number(1, 100), utilization * 100) / 100
    window = own("window", _window, shared("stable-window", _window))
    panic_share = own("panic-window-percentage", _number(1, 100), shared("panic-window-percentage", _number(1, 100)))
    panic_threshold = own(
        "panic-threshold-percentage", _number(110, 1000), shared("panic-threshold-percentage", _number(110, 1000))
    )
    spec = Spec(
        target_value=max(TARGET_LEAST, total * utilization),
        total_value=total,
        target_burst_capacity=own("target-burst-capacity", _burst, shared("target-burst-capacity", _burst)),
        panic_threshold=panic_threshold / 100,
        max_scale_up_rate=shared("max-scale-up-rate", _number(1, open_end=True)),
        max_scale_down_rate=shared("max-scale-down-rate", _number(1, open_end=True)),
        stable_window_s=window,
        panic_window_s=max(1.0, float(round(window * panic_share / 100))),
        scale_down_delay_s=own("scale-down-delay", duration_s, shared("scale-down-delay", duration_s)),
        activation_scale=own("activation-scale", _count, 0),
    )
    initial = own("initial-scale", _count, shared("initial-scale", _count))
    if initial == 0 and not shared("allow-zero-initial-scale", _flag):
        initial = shared("initial-scale", _count)
    least = own("min-scale", _count, shared("min-scale", _count))
    most = own("max-scale", _count, shared("max-scale", _count))
    if most and least > most:
        raise ValueError(f"expected min-scale to be at most max-scale, got {least} and {most}")
    return Settings(
        spec=spec,
        metric=metric,
        least=least,
        most=most,
        initial=initial,
        scale_to_zero=shared("enable-scale-to-zero", _flag),
        grace_s=shared("scale-to-zero-grace-period", _positive_duration),
        retention_s=own(
            "scale-to-zero-pod-retention-period",
            duration_s,
            shared("scale-to-zero-pod-retention-period", duration_s),
        ),
    )
