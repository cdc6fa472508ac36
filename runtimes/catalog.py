"""The reference runtimes and models: ``runtimes/<name>/runtime.yaml`` and ``runtimes/models/catalog.yaml``."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from harness.base.errors import EnvironmentError_, RuntimeSpecError, UsageError
from harness.base.fields import Strict
from harness.base.protocols import Profile
from harness.results.records import Deviation
from runtimes.environments import (
    Progress,
    build_environment,
    cache_directory,
    environment_path,
    exclusive,
    is_built,
    unwritable,
)

_M = TypeVar("_M", bound=BaseModel)
CATALOG = Path(__file__).resolve().parent


class RuntimeVersion(Strict):
    image: str
    """The image that stands for this version in manifests."""
    requirements: str | None = None
    """A requirements file beside runtime.yaml; none runs in servecert's own environment."""
    python: str = ""
    """The versions of Python that its requirements have releases for, such as ``>=3.9,<3.13``; empty for any."""


class RuntimeSpec(Strict):
    name: str
    description: str
    default: str
    versions: dict[str, RuntimeVersion]
    command: list[str] = Field(default_factory=list)
    """Local command; without one the runtime is for real clusters only. Placeholders: {python} {bin} {host} {http_port}
    {grpc_port} {metrics_port} {model_name} {model_dir} {runtime_dir} {catalog_parent}."""
    environment: dict[str, str] = Field(default_factory=dict)
    """With the same placeholders."""
    ports: dict[Literal["http", "grpc", "metrics"], int]
    """Container ports, as in the ServingRuntime manifest."""
    protocols: list[Profile]
    model_formats: list[str]
    model_name: Literal["service", "model"] = "service"
    """What the served model is called in a cluster that pulls images: by the service, or by its own folder."""
    serving_runtime: dict[str, Any]
    """Spec of the ServingRuntime; the container's image is filled in from the version."""


class KnownDeviation(Strict):
    """Checks that fail for one reason in some versions."""

    checks: list[str]
    versions: list[str]
    reason: str
    models: list[str] = Field(default_factory=list)
    """Empty: whatever the model."""
    issue: str = ""


