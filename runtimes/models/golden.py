"""The golden file: cases of inputs and expected outputs, in one ``.npz`` without pickles.

``index`` is a JSON string: ``[{"inputs": [{name, datatype, shape, key}], "outputs": [...]}]``; each ``key`` names an
array of the tensor's raw bytes, as the protocol's binary representation has them (little-endian, row-major).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

Tensor = tuple[str, str, Any]
"""Name, datatype, and a NumPy array (of ``bytes`` objects for BYTES, of the FP32 values for BF16)."""


def raw(datatype: str, array: Any) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in array.reshape(-1))
    if datatype == "BF16":
        return bytes((np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes())
    return bytes(np.ascontiguousarray(array).tobytes())


def write(path: Path, cases: list[tuple[list[Tensor], list[Tensor]]]) -> None:
    arrays: dict[str, Any] = {}
    index = []
    for number, case in enumerate(cases):
        entry: dict[str, list[dict[str, Any]]] = {}
        for side, tensors in zip(("inputs", "outputs"), case, strict=True):
            entry[side] = []
            for name, datatype, array in tensors:
                key = f"{number}.{side}.{name}"
                arrays[key] = np.frombuffer(raw(datatype, array), np.uint8)
                entry[side].append({"name": name, "datatype": datatype, "shape": list(array.shape), "key": key})
        index.append(entry)
    np.savez_compressed(path, index=np.array(json.dumps(index)), **arrays)
