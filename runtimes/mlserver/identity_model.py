"""A model for MLServer: output i repeats input i, in the order of ``model.json`` beside it."""

import json
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse, MetadataTensor


class IdentityModel(MLModel):
    async def load(self) -> bool:
        described = json.loads((Path(__file__).parent / "model.json").read_text())
        self.pairs = [
            (given["name"], made["name"]) for given, made in zip(described["inputs"], described["outputs"], strict=True)
        ]
        self.inputs = [MetadataTensor(**item) for item in described["inputs"]]
        self.outputs = [MetadataTensor(**item) for item in described["outputs"]]
        return True

    async def predict(self, payload):
        given = {item.name: item for item in payload.inputs}
        outputs = []
        for name, made in self.pairs:
            if name not in given:
                raise InferenceError(f"missing input {name}")
            outputs.append(NumpyCodec.encode_output(made, NumpyCodec.decode_input(given[name])))
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
