"""A KServe model server for a TorchScript module: the model directory holds ``model.pt`` and ``model.json``."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from kserve import InferOutput, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput
from kserve.utils.utils import generate_uuid

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}


class TorchScriptModel(Model):
    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self.directory = directory

    def load(self) -> bool:
        self.tensors = json.loads((self.directory / "model.json").read_text())
        self.module = torch.jit.load(self.directory / "model.pt", map_location="cpu").eval()
        # One pass before readiness: TorchScript specializes on its first calls.
        shapes = [[1 if size < 0 else size for size in item["shape"]] for item in self.tensors["inputs"]]
        with torch.inference_mode():
            self.module(*(torch.zeros(shape) for shape in shapes))
        self.ready = True
        return self.ready

    async def get_input_types(self):
        return self.tensors["inputs"]

    async def get_output_types(self):
        return self.tensors["outputs"]

    def predict(self, payload, headers=None, response_headers=None):
        by_name = {item.name: item for item in payload.inputs}
        arguments = []
        for spec in self.tensors["inputs"]:
            if spec["name"] not in by_name:
                raise InvalidInput(f"missing input {spec['name']}")
            array = by_name[spec["name"]].as_numpy()
            arguments.append(torch.from_numpy(np.ascontiguousarray(array, dtype=DTYPES[spec["datatype"]])))
        with torch.inference_mode():
            result = self.module(*arguments)
        results = result if isinstance(result, tuple) else (result,)
        outputs = []
        for spec, tensor in zip(self.tensors["outputs"], results, strict=True):
            array = tensor.numpy()
            output = InferOutput(name=spec["name"], shape=list(array.shape), datatype=spec["datatype"])
            output.set_data_from_numpy(array, binary_data=payload.use_binary_outputs)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model_dir", type=Path, required=True)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    model = TorchScriptModel(arguments.model_name, arguments.model_dir)
    model.load()
    ModelServer().start([model])
