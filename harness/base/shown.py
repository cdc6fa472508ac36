"""What a server said, as it may be shown in a terminal or a report. Nothing in it moves a cursor or hides text."""

from __future__ import annotations

SAID_BYTES = 512
"""So much is kept of the body of an answer that was an error."""


def visible(text: str | bytes, most: int = 0, *, lines: bool = False) -> str:
    """Characters that print nothing of their own (control characters, line ends, marks that turn the direction of the
    text) as escapes such as ``\x1b``; cut after ``most`` characters where it is not 0. ``lines``: line ends and tabs
    stay."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="backslashreplace")
    if most and len(text) > most:
        text = f"{text[:most]}…"
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )
