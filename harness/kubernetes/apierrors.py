"""What the refusals of a Kubernetes API mean to the one who asked."""

from __future__ import annotations

import json

PASSING = (429, 500, 502, 503, 504)
"""Answers that another try may not get: an API server that starts, a load balancer in front of it, a webhook's pod."""
_MEANINGS = {
    401: "the credentials are not valid (any more); log in again and repeat",
    403: "the credentials do not allow it; docs/clusters lists the permissions",
}


def explain(status: int, reason: str, body: str) -> str:
    """One line: the status, what it means where that is known, and the API's own message."""
    try:
        parsed = json.loads(body)
        said = str(parsed.get("message") or body) if isinstance(parsed, dict) else body
    except ValueError:
        said = body
    meaning = "a webhook of the cluster refuses it" if "admission webhook" in said else _MEANINGS.get(status)
    text = f"the Kubernetes API answered {status} {reason}"
    return f"{text}: {meaning}; it says: {said[:600]}" if meaning else f"{text}: {said[:600]}"
