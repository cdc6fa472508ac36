"""A KServe model server. The model directory holds ``model.json`` and, for a TorchScript module, ``model.pt``; without
one the model returns its inputs."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from kserve import InferOutput, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput
from kserve.utils.utils import generate_uuid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""The first GPU, where the pod has one."""
DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}


class DescribedModel(Model):
    """Its tensors are those of ``model.json``. A subclass says what becomes of the inputs."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self.directory = directory
        self.tensors = json.loads((directory / "model.json").read_text())

    async def get_input_types(self):
        return self.tensors["inputs"]

    async def get_output_types(self):
        return self.tensors["outputs"]

    def infer(self, inputs):
        """Arrays in the order of the model's outputs, from those of its inputs."""
        raise NotImplementedError

    def predict(self, payload, headers=None, response_headers=None):
        by_name = {item.name: item for item in payload.inputs}
        arrays = []
        for spec in self.tensors["inputs"]:
            if spec["name"] not in by_name:
                raise InvalidInput(f"missing input {spec['name']}")
            arrays.append(np.ascontiguousarray(by_name[spec["name"]].as_numpy(), dtype=DTYPES[spec["datatype"]]))
        outputs = []
        for spec, array in zip(self.tensors["outputs"], self.infer(arrays), strict=True):
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


class TorchScriptModel(DescribedModel):
    def load(self) -> bool:
        self.module = torch.jit.load(self.directory / "model.pt", map_location=DEVICE).eval()
        # One pass before readiness: TorchScript specializes on its first calls.
        shapes = [[1 if size < 0 else size for size in item["shape"]] for item in self.tensors["inputs"]]
        with torch.inference_mode():
            self.module(*(torch.zeros(shape, device=DEVICE) for shape in shapes))
        self.ready = True
        return self.ready

    def infer(self, inputs):
        with torch.inference_mode():
            result = self.module(*(torch.from_numpy(array).to(DEVICE) for array in inputs))
        return [tensor.cpu().numpy() for tensor in (result if isinstance(result, tuple) else (result,))]


class IdentityModel(DescribedModel):
    def load(self) -> bool:
        self.ready = True
        return self.ready

    def infer(self, inputs):
        return inputs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model_dir", type=Path, required=True)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    kind = TorchScriptModel if (arguments.model_dir / "model.pt").exists() else IdentityModel
    model = kind(arguments.model_name, arguments.model_dir)
    model.load()
    ModelServer().start([model])
