"""The OpenAPI v2 document in its protobuf form, which kubectl before 1.27 (and some clients still) asks for.

Field numbers: google/gnostic, openapiv2/OpenAPIv2.proto. Only what clients validate objects with is encoded:
definitions, their properties, and the extension that ties a definition to its kind.
"""

from __future__ import annotations

import functools
import json
from typing import Any

CONTENT_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_EXTENSION = "x-kubernetes-group-version-kind"


def _varint(value: int) -> bytes:
    encoded = b""
    while True:
        value, low = value >> 7, value & 0x7F
        encoded += bytes([low | (0x80 if value else 0)])
        if not value:
            return encoded


def _field(number: int, payload: bytes | str) -> bytes:
    data = payload.encode() if isinstance(payload, str) else payload
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _named(name: str, value: bytes) -> bytes:
    return _field(1, name) + _field(2, value)


def _schema(schema: dict[str, Any]) -> bytes:
    out = b""
    if "$ref" in schema:
        out += _field(1, schema["$ref"])
    if "format" in schema:
        out += _field(2, schema["format"])
    if "additionalProperties" in schema:
        out += _field(21, _field(1, _schema(schema["additionalProperties"])))
    if "type" in schema:
        out += _field(22, _field(1, schema["type"]))
    if "items" in schema:
        out += _field(23, _field(1, _schema(schema["items"])))
    if properties := schema.get("properties"):
        out += _field(25, b"".join(_field(1, _named(name, _schema(inner))) for name, inner in properties.items()))
    if kinds := schema.get(_EXTENSION):
        out += _field(31, _named(_EXTENSION, _field(2, json.dumps(kinds))))
    return out


@functools.cache
def _encode(text: str) -> bytes:
    document = json.loads(text)
    definitions = b"".join(_field(1, _named(name, _schema(schema))) for name, schema in document["definitions"].items())
    info = _field(1, document["info"]["title"]) + _field(2, document["info"]["version"])
    return _field(1, document["swagger"]) + _field(2, info) + _field(8, b"") + _field(9, definitions)


def document(openapi: dict[str, Any]) -> bytes:
    return _encode(json.dumps(openapi))
