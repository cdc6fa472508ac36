"""Request bodies in Kubernetes' protobuf encoding, which kubectl's ``create`` commands send for core types.

The envelope is the four bytes ``k8s\\0`` and a ``runtime.Unknown``. Field numbers are those of the API's
generated.proto files (k8s.io/api/core/v1, k8s.io/api/authorization/v1, k8s.io/apimachinery/pkg/apis/meta/v1,
pkg/runtime). Answers always go out as JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from cluster.local.api.resources import Object

MAGIC = b"k8s\x00"
Schema = dict[int, tuple[str, Any]]
"""By field number: the JSON name, and how to read it: a type's name, a schema, or one of these in a list (repeated)."""

_MAP, _BYTES_MAP = "map<string,string>", "map<string,bytes>"
_OWNER: Schema = {
    1: ("kind", "string"),
    3: ("name", "string"),
    4: ("uid", "string"),
    5: ("apiVersion", "string"),
    6: ("controller", "bool"),
    7: ("blockOwnerDeletion", "bool"),
}
_META: Schema = {
    1: ("name", "string"),
    2: ("generateName", "string"),
    3: ("namespace", "string"),
    5: ("uid", "string"),
    6: ("resourceVersion", "string"),
    11: ("labels", _MAP),
    12: ("annotations", _MAP),
    13: ("ownerReferences", [_OWNER]),
    14: ("finalizers", ["string"]),
}
_REFERENCE: Schema = {
    1: ("kind", "string"),
    2: ("namespace", "string"),
    3: ("name", "string"),
    4: ("uid", "string"),
    5: ("apiVersion", "string"),
}
_PORT: Schema = {
    1: ("name", "string"),
    2: ("protocol", "string"),
    3: ("port", "int"),
    4: ("targetPort", "intOrString"),
    5: ("nodePort", "int"),
}
_SERVICE: Schema = {
    1: ("ports", [_PORT]),
    2: ("selector", _MAP),
    3: ("clusterIP", "string"),
    4: ("type", "string"),
    5: ("externalIPs", ["string"]),
    10: ("externalName", "string"),
}
_REVIEW: Schema = {
    1: (
        "resourceAttributes",
        {
            1: ("namespace", "string"),
            2: ("verb", "string"),
            3: ("group", "string"),
            4: ("version", "string"),
            5: ("resource", "string"),
            6: ("subresource", "string"),
            7: ("name", "string"),
        },
    ),
    2: ("nonResourceAttributes", {1: ("path", "string"), 2: ("verb", "string")}),
}
_KINDS: dict[str, Schema] = {
    "ConfigMap": {1: ("metadata", _META), 2: ("data", _MAP), 3: ("binaryData", _BYTES_MAP), 4: ("immutable", "bool")},
    "Secret": {
        1: ("metadata", _META),
        2: ("data", _BYTES_MAP),
        3: ("type", "string"),
        4: ("stringData", _MAP),
        5: ("immutable", "bool"),
    },
    "Namespace": {1: ("metadata", _META), 2: ("spec", {1: ("finalizers", ["string"])}), 3: ("status", {})},
    "ServiceAccount": {
        1: ("metadata", _META),
        2: ("secrets", [_REFERENCE]),
        3: ("imagePullSecrets", [{1: ("name", "string")}]),
    },
    "Service": {1: ("metadata", _META), 2: ("spec", _SERVICE), 3: ("status", {})},
    "SelfSubjectAccessReview": {1: ("metadata", _META), 2: ("spec", _REVIEW), 3: ("status", {})},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "int"),
        2: ("preconditions", {1: ("uid", "string"), 2: ("resourceVersion", "string")}),
        4: ("propagationPolicy", "string"),
    },
}


def decode(body: bytes) -> Object:
    """Raises ValueError for what is not such a body, LookupError for a kind that is not read here."""
    if not body.startswith(MAGIC):
        raise ValueError("the body is not Kubernetes protobuf: it does not begin with k8s\\0")
    envelope = _message(
        body[len(MAGIC) :], {1: ("type", {1: ("apiVersion", "string"), 2: ("kind", "string")}), 2: ("raw", "bytes")}
    )
    kind = envelope.get("type", {}).get("kind", "")
    if kind not in _KINDS:
        raise LookupError(f"a {kind or 'body without a kind'} in protobuf")
    return {**envelope["type"], **_message(envelope.get("raw", b""), _KINDS[kind])}


def _message(data: bytes, schema: Schema) -> Object:
    result: Object = {}
    for number, value in _fields(data):
        if number not in schema:
            continue
        name, kind = schema[number]
        if isinstance(kind, list):
            result.setdefault(name, []).append(_value(value, kind[0]))
        elif kind in (_MAP, _BYTES_MAP):
            entry = _message(
                _bytes(value), {1: ("key", "string"), 2: ("value", "bytes" if kind == _BYTES_MAP else "string")}
            )
            item = entry.get("value", b"" if kind == _BYTES_MAP else "")
            encoded = base64.b64encode(item).decode() if kind == _BYTES_MAP else item
            result.setdefault(name, {})[entry.get("key", "")] = encoded
        else:
            found = _value(value, kind)
            # Go writes its zero values out; JSON leaves them out.
            if found not in ("", {}):
                result[name] = found
    return result


def _value(value: int | bytes, kind: Any) -> Any:
    if isinstance(kind, dict):
        return _message(_bytes(value), kind)
    if kind == "string":
        return _bytes(value).decode()
    if kind == "bytes":
        return _bytes(value)
    if kind == "intOrString":
        chosen = _message(_bytes(value), {1: ("type", "int"), 2: ("int", "int"), 3: ("text", "string")})
        return chosen.get("text", "") if chosen.get("type") else chosen.get("int", 0)
    if not isinstance(value, int):
        raise ValueError(f"expected a number for {kind}")
    return bool(value) if kind == "bool" else value - (1 << 64) if value >= 1 << 63 else value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("expected a length-delimited field")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The wire format: varint (0), 64 bits (1), length-delimited (2), 32 bits (5)."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position + size > len(data):
            raise ValueError("the body ends within a field")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("the body ends within a number")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
