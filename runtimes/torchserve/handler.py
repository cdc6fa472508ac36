"""A TorchServe handler for a TorchScript module: ``model.pt`` and ``model.json`` lie in the archive.

The kservev2 envelope hands over the request's inputs and makes the answer's outputs of what comes back.
"""

import json
from pathlib import Path

import numpy as np
import torch

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}


class TorchScriptHandler:
    def __init__(self):
        self.initialized = False

    def initialize(self, context):
        directory = Path(context.system_properties["model_dir"])
        self.tensors = json.loads((directory / "model.json").read_text())
        torch.set_num_threads(1)
        self.module = torch.jit.load(directory / "model.pt", map_location="cpu").eval()
        self.initialized = True

    def handle(self, data, context):
        by_name = {item["name"]: item for item in data}
        arguments = [
            torch.from_numpy(np.array(by_name[spec["name"]]["data"], DTYPES[spec["datatype"]]))
            for spec in self.tensors["inputs"]
        ]
        with torch.inference_mode():
            result = self.module(*arguments)
        results = result if isinstance(result, tuple) else (result,)
        return [tensor.numpy() for tensor in results]
