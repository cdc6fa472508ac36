"""Manifests with every image taken from a mirror: for clusters that cannot reach the registries.

``python -m cluster.install.images MIRROR`` is a post-renderer for helm: manifests in, manifests out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml


def mirrored(image: str, mirror: str) -> str:
    """``docker.io/kserve/agent:v1`` and ``kserve/agent:v1`` become ``MIRROR/kserve/agent:v1``; a tag and a digest
    stay."""
    if image.startswith(mirror + "/"):
        return image
    first, slash, rest = image.partition("/")
    is_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    path = rest if is_registry else image
    if "/" not in path and (not is_registry or first == "docker.io"):
        path = f"library/{path}"
    return f"{mirror}/{path}"


def rewrite(value: Any, mirror: str) -> Any:
    """Every string under a key ``image``, wherever it stands; also in JSON that a ConfigMap holds as text."""
    if isinstance(value, dict):
        if value.get("kind") == "ConfigMap" and isinstance(value.get("data"), dict):
            data = {key: _in_text(text, mirror) for key, text in value["data"].items()}
            return {**value, "data": data}
        return {
            key: mirrored(item, mirror) if key == "image" and isinstance(item, str) and item else rewrite(item, mirror)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [rewrite(item, mirror) for item in value]
    return value


def _in_text(text: Any, mirror: str) -> Any:
    if not isinstance(text, str) or '"image"' not in text:
        return text
    try:
        return json.dumps(rewrite(json.loads(text), mirror), indent=2)
    except ValueError:
        return text  # an example in a comment, or a template


def rewrite_text(manifests: str, mirror: str) -> str:
    documents = [rewrite(document, mirror) for document in yaml.safe_load_all(manifests) if document is not None]
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(rewrite_text(sys.stdin.read(), sys.argv[1]))
