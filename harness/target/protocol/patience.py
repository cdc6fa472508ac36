"""How long an unanswered exchange is waited for, so that a server that hangs does not take hours to say so."""

from __future__ import annotations

from dataclasses import dataclass, field

ENOUGH = 3
"""After so many in a row without an answer, the next are given less time."""
SHORT_S = 1.0


@dataclass
class Patience:
    """By kind of exchange: inference may hang while health is answered."""

    _unanswered: dict[str, int] = field(default_factory=dict)

    def limit(self, kind: str, wanted_s: float) -> float:
        return min(wanted_s, SHORT_S) if self._unanswered.get(kind, 0) >= ENOUGH else wanted_s

    def answered(self, kind: str) -> None:
        self._unanswered[kind] = 0

    def unanswered(self, kind: str) -> None:
        self._unanswered[kind] = self._unanswered.get(kind, 0) + 1
