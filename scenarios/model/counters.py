"""Counters that pods keep, as scenario files name them."""

from __future__ import annotations

from pydantic import Field

from harness.base.fields import Strict


class Counter(Strict):
    """A counter of inference requests that each pod keeps, read through the API server."""

    metric: str = Field(description="a Prometheus counter; its samples of all labels are added up")
    port: int = Field(8080, ge=1, le=65535, description="of the container")
    path: str = "/metrics"
