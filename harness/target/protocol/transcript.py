"""What was sent and what came, kept as evidence for whoever is listening in this task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from harness.results.records import Exchange

SHOWN = 2000
"""Characters of a body that are kept; bodies can be tens of megabytes."""

_transcript: ContextVar[list[Exchange] | None] = ContextVar("transcript", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Exchange]]:
    """Exchanges of this task and of tasks that it starts, in order of completion."""
    exchanges: list[Exchange] = []
    token = _transcript.set(exchanges)
    try:
        yield exchanges
    finally:
        _transcript.reset(token)


def note(exchange: Exchange) -> None:
    exchanges = _transcript.get()
    if exchanges is not None and len(exchanges) < 200:
        exchanges.append(exchange)


def shorten(data: bytes | str) -> str:
    text = data.decode("utf-8", errors="backslashreplace") if isinstance(data, bytes) else data
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
