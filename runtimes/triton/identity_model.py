"""A model of Triton's Python backend: output i repeats input i, in the order of its configuration."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.names = [
            (given["name"], made["name"]) for given, made in zip(config["input"], config["output"], strict=True)
        ]

    def execute(self, requests):
        responses = []
        for request in requests:
            wanted = request.requested_output_names()
            tensors = [
                pb_utils.Tensor(made, pb_utils.get_input_tensor_by_name(request, given).as_numpy())
                for given, made in self.names
                if made in wanted
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
