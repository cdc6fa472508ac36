"""Golden files: cases of inputs with the outputs that the model's own framework gave offline.

One ``.npz`` without pickles: ``index`` is a JSON list of cases, each tensor a key of raw bytes as the protocol's binary
representation has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.base.errors import ProtocolError, UsageError
from harness.target.protocol.tensors import Tensor, from_json_data, from_raw


@dataclass(frozen=True)
class GoldenCase:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        return self.inputs[0].shape[0] if self.inputs[0].shape else 1


def read_golden(path: Path) -> list[GoldenCase]:
    """Raises UsageError for a file that is missing or not a golden file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            index = json.loads(str(file["index"]))

            def tensors(entries: list[dict[str, object]]) -> tuple[Tensor, ...]:
                return tuple(
                    from_raw(
                        str(entry["name"]),
                        str(entry["datatype"]),
                        tuple(int(size) for size in entry["shape"]),  # type: ignore[attr-defined]
                        file[str(entry["key"])].tobytes(),
                    )
                    for entry in entries
                )

            cases = [GoldenCase(tensors(case["inputs"]), tensors(case["outputs"])) for case in index]
    except (OSError, ValueError, KeyError, TypeError, ProtocolError) as error:
        raise UsageError(
            f"{path}: expected a golden file (.npz with an 'index', as runtimes/models/golden.py writes it): {error}"
        ) from error
    if not cases:
        raise UsageError(f"{path}: the golden file holds no case")
    return cases


def read_payload(path: Path) -> list[Tensor]:
    """The inputs of a v2 inference request in a JSON file. Raises UsageError."""
    try:
        body = json.loads(path.read_text())
        return [
            from_json_data(item["name"], item["datatype"], tuple(item["shape"]), item["data"])
            for item in body["inputs"]
        ]
    except (OSError, ValueError, KeyError, TypeError, ProtocolError) as error:
        raise UsageError(f'{path}: expected a v2 inference request, {{"inputs": [...]}}: {error}') from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises UsageError."""
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: expected a JSON object: {error}") from error
    if not isinstance(body, dict):
        raise UsageError(f"{path}: expected a JSON object, got {type(body).__name__}")
    return body
