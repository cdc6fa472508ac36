"""InferenceServices from files, each with the runtime that serves it, where that is in the files too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.base.errors import UsageError
from harness.kubernetes.predictors import FRAMEWORKS

Object = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What manifests do not say: from options, or from a run. None where it is not known, and then not judged."""

    model_bytes: float | None = None
    p99_s: float | None = None
    peak_per_s: float | None = None
    cold_start_s: float | None = None
    slo_s: float | None = None
    """The latency that is promised."""


@dataclass(frozen=True)
class Subject:
    """``container`` is the model server's, of the service over that of its runtime; ``runtime_known`` says whether the
    files hold that."""

    name: str
    file: str
    isvc: Object
    predictor: Object
    container: Object
    framework: str | None
    runtime_known: bool
    protocols: tuple[str, ...]
    facts: Facts = field(default_factory=Facts)

    @property
    def annotations(self) -> dict[str, str]:
        return (self.isvc.get("metadata") or {}).get("annotations") or {}

    @property
    def mode(self) -> str:
        """Knative or Standard; Knative where the manifest leaves it to the cluster."""
        given = self.annotations.get("serving.kserve.io/deploymentMode", "")
        return "Standard" if given in ("Standard", "RawDeployment") else "Knative"

    @property
    def model(self) -> Object:
        found = self.predictor.get("model") or (self.predictor.get(self.framework) if self.framework else None)
        return found if isinstance(found, dict) else {}

    def resources(self, part: str) -> Object:
        """``requests`` or ``limits``."""
        found = (self.container.get("resources") or {}).get(part)
        return found if isinstance(found, dict) else {}


def read_manifests(paths: Iterable[Path]) -> list[tuple[str, Object]]:
    """Every object, with its file. Raises UsageError for what is no YAML, or holds no object at all."""
    found: list[tuple[str, Object]] = []
    for path in paths:
        files = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")]) if path.is_dir() else [path]
        for file in files:
            try:
                documents = list(yaml.safe_load_all(file.read_text()))
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read {file}: {error}") from error
            except yaml.YAMLError as error:
                raise UsageError(f"{file}: not YAML: {error}") from error
            for document in documents:
                if document is None:
                    continue
                if not isinstance(document, dict) or "kind" not in document:
                    raise UsageError(f"{file}: expected Kubernetes objects, got {str(document)[:80]!r}")
                items = document.get("items") if str(document["kind"]).endswith("List") else [document]
                found += [(str(file), item) for item in items or []]
    return found


def subjects_of(objects: list[tuple[str, Object]], facts: Facts) -> list[Subject]:
    """The InferenceServices among the objects. Raises UsageError where there is none: nothing checked is no success."""
    runtimes = {
        item["metadata"]["name"]: item
        for _, item in objects
        if item["kind"] in ("ServingRuntime", "ClusterServingRuntime")
    }
    found = [_subject(file, item, runtimes, facts) for file, item in objects if item["kind"] == "InferenceService"]
    if not found:
        kinds = ", ".join(sorted({str(item["kind"]) for _, item in objects})) or "nothing"
        raise UsageError(f"expected an InferenceService in the files, found {kinds}")
    return found


def _subject(file: str, isvc: Object, runtimes: dict[str, Object], facts: Facts) -> Subject:
    predictor = (isvc.get("spec") or {}).get("predictor") or {}
    framework = next((key for key in FRAMEWORKS if key in predictor), None)
    model = predictor.get("model") or (predictor.get(framework) if framework else {}) or {}
    runtime = runtimes.get(str(model.get("runtime"))) or _chosen(runtimes, model)
    base: Object = {}
    protocols: tuple[str, ...] = ()
    if runtime is not None:
        containers = (runtime.get("spec") or {}).get("containers") or [{}]
        base = next((item for item in containers if item.get("name") == "kserve-container"), containers[0])
        protocols = tuple((runtime.get("spec") or {}).get("protocolVersions") or ())
    own = (predictor.get("containers") or [{}])[0] if predictor.get("containers") else model
    container = {**base, **{key: value for key, value in own.items() if value not in (None, {}, [])}}
    if base.get("resources") and own.get("resources"):
        container["resources"] = {**base["resources"], **own["resources"]}
    if base.get("ports") and own.get("ports"):  # KServe merges by the number
        container["ports"] = list(
            {item.get("containerPort"): item for item in [*base["ports"], *own["ports"]]}.values()
        )
    name = (isvc.get("metadata") or {}).get("name") or "?"
    known = runtime is not None or bool(predictor.get("containers"))
    return Subject(name, file, isvc, predictor, container, framework, known, protocols, facts)


def _chosen(runtimes: dict[str, Object], model: Object) -> Object | None:
    """The one that KServe would select for the format, where the files leave no choice."""
    if model.get("runtime"):
        return None
    wanted = (model.get("modelFormat") or {}).get("name")
    able = [
        item
        for item in runtimes.values()
        if any(
            entry.get("name") == wanted and entry.get("autoSelect")
            for entry in (item.get("spec") or {}).get("supportedModelFormats") or []
        )
    ]
    return able[0] if len(able) == 1 else None
