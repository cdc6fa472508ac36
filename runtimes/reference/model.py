"""Models of the reference server, and the validation that REST and gRPC share.

A model directory holds ``model.json``: ``{"platform": "servecert_identity", "inputs": [{name, datatype, shape}],
"outputs": [...]}``. Output i repeats input i.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES: dict[str, Any] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<f4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


class InvalidRequest(Exception):
    """The client's mistake: 400, INVALID_ARGUMENT."""


class NotFound(Exception):
    """No such model or version: 404, NOT_FOUND."""


class Unavailable(Exception):
    """Known and not loaded: 503, UNAVAILABLE."""


@dataclass(frozen=True)
class TensorSpec:
    name: str
    datatype: str
    shape: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any
    """A NumPy array, or a list of ``bytes`` for BYTES; flat, ``prod(shape)`` elements."""


@dataclass(frozen=True)
class Request:
    id: str
    inputs: list[Tensor]
    outputs: list[str]
    """Requested output names in order; empty asks for all."""


@dataclass
class Model:
    name: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: tuple[str, ...] = ("1",)
    loaded: bool = True
    work_s: float = 0.0
    """How long an inference takes on top of what it takes."""

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": list(self.versions),
            "platform": self.platform,
            "inputs": [spec.as_json() for spec in self.inputs],
            "outputs": [spec.as_json() for spec in self.outputs],
        }

    def infer(self, request: Request) -> list[Tensor]:
        """Raises InvalidRequest for anything that the model's metadata do not allow."""
        given = [tensor.name for tensor in request.inputs]
        known = [spec.name for spec in self.inputs]
        if unknown := [name for name in given if name not in known]:
            raise InvalidRequest(f"unknown input {unknown[0]!r}; the model's inputs are {', '.join(known)}")
        if len(set(given)) != len(given):
            raise InvalidRequest("an input is given twice")
        if missing := [name for name in known if name not in given]:
            raise InvalidRequest(f"missing input {missing[0]!r}")
        by_name = {tensor.name: tensor for tensor in request.inputs}
        for spec in self.inputs:
            _match(spec, by_name[spec.name])
        produced = {
            out.name: Tensor(out.name, out.datatype, by_name[spec.name].shape, by_name[spec.name].data)
            for spec, out in zip(self.inputs, self.outputs, strict=True)
        }
        wanted = request.outputs or list(produced)
        if unknown := [name for name in wanted if name not in produced]:
            raise InvalidRequest(f"unknown output {unknown[0]!r}; the model's outputs are {', '.join(produced)}")
        return [produced[name] for name in wanted]


def _match(spec: TensorSpec, tensor: Tensor) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(f"input {spec.name!r}: expected datatype {spec.datatype}, got {tensor.datatype!r}")
    if len(tensor.shape) != len(spec.shape) or any(
        want not in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
    ):
        raise InvalidRequest(f"input {spec.name!r}: expected shape {list(spec.shape)}, got {list(tensor.shape)}")


def rows_of(outputs: list[Tensor]) -> int:
    """How many inferences a request was: the rows of its batch."""
    return outputs[0].shape[0] if outputs and outputs[0].shape else 1


def count_of(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(isinstance(size, bool) or not isinstance(size, int) for size in shape):
        raise InvalidRequest(f"input {name!r}: shape must be a list of integers, got {shape!r}")
    if any(size < 0 for size in shape):
        raise InvalidRequest(f"input {name!r}: a dimension is negative: {shape!r}")
    if math.prod(shape) > 1 << 31:
        raise InvalidRequest(f"input {name!r}: {shape!r} is too large")
    return tuple(shape)


def check_datatype(name: str, datatype: object) -> str:
    if not isinstance(datatype, str) or (datatype not in DTYPES and datatype != "BYTES"):
        raise InvalidRequest(f"input {name!r}: unknown datatype {datatype!r}")
    return datatype


def decode_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Tensor:
    count = count_of(shape)
    if datatype == "BYTES":
        items: list[bytes] = []
        offset = 0
        while offset < len(raw):
            if offset + 4 > len(raw):
                raise InvalidRequest(f"input {name!r}: BYTES data end within a length")
            (length,) = struct.unpack_from("<I", raw, offset)
            offset += 4
            if offset + length > len(raw):
                raise InvalidRequest(f"input {name!r}: BYTES data end within an element")
            items.append(raw[offset : offset + length])
            offset += length
        if len(items) != count:
            raise InvalidRequest(f"input {name!r}: shape {list(shape)} needs {count} elements, got {len(items)}")
        return Tensor(name, datatype, shape, items)
    size = 2 if datatype == "BF16" else DTYPES[datatype].itemsize
    if len(raw) != count * size:
        raise InvalidRequest(f"input {name!r}: {datatype} {list(shape)} needs {count * size} bytes, got {len(raw)}")
    if datatype == "BF16":
        data = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        data = np.frombuffer(raw, DTYPES[datatype])
    return Tensor(name, datatype, shape, data)


def encode_raw(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.data)
    if tensor.datatype == "BF16":
        return bytes((tensor.data.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())
    return bytes(tensor.data.tobytes())
