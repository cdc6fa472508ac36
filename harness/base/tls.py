"""Whom to trust where TLS is spoken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import UsageError


@dataclass(frozen=True)
class Tls:
    """``ca`` is a file of certificates to trust; None trusts the system's."""

    ca: Path | None = None

    def trusted(self) -> str:
        """The certificates as PEM text; empty for the system's. Raises UsageError."""
        if self.ca is None:
            return ""
        try:
            text = self.ca.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the certificates {self.ca}: {error}") from error
        if "-----BEGIN CERTIFICATE-----" not in text:
            raise UsageError(f"{self.ca}: expected certificates in PEM")
        return text
