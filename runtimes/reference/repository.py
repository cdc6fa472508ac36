"""The models of one server: loaded from their directories, found by name and version."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from runtimes.reference.model import Model, NotFound, TensorSpec, Unavailable
from runtimes.reference.text import TextModel


def load_model(name: str, directory: Path) -> Model:
    """Raises OSError or ValueError for a directory that holds no model."""
    spec = json.loads((directory / "model.json").read_text())

    def tensors(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(item["name"], item["datatype"], tuple(item["shape"])) for item in spec[key])

    kind = TextModel if spec["platform"] == "servecert_text" else Model
    return kind(name, spec["platform"], tensors("inputs"), tensors("outputs"))


@dataclass
class Repository:
    """The models of one server; unloading keeps the directory, so that a load brings the model back."""

    models: dict[str, Model] = field(default_factory=dict)
    directories: dict[str, Path] = field(default_factory=dict)
    version: str = "1"
    work_s: float = 0.0

    def add(self, name: str, directory: Path) -> None:
        self.directories[name] = directory
        self.load(name)

    @property
    def ready(self) -> bool:
        return all(model.loaded for model in self.models.values())

    def find(self, name: str, version: str = "") -> Model:
        model = self.models.get(name)
        if model is None:
            raise NotFound(f"unknown model {name!r}")
        if version and version not in model.versions:
            raise NotFound(f"model {name!r} has no version {version!r}; it has {', '.join(model.versions)}")
        return model

    def ready_model(self, name: str, version: str = "") -> Model:
        model = self.find(name, version)
        if not model.loaded:
            raise Unavailable(f"model {name!r} is not loaded")
        return model

    def load(self, name: str) -> None:
        if name not in self.directories:
            raise NotFound(f"unknown model {name!r}")
        model = load_model(name, self.directories[name])
        model.versions, model.work_s = (self.version,), self.work_s
        self.models[name] = model

    def unload(self, name: str) -> None:
        self.find(name).loaded = False

    def index(self, only_ready: bool) -> list[dict[str, str]]:
        return [
            {
                "name": model.name,
                "version": model.versions[-1],
                "state": "READY" if model.loaded else "UNAVAILABLE",
                "reason": "" if model.loaded else "unloaded",
            }
            for model in self.models.values()
            if model.loaded or not only_ready
        ]
