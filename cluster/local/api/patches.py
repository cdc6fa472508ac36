"""The four patch formats of the Kubernetes API.

JSON merge patch (RFC 7386), JSON patch (RFC 6902), strategic merge patch (lists merge by key), and apply (a manager
states all the fields that it wants; what it stated before and states no longer goes away).
"""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch

from cluster.local.api.resources import Object
from cluster.local.api.store import ApiError, now

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),
    "secrets": ("name",),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists that strategic merge and apply treat as maps, and the field that identifies an entry."""

Path = tuple[str, ...]


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: Object, patch: Any) -> Object:
    """Raises ApiError 422 where an operation does not fit."""
    try:
        return dict(jsonpatch.apply_patch(target, patch))
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        raise ApiError(
            422, "Invalid", f"the server rejected our request due to an error in our request: {error}"
        ) from error


def _merge_key(field: str, items: list[Any]) -> str | None:
    for key in MERGE_KEYS.get(field, ()):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
    return None


def strategic_merge(target: Any, patch: Any, field: str = "") -> Any:
    """Understands ``$patch: replace|delete``, ``$deleteFromPrimitiveList/…`` and ``$setElementOrder/…``."""
    if isinstance(patch, list):
        key = _merge_key(field, patch)
        existing = target if isinstance(target, list) else []
        if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
            return [item for item in patch if item.get("$patch") != "replace"]
        if key is None:
            return copy.deepcopy(patch)
        return _merge_list(existing, patch, key)
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {name: value for name, value in patch.items() if name != "$patch"}
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if name.startswith("$setElementOrder/") or name in ("$patch", "$retainKeys"):
            continue
        if name.startswith("$deleteFromPrimitiveList/"):
            listed = name.split("/", 1)[1]
            result[listed] = [item for item in result.get(listed, []) if item not in value]
        elif value is None:
            result.pop(name, None)
        else:
            result[name] = strategic_merge(result.get(name), value, name)
    return result


def _merge_list(existing: list[Any], patch: list[Any], key: str) -> list[Any]:
    result = copy.deepcopy(existing)
    for entry in patch:
        place = next((index for index, item in enumerate(result) if item.get(key) == entry[key]), None)
        if entry.get("$patch") == "delete":
            if place is not None:
                del result[place]
        elif place is None:
            result.append(copy.deepcopy(entry))
        else:
            result[place] = strategic_merge(result[place], entry)
    return result


def apply(live: Object | None, wanted: Object, manager: str, *, force: bool) -> Object:
    """Server-side apply. Raises ApiError 409 where another manager applied a different value and not ``force``.

    Fields set by plain updates have no recorded manager here and are taken over without a conflict.
    """
    wanted = copy.deepcopy(wanted)
    wanted.get("metadata", {}).pop("managedFields", None)
    fields = _leaves({key: value for key, value in wanted.items() if key not in ("apiVersion", "kind", "metadata")})
    stated = {k: v for k, v in wanted.get("metadata", {}).items() if k in ("labels", "annotations", "finalizers")}
    if stated:
        fields |= _leaves({"metadata": stated})
    owned = _owned(live) if live else {}
    if live is not None:
        _check_conflicts(live, fields, owned, manager, force)
    result: Object = strategic_merge(live or {}, wanted)
    others = {path for name, paths in owned.items() if name != manager for path in paths}
    for path in owned.get(manager, set()) - set(fields):
        if path not in others:
            _remove(result, path)
    owned[manager] = set(fields)
    if force:
        for name in owned:
            if name != manager:
                owned[name] -= set(fields)
    stamp = now()
    result.setdefault("metadata", {})["managedFields"] = [
        {
            "manager": name,
            "operation": "Apply",
            "apiVersion": wanted.get("apiVersion"),
            "time": stamp,
            "fieldsType": "FieldsV1",
            "fieldsV1": _encode(paths),
        }
        for name, paths in owned.items()
        if paths
    ]
    return result


def _check_conflicts(
    live: Object, fields: dict[Path, Any], owned: dict[str, set[Path]], manager: str, force: bool
) -> None:
    have = _leaves(live)
    clashes = [
        (name, path)
        for name, paths in owned.items()
        if name != manager
        for path in paths & set(fields)
        if have.get(path) != fields[path]
    ]
    if clashes and not force:
        listed = "; ".join(f'conflict with "{name}": .{".".join(step[2:] for step in path)}' for name, path in clashes)
        raise ApiError(409, "Conflict", f"Apply failed with {len(clashes)} conflict(s): {listed}")


def _leaves(value: Any, field: str = "", path: Path = ()) -> dict[Path, Any]:
    if isinstance(value, dict) and value:
        return {
            leaf: item
            for key, inner in value.items()
            for leaf, item in _leaves(inner, key, (*path, f"f:{key}")).items()
        }
    if isinstance(value, list) and (key := _merge_key(field, value)):
        return {
            leaf: item
            for inner in value
            for leaf, item in _leaves(inner, "", (*path, f"k:{json.dumps({key: inner[key]})}")).items()
        }
    return {path: value}


def _owned(live: Object) -> dict[str, set[Path]]:
    return {
        entry["manager"]: set(_decode(entry.get("fieldsV1", {})))
        for entry in live["metadata"].get("managedFields", [])
        if entry.get("operation") == "Apply"
    }


def _encode(paths: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(paths):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def _decode(tree: Object, path: Path = ()) -> list[Path]:
    if not tree:
        return [path] if path else []
    return [leaf for step, inner in tree.items() for leaf in _decode(inner, (*path, step))]


def _remove(target: Any, path: Path) -> None:
    """Takes the leaf away, and containers that became empty by it."""
    step, rest = path[0], path[1:]
    if step.startswith("f:"):
        key = step[2:]
        if not isinstance(target, dict) or key not in target:
            return
        if rest:
            _remove(target[key], rest)
        if not rest or target[key] in ({}, []):
            del target[key]
    elif isinstance(target, list):
        identity = json.loads(step[2:])
        for item in list(target):
            if isinstance(item, dict) and all(item.get(key) == value for key, value in identity.items()):
                if rest:
                    _remove(item, rest)
                if not rest or item in ({}, identity):
                    target.remove(item)
