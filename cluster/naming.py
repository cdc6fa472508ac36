"""Labels (tags) that mark what servecert created, in every cloud."""

from __future__ import annotations

from datetime import UTC, datetime

LABEL = "servecert-cluster"
EXPIRES = "servecert-expires"


def labels(name: str, extra: dict[str, str], expires_s: float) -> dict[str, str]:
    """Lower case, digits, ``-`` and ``_`` only: what GKE, EKS and AKS all take."""
    stamp = datetime.fromtimestamp(expires_s, UTC).strftime("%Y%m%d-%H%M")
    return {**extra, LABEL: name, EXPIRES: stamp}


def pairs(values: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())
