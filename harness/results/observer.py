"""Who watches a run while it happens: the terminal, for one."""

from __future__ import annotations

from typing import Protocol

from harness.results.records import Record


class Observer(Protocol):
    @property
    def live(self) -> bool:
        """Whether somebody sees each status as it comes, so that it may cost a little."""
        ...

    def phase(self, text: str) -> None:
        """A part of the run begins."""

    def status(self, text: str) -> None:
        """What is happening right now; each replaces the one before."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def record(self, record: Record) -> None:
        """Something was learnt."""

    def step_done(self, name: str, seconds: float) -> None: ...
