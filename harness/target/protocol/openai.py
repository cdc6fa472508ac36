"""Streamed chat completions. Source: OpenAI API reference, Chat Completions, streaming."""

from __future__ import annotations

import json
from typing import Any

from harness.base.errors import ProtocolError


def read_stream(content: bytes) -> str:
    """The text of a streamed answer. Raises ProtocolError for what is not one: an event that is not JSON, no finish
    reason, text after it, no ``[DONE]`` at the end."""
    text: list[str] = []
    finished = done = False
    for line in content.decode(errors="replace").splitlines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if done:
            raise ProtocolError("an event follows [DONE]")
        if data == "[DONE]":
            done = True
            continue
        try:
            event: dict[str, Any] = json.loads(data)
            choices = event.get("choices") or []
        except (ValueError, AttributeError) as error:
            raise ProtocolError(f"expected a JSON object in each event, got {data[:200]!r}") from error
        for choice in choices[:1]:
            piece = (choice.get("delta") or {}).get("content")
            if piece and finished:
                raise ProtocolError("text follows the finish reason")
            text.append(piece or "")
            finished = finished or choice.get("finish_reason") is not None
    if not done or not finished:
        raise ProtocolError(
            f"expected a finish reason and [DONE], got {'no [DONE]' if finished else 'no finish reason'}"
        )
    return "".join(text)
