"""``identity.py --out DIR --name NAME [--datatypes A,B]``: a model that returns its inputs, for all servers that can.

Its folder is a model of the reference server and KServe's (``model.json``), of MLServer (``model-settings.json``) and,
as a repository that holds the folder NAME, of Triton.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from golden import write  # type: ignore[import-not-found,unused-ignore]

CATALOG = Path(__file__).resolve().parent.parent
FULL = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES"]
DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
WIDTH = 4


def values(datatype: str, batch: int, generator: np.random.Generator) -> Any:
    shape = (batch, WIDTH)
    if datatype == "BYTES":
        texts = ["", "plain", "snow ☃", 'quote " and \\ backslash']
        array = np.empty(shape, dtype=object)
        array[:] = [[text.encode() for text in texts] for _ in range(batch)]
        return array
    if datatype == "BF16":
        return (generator.integers(-128, 128, shape) / 8).astype(np.float32)
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(np.bool_)
    if dtype.kind in "iu":
        limits: Any = np.iinfo(dtype)  # type: ignore[type-var,unused-ignore]
        array = generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
        array[0, :2] = [limits.min, limits.max]
        return array
    limits_f = np.finfo(dtype)
    array = generator.standard_normal(shape).astype(dtype)
    array[0] = [0.0, limits_f.max, limits_f.tiny, -1.0]
    return array


def triton_config(description: dict[str, Any]) -> str:
    """Every dimension is the model's own, so that Triton does not batch; the model's name is its folder's."""

    def tensors(key: str) -> str:
        parts = []
        for item in description[key]:
            kind = "STRING" if item["datatype"] == "BYTES" else item["datatype"]
            dims = ", ".join(map(str, item["shape"]))
            parts.append(f'{{ name: "{item["name"]}" data_type: TYPE_{kind} dims: [ {dims} ] }}')
        return ", ".join(parts)

    return (
        'backend: "python"\nmax_batch_size: 0\n'
        f"input [ {tensors('inputs')} ]\noutput [ {tensors('outputs')} ]\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--datatypes", default=",".join(FULL))
    arguments = parser.parse_args()
    datatypes = arguments.datatypes.split(",")

    def tensors(prefix: str) -> list[dict[str, Any]]:
        return [{"name": f"{prefix}_{kind}", "datatype": kind, "shape": [-1, WIDTH]} for kind in datatypes]

    artifacts = arguments.out / "artifacts"
    artifacts.mkdir()
    description = {"platform": "servecert_identity", "inputs": tensors("INPUT"), "outputs": tensors("OUTPUT")}
    (artifacts / "model.json").write_text(json.dumps(description, indent=1))
    (artifacts / "model-settings.json").write_text(json.dumps({"implementation": "identity_model.IdentityModel"}))
    shutil.copy(CATALOG / "mlserver" / "identity_model.py", artifacts)
    version = artifacts / arguments.name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(triton_config(description))
    shutil.copy(CATALOG / "triton" / "identity_model.py", version / "model.py")
    generator = np.random.default_rng(20240229)
    cases = []
    for batch in (1, 1, 2, 8):
        arrays = {kind: values(kind, batch, generator) for kind in datatypes}
        cases.append(
            (
                [(f"INPUT_{kind}", kind, array) for kind, array in arrays.items()],
                [(f"OUTPUT_{kind}", kind, array) for kind, array in arrays.items()],
            )
        )
    write(arguments.out / "golden.npz", cases)


if __name__ == "__main__":
    main()