class ModelSpec(Strict):
    name: str
    description: str
    format: str
    builder: str
    runtime: str
    """The runtime in whose environment the model is built, because its framework lives there."""
    sources: list[str] = Field(default_factory=list)
    """Other files that the builder reads, below the catalog of runtimes."""
    arguments: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Runtime:
    """A runtime at one version."""

    spec: RuntimeSpec
    version: str
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.spec.name}@{self.version}"

    @property
    def image(self) -> str:
        return self.spec.versions[self.version].image

    @property
    def runs_here(self) -> bool:
        """Whether its server can be a process of this machine."""
        return bool(self.spec.command)

    def requirements(self) -> str | None:
        file = self.spec.versions[self.version].requirements
        return (self.directory / file).read_text() if file else None

    @property
    def installed(self) -> bool:
        try:
            path = self._environment()
        except EnvironmentError_:
            return False
        return path is None or is_built(path)

    @property
    def interpreter(self) -> Path:
        """Of its environment, whether that is built or not. Raises EnvironmentError_ where no Python fits."""
        path = self._environment()
        return Path(sys.executable) if path is None else path / "bin" / "python"

    def _environment(self) -> Path | None:
        text = self.requirements()
        return None if text is None else environment_path(self._label, text, self.spec.versions[self.version].python)

    @property
    def _label(self) -> str:
        return self.name.replace("@", "-")

    def python(self, progress: Progress = lambda line: None, stop: threading.Event | None = None) -> Path:
        """The interpreter of the runtime's environment, which is built first if need be."""
        text = self.requirements()
        if text is None:
            return Path(sys.executable)
        wanted = self.spec.versions[self.version].python
        return build_environment(self._label, text, progress, stop, wanted) / "bin" / "python"

    def deviations(self) -> list[KnownDeviation]:
        path = self.directory / "deviations.yaml"
        if not path.exists():
            return []
        data = yaml.safe_load(path.read_text()) or []
        entries = [_validate(KnownDeviation, item, path) for item in data]
        return [entry for entry in entries if self.version in entry.versions]

    def deviations_for(self, model: str) -> dict[str, Deviation]:
        return {
            check: Deviation(entry.reason, entry.issue)
            for entry in self.deviations()
            if not entry.models or model in entry.models
            for check in entry.checks
        }

    def serving_runtime(
        self, name: str, kind: str = "ServingRuntime", registry: str | None = None, *, grpc: bool = False
    ) -> dict[str, Any]:
        """The manifest with this version's image in its first container. ``registry`` is where the images were pushed
        to that this project builds itself (``servecert/…``). With ``grpc`` the container has the gRPC port in place of
        the HTTP one: Knative routes to one port, and KServe adds a service's ports to those of its runtime."""
        image = in_registry(self.image, registry)
        spec = {**self.spec.serving_runtime}
        first, *others = spec["containers"]
        if grpc:
            first = _on_port(first, self.spec.ports["grpc"])
        ports = (
            {"ports": [{"containerPort": self.spec.ports["grpc"], "name": "h2c", "protocol": "TCP"}]} if grpc else {}
        )
        spec["containers"] = [{**first, "image": image, **ports}, *others]
        if kind == "ServingRuntime":
            # Chosen by name alone: KServe refuses two of a namespace that may choose themselves for a format with one
            # priority, as two versions of a runtime would.
            formats = [{"name": item["name"], "version": item["version"]} for item in spec["supportedModelFormats"]]
            spec["supportedModelFormats"] = [{**item, "autoSelect": False} for item in formats]
        return {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": kind,
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "servecert"}},
            "spec": spec,
        }

    def local_command(self, python: Path, values: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment variables with the placeholders filled in."""
        filled = {
            **values,
            "python": str(python),
            "bin": str(python.parent),
            "runtime_dir": str(self.directory),
            "catalog_parent": str(CATALOG.parent),
        }
        command = [_fill(part, filled) for part in self.spec.command]
        return command, {key: _fill(value, filled) for key, value in self.spec.environment.items()}


def _on_port(container: dict[str, Any], number: int) -> dict[str, Any]:
    """The container with its gRPC port for its only one. Knative sends every probe to the port that it routes to, so
    that those over HTTP would fail there: that port takes connections, or not."""
    changed = {**container, "ports": [{"containerPort": number, "name": "h2c", "protocol": "TCP"}]}
    for name in ("readinessProbe", "livenessProbe", "startupProbe"):
        if name in container:
            timing = {key: value for key, value in container[name].items() if key != "httpGet"}
            changed[name] = {**timing, "tcpSocket": {"port": number}}
    return changed


def requested(runtime: Runtime | None, container: dict[str, Any]) -> dict[str, Any]:
    """What one pod asks for, by resource: the runtime's requests and limits, and over them those of the service."""
    found: dict[str, Any] = {}
    given = [runtime.spec.serving_runtime["containers"][0]] if runtime is not None else []
    for resources in [item.get("resources") or {} for item in (*given, container)]:
        found |= {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return found


def in_registry(image: str, registry: str | None) -> str:
    """Where an image that this project builds was pushed to; others, and without a registry, stay as they are."""
    if not registry or not image.startswith("servecert/"):
        return image
    return f"{registry.rstrip('/')}/{image.removeprefix('servecert/')}"


def _fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\{([a-z_]+)\}", lambda match: values.get(match[1], match[0]), text)


def _validate(model: type[_M], data: Any, path: Path) -> _M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise RuntimeSpecError(f"{path}: {problems}") from error


class Baseline(Strict):
    """An entry of a baseline that a user keeps for a server of their own; a runtime's list is one as well."""

    checks: list[str]
    reason: str
    issue: str = ""
    versions: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)


def read_baseline(path: Path) -> dict[str, Deviation]:
    """Known deviations by check id, from a YAML list. Raises UsageError."""
    try:
        data = yaml.safe_load(path.read_text()) or []
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the baseline {path}: {error}") from error
    if not isinstance(data, list):
        raise UsageError(f"{path}: expected a list of {{checks: [ID, …], reason: …}}")
    entries = [_validate(Baseline, item, path) for item in data]
    return {check: Deviation(entry.reason, entry.issue) for entry in entries for check in entry.checks}


@functools.cache
def runtime_specs() -> dict[str, tuple[RuntimeSpec, Path]]:
    found = {}
    for path in sorted(CATALOG.glob("*/runtime.yaml")):
        spec = _validate(RuntimeSpec, yaml.safe_load(path.read_text()), path)
        found[spec.name] = (spec, path.parent)
    return found


def find_runtime(text: str) -> Runtime:
    """``name`` or ``name@version``. Raises RuntimeSpecError listing what there is."""
    name, _, version = text.partition("@")
    if name not in runtime_specs():
        raise RuntimeSpecError(f"unknown runtime {name!r}; there are {', '.join(runtime_specs())}")
    spec, directory = runtime_specs()[name]
    version = version or spec.default
    if version not in spec.versions:
        raise RuntimeSpecError(f"runtime {name!r} has no version {version!r}; it has {', '.join(spec.versions)}")
    return Runtime(spec, version, directory)


def runtime_of_image(image: str) -> Runtime | None:
    """The runtime whose image this is; None where no runtime folder names it."""
    for spec, directory in runtime_specs().values():
        for version, described in spec.versions.items():
            if described.image == image:
                return Runtime(spec, version, directory)
    return None


@functools.cache
def model_specs() -> dict[str, ModelSpec]:
    path = CATALOG / "models" / "catalog.yaml"
    specs = [_validate(ModelSpec, item, path) for item in yaml.safe_load(path.read_text())]
    return {spec.name: spec for spec in specs}


def find_model(name: str) -> ModelSpec:
    """Raises RuntimeSpecError listing what there is."""
    if name not in model_specs():
        raise RuntimeSpecError(f"unknown model {name!r}; there are {', '.join(model_specs())}")
    return model_specs()[name]


@dataclass(frozen=True)
class BuiltModel:
    """``artifacts`` is what a storageUri points at; ``golden`` the expected outputs beside it."""

    spec: ModelSpec
    directory: Path

    @property
    def artifacts(self) -> Path:
        return self.directory / "artifacts"

    @property
    def golden(self) -> Path | None:
        """None where nobody computes the model's outputs offline."""
        path = self.directory / "golden.npz"
        return path if path.exists() else None


def build_model(name: str, progress: Progress = lambda line: None, stop: threading.Event | None = None) -> BuiltModel:
    """Builds the model with the framework of its runtime, once. Raises EnvironmentError_ with the builder's output."""
    built = planned_model(name)
    spec, path = built.spec, built.directory
    python = find_runtime(spec.runtime).python(progress, stop)
    if (path / "complete").exists():
        return built
    with exclusive(path.with_suffix(".lock")):
        if (path / "complete").exists():
            return built
        try:
            _build_model(spec, path, CATALOG / "models" / spec.builder, python, progress)
        except OSError as error:
            raise unwritable(path, error) from error
    return built


def planned_model(name: str) -> BuiltModel:
    """Where the model is, or will be once it is built."""
    spec = find_model(name)
    builder = CATALOG / "models" / spec.builder
    python = find_runtime(spec.runtime).interpreter
    sources = [builder, CATALOG / "models" / "golden.py", *(CATALOG / name for name in spec.sources)]
    made_of = b"\0".join(
        [path.read_bytes() for path in sources] + [str(python).encode(), " ".join(spec.arguments).encode()]
    )
    path = cache_directory() / "models" / f"{name}-{hashlib.sha256(made_of).hexdigest()[:16]}"
    return BuiltModel(spec, path)


def _build_model(spec: ModelSpec, path: Path, builder: Path, python: Path, progress: Progress) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    progress(f"building the model {spec.name}")
    result = subprocess.run(
        [str(python), str(builder), "--out", str(path), *spec.arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CATALOG / "models")},
    )
    if result.returncode != 0:
        shutil.rmtree(path, ignore_errors=True)
        raise EnvironmentError_(f"building the model {spec.name} failed:\n{(result.stdout + result.stderr)[-2000:]}")
    (path / "complete").touch()
