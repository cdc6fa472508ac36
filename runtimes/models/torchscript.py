"""``torchscript.py --out DIR --model mlp|cnn|wide``: TorchScript modules with seeded weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from golden import write  # type: ignore[import-not-found,unused-ignore]
from torch import nn


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    return layers, (16,)


def block(inputs: int, outputs: int, stride: int = 2) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def wide() -> tuple[nn.Module, tuple[int, ...]]:
    """2.8 GFLOP an image, for GPUs. Its outputs are not squeezed into shares, so that a lesser precision shows."""
    layers = nn.Sequential(
        *block(3, 64),
        *block(64, 128),
        *block(128, 256),
        *block(256, 256, 1),
        *block(256, 256, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    # Initial weights that keep the size of what passes through, as trained ones do.
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers, (3, 224, 224)


def cnn() -> tuple[nn.Module, tuple[int, ...]]:
    layers = nn.Sequential(
        *block(3, 8),
        *block(8, 16),
        *block(16, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.Softmax(1),
    )
    return layers, (3, 224, 224)


MODELS = {"mlp": mlp, "cnn": cnn, "wide": wide}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    arguments = parser.parse_args()
    torch.manual_seed(20240301)
    torch.set_num_threads(1)
    module, shape = MODELS[arguments.model]()
    module.eval()
    # A trace keeps this for good: what the server sets later does not change its convolutions. Without it they would
    # take TF32 on a GPU, 10 bits of mantissa in place of FP32's 23.
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        script = torch.jit.trace(module, torch.zeros(1, *shape))
    artifacts = arguments.out / "artifacts"
    artifacts.mkdir()
    torch.jit.save(script, artifacts / "model.pt")
    outputs = 4 if arguments.model == "mlp" else 10
    description = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, outputs]}],
    }
    (artifacts / "model.json").write_text(json.dumps(description, indent=1))
    generator = np.random.default_rng(20240301)
    cases = []
    for batch in (1, 1, 2):
        # Eight bits a value, as in an image: exact in FP32 and short in JSON.
        inputs = (generator.integers(0, 256, (batch, *shape)) / 256).astype(np.float32)
        with torch.inference_mode():
            result = script(torch.from_numpy(inputs)).numpy()
        cases.append(([("input", "FP32", inputs)], [("output", "FP32", result)]))
    write(arguments.out / "golden.npz", cases)


if __name__ == "__main__":
    main()
