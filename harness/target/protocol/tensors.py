"""Tensors of the Open Inference Protocol and their three encodings: JSON, raw little-endian bytes, protobuf contents.

Datatypes and sizes: inference_rest.md, Tensor Data Types. BF16 has no NumPy type and is held as FP32.
BYTES elements are Python ``bytes`` in an object array; raw, each is a 4-byte little-endian length and the bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.errors import ProtocolError

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
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
    "BYTES": np.dtype(object),
}
CONTENTS_FIELDS: dict[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""gRPC ``contents`` field of each datatype; FP16 and BF16 travel only raw."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as model metadata names it; -1 is a variable dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    array: Array = field(repr=False)
    """Flat or shaped; always ``prod(shape)`` elements of the datatype's NumPy type."""

    @property
    def flat(self) -> Array:
        return self.array.reshape(-1)

    def with_name(self, name: str) -> Tensor:
        return Tensor(name, self.datatype, self.shape, self.array)


@dataclass(frozen=True)
class InferResult:
    """An answer over any encoding."""

    model_name: str
    model_version: str | None
    id: str | None
    outputs: tuple[Tensor, ...]

    def output(self, name: str) -> Tensor:
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise ProtocolError(f"expected an output named {name!r}, got {[tensor.name for tensor in self.outputs]}")


def to_json_data(tensor: Tensor, *, nested: bool = False) -> list[Any]:
    array = tensor.array.reshape(tensor.shape) if nested else tensor.flat
    if tensor.datatype == "BYTES":
        flat = [item.decode() for item in tensor.flat]
        return _nest(flat, tensor.shape) if nested else flat
    data: list[Any] = array.tolist()
    return data


def _nest(flat: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) <= 1:
        return list(flat)
    step = math.prod(shape[1:])
    return [_nest(flat[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


def from_json_data(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Tensor:
    """Raises ProtocolError when the data are not what datatype and shape say."""
    dtype = _dtype(datatype)
    flat = _flatten(data)
    if len(flat) != math.prod(shape):
        raise ProtocolError(
            f"output {name!r}: shape {list(shape)} needs {math.prod(shape)} elements, data has {len(flat)}"
        )
    if datatype == "BYTES":
        items = np.empty(len(flat), dtype=object)
        for index, item in enumerate(flat):
            if not isinstance(item, str):
                raise ProtocolError(f"output {name!r}: expected a string at element {index}, got {item!r}")
            items[index] = item.encode()
        return Tensor(name, datatype, shape, items.reshape(shape))
    wrong = [item for item in flat if not _is_json_element(datatype, item)]
    if wrong:
        raise ProtocolError(f"output {name!r}: {datatype} data holds {wrong[0]!r}")
    if dtype.kind in "iu":
        try:
            flat = [int(item) for item in flat]
            array = np.array(flat, dtype=dtype)
        except (OverflowError, ValueError) as error:
            raise ProtocolError(f"output {name!r}: {error}") from error
    else:
        array = _floats(name, datatype, flat) if dtype.kind == "f" else np.array(flat, dtype=dtype)
    return Tensor(name, datatype, shape, array.reshape(shape))


def _floats(name: str, datatype: str, flat: list[Any]) -> Array:
    """Raises ProtocolError for a number that the datatype does not hold: it would read as an infinity."""
    try:
        wide = np.array(flat, dtype=np.float64)
    except OverflowError as error:
        raise ProtocolError(f"output {name!r}: {datatype} data hold a number that is too large: {error}") from error
    with np.errstate(over="ignore"):
        array = wide.astype(_dtype(datatype))
    lost = np.flatnonzero(np.isinf(array) & np.isfinite(wide))
    if lost.size:
        raise ProtocolError(f"output {name!r}: {datatype} does not hold {flat[int(lost[0])]!r}")
    return array


def _is_json_element(datatype: str, item: object) -> bool:
    if datatype == "BOOL":
        return isinstance(item, bool)
    if isinstance(item, bool) or not isinstance(item, int | float):
        return False
    return datatype in ("FP16", "BF16", "FP32", "FP64") or float(item).is_integer()


def _flatten(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise ProtocolError(f"expected tensor data as a list, got {type(data).__name__}")
    if data and isinstance(data[0], list):
        return [item for row in data for item in _flatten(row)]
    return data


def _dtype(datatype: str) -> np.dtype[Any]:
    try:
        return DTYPES[datatype]
    except KeyError:
        raise ProtocolError(f"unknown datatype {datatype!r}; expected one of {', '.join(DTYPES)}") from None


def to_raw(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.flat)
    if tensor.datatype == "BF16":
        bits = tensor.flat.astype("<f4").view("<u4")
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    return tensor.flat.astype(_dtype(tensor.datatype)).tobytes()


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Tensor:
    """Raises ProtocolError when the size is not exactly what datatype and shape say."""
    dtype = _dtype(datatype)
    count = math.prod(shape)
    if datatype == "BYTES":
        items = np.empty(count, dtype=object)
        offset = 0
        for index in range(count):
            if offset + 4 > len(raw):
                raise ProtocolError(f"tensor {name!r}: raw BYTES end before element {index} of {count}")
            (length,) = struct.unpack_from("<I", raw, offset)
            offset += 4
            items[index] = raw[offset : offset + length]
            offset += length
        if offset != len(raw):
            raise ProtocolError(f"tensor {name!r}: raw BYTES hold {len(raw)} bytes, its elements end at {offset}")
        return Tensor(name, datatype, shape, items.reshape(shape))
    size = 2 if datatype == "BF16" else dtype.itemsize
    if len(raw) != count * size:
        raise ProtocolError(f"tensor {name!r}: {datatype} {list(shape)} needs {count * size} raw bytes, got {len(raw)}")
    if datatype == "BF16":
        array: Array = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        array = np.frombuffer(raw, dtype)
    return Tensor(name, datatype, shape, array.reshape(shape))


def example_array(datatype: str, shape: tuple[int, ...], seed: int) -> Array:
    """Deterministic values that every datatype can hold and JSON carries exactly."""
    generator = np.random.default_rng(seed)
    count = math.prod(shape)
    if datatype == "BYTES":
        items = np.empty(count, dtype=object)
        for index in range(count):
            items[index] = f"element-{int(generator.integers(1000))}".encode()
        return items.reshape(shape)
    dtype = _dtype(datatype)
    if dtype.kind == "b":
        return generator.integers(0, 2, count).astype(np.bool_).reshape(shape)
    if dtype.kind in "iu":
        return generator.integers(0, 100, count).astype(dtype).reshape(shape)
    # Quarters are exact in every floating-point type of the protocol.
    return (generator.integers(0, 32, count) / 4).astype(dtype).reshape(shape)


def example_tensor(spec: TensorSpec, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Variable dimensions become 1; a variable first dimension becomes ``batch``."""
    shape = tuple((batch if position == 0 else 1) if size < 0 else size for position, size in enumerate(spec.shape))
    return Tensor(spec.name, spec.datatype, shape, example_array(spec.datatype, shape, seed))


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN equal to NaN."""
    return a.datatype == b.datatype and a.shape == b.shape and to_raw(a) == to_raw(b)
