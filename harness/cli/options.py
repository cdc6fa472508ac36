"""Options that commands of several modules share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.base.errors import UsageError
from harness.base.units import parse_share

Json = Annotated[str, typer.Option("--json", metavar="FILE", help="write the result as JSON; - is standard output")]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="write the result as JUnit XML")]


def share_of(option: str, text: str) -> float:
    """A part of one from ``5%`` or ``0.05``. Raises UsageError that names the option."""
    try:
        return parse_share(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
