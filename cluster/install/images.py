"""Manifests with every image taken from a mirror: for clusters that cannot reach the registries.

``python -m cluster.install.images MIRROR`` is a post-renderer: manifests in, manifests out. Helm 4 runs it as a plugin,
which ``python -m cluster.install.images MIRROR --plugin DIRECTORY`` writes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
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
    """Every string under a key ``image``, wherever it stands; also in JSON and YAML that a ConfigMap holds as text."""
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
    """What a ConfigMap holds as JSON (KServe) or YAML (Envoy Gateway); other texts stay as they are."""
    if not isinstance(text, str) or "image" not in text:
        return text
    try:
        return json.dumps(rewrite(json.loads(text), mirror), indent=2)
    except ValueError:
        pass  # YAML, an example in a comment, or a template
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    changed = rewrite(found, mirror)
    return text if changed == found else yaml.safe_dump(changed, sort_keys=False)


def rewrite_text(manifests: str, mirror: str) -> str:
    documents = [rewrite(document, mirror) for document in yaml.safe_load_all(manifests) if document is not None]
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True)


PLUGIN = "servecert-images"


def plugin(mirror: str) -> str:
    """Its ``plugin.yaml``. Source: Helm 4, plugins of type postrenderer/v1."""
    command = {"command": sys.executable, "args": ["-m", "cluster.install.images", mirror]}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "type": "postrenderer/v1",
            "name": PLUGIN,
            "version": "1.0.0",
            "runtime": "subprocess",
            "runtimeConfig": {"platformCommand": [command]},
        },
        sort_keys=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes images of Kubernetes manifests from a mirror.")
    parser.add_argument("mirror")
    parser.add_argument("--plugin", type=Path, metavar="DIRECTORY", help="write a plugin of Helm 4 below it instead")
    arguments = parser.parse_args()
    if arguments.plugin is None:
        sys.stdout.write(rewrite_text(sys.stdin.read(), arguments.mirror))
        return
    place = arguments.plugin / PLUGIN
    place.mkdir(parents=True, exist_ok=True)
    (place / "plugin.yaml").write_text(plugin(arguments.mirror))


if __name__ == "__main__":
    main()
