"""Scenario files: where they are found, how they are read, and what is said about their mistakes.

Mistakes are reported with file and line.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cluster.model import PROVIDERS, ClusterChoice, Local
from harness.base.errors import RuntimeSpecError, ScenarioError, UsageError
from harness.base.fields import Strict
from runtimes.catalog import find_model, find_runtime, model_specs, runtime_specs
from scenarios.file.scenario import Scenario
from scenarios.model.services import Service
from scenarios.suites import suites

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
CATALOG = Path(__file__).resolve().parent.parent / "catalog"


def json_schema() -> dict[str, Any]:
    """The schema for editors; ``scenarios/scenario.schema.json`` is this."""
    return {"$schema": SCHEMA_ID, **Scenario.model_json_schema()}


_M = TypeVar("_M", bound=BaseModel)
Location = tuple[str | int, ...]


def _positions(text: str) -> dict[Location, int]:
    """The line of each key and item, by its path. Raises yaml.YAMLError."""
    lines: dict[Location, int] = {}

    def visit(node: yaml.Node, where: Location) -> None:
        lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*where, str(key.value))] = key.start_mark.line + 1
                visit(value, (*where, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                visit(item, (*where, index))

    if (root := yaml.compose(text, Loader=yaml.SafeLoader)) is not None:
        visit(root, ())
    return lines


class _UniqueKeys(yaml.SafeLoader):
    """YAML forgets a key that is given twice; whoever wrote it meant something."""


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def find_scenario(name: str) -> Path:
    """A file, or the name of a catalog entry. Raises UsageError listing the catalog."""
    path = Path(name)
    if path.is_file():
        return path
    catalog = CATALOG / f"{name}.yaml"
    if catalog.is_file():
        return catalog
    known = ", ".join(sorted(item.stem for item in CATALOG.glob("*.yaml")))
    raise UsageError(f"no scenario file {name!r}; the catalog has: {known}")


def load_scenario(path: Path, settings: list[str] | None = None) -> Scenario:
    """``settings`` are ``key.path=value`` overrides. Raises ScenarioError or UsageError."""
    data, lines = _read(path)
    scenario = _validated(Scenario, path, data, lines, settings)
    if problems := _cross_check(scenario, lines):
        raise ScenarioError(path, problems)
    return scenario


class _ClusterFile(Strict):
    cluster: ClusterChoice


def load_cluster(path: Path | None, settings: list[str] | None = None) -> ClusterChoice:
    """The cluster section alone: of a scenario file, of a file that has nothing else, or of the settings where there is
    no file. Raises ScenarioError or UsageError."""
    data, lines = _read(path) if path is not None else ({}, {})
    section = {"cluster": data.get("cluster", {})}
    return _validated(_ClusterFile, path or Path("--set"), section, lines, settings).cluster


def _read(path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    """What is in the file, and where in it."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the scenario {path}: {error}") from error
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
        lines = _positions(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ScenarioError(path, [(line, f"not YAML: {error.problem}")]) from error
    except yaml.YAMLError as error:
        raise ScenarioError(path, [(0, f"not YAML: {error}")]) from error
    if not isinstance(data, dict):
        raise ScenarioError(path, [(1, "expected a mapping with name, services and steps")])
    return data, lines


def _validated(
    model: type[_M], path: Path, data: dict[str, Any], lines: dict[Location, int], settings: list[str] | None
) -> _M:
    for setting in settings or []:
        _set(data, setting)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_describe(dict(item), lines) for item in error.errors()]
        raise ScenarioError(path, sorted(set(problems))) from error


def _set(data: dict[str, Any], setting: str) -> None:
    """Changes ``data`` in place. Raises UsageError for a path that leads nowhere."""
    key, separator, value = setting.partition("=")
    if not separator:
        raise UsageError(f"--set {setting!r}: expected KEY=VALUE, such as services.iris.runtime=mlserver@1.7.1")
    steps = key.split(".")
    holder: Any = data
    for place, name in enumerate(steps):
        last = place == len(steps) - 1
        where = ".".join(steps[: place + 1])
        if isinstance(holder, list):
            if not name.isdigit() or int(name) >= len(holder):
                raise UsageError(
                    f"--set {key}: {where} does not exist; the list has {len(holder)} items, counted from 0"
                )
            if last:
                holder[int(name)] = _parse_value(value)
                return
            holder = holder[int(name)]
        elif isinstance(holder, dict):
            if last:
                holder[name] = _parse_value(value)
                return
            holder = holder.setdefault(name, {})
        else:
            raise UsageError(f"--set {key}: {'.'.join(steps[:place])} is a single value, it has no {name!r}")


def _parse_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set: {text!r} is not a YAML value") from error


def _allowed(location: Location) -> list[str]:
    """The fields that are allowed beside the one at ``location``."""
    match location:
        case (_,):
            return list(Scenario.model_fields)
        case ("cluster", str(provider), *inner, _) if provider in PROVIDERS:
            return _fields(PROVIDERS[provider], inner)
        case ("services", _, _):
            return list(Service.model_fields)
        case ("steps", int(), str(suite), _) if suite in suites():
            return ["suite", *(name for name in suites()[suite].step.model_fields if name != "suite")]
    return []


def _fields(model: type[BaseModel], inner: list[str | int]) -> list[str]:
    """The fields of a model, or of the one that its field ``inner`` holds."""
    for name in inner:
        field = model.model_fields.get(str(name))
        held = (
            [part for part in (*get_args(field.annotation), field.annotation) if isinstance(part, type)]
            if field
            else []
        )
        model = next((part for part in held if issubclass(part, BaseModel)), model)
    return list(model.model_fields)


def _describe(error: dict[str, Any], lines: dict[Location, int]) -> tuple[int, str]:
    location: Location = tuple(error["loc"])
    # pydantic puts the chosen member of a union into the path; the file does not have it.
    chosen = {"steps": 2, "cluster": 1}.get(str(location[0]) if location else "")
    in_file = tuple(part for place, part in enumerate(location) if place != chosen)
    probe = in_file
    while probe and probe not in lines:
        probe = probe[:-1]
    line = lines.get(probe, 1)
    where = ".".join(str(part) for part in in_file) or "scenario"
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return line, f"{where}: unknown field; allowed here: {', '.join(_allowed(location))}"
    if kind == "missing":
        return line, f"{where}: this field is required"
    if kind == "union_tag_invalid" and location == ("cluster",):
        return line, f"cluster: unknown provider {error['ctx']['tag']!r}; expected one of {', '.join(PROVIDERS)}"
    if kind == "union_tag_invalid":
        return line, f"{where}: unknown suite {error['ctx']['tag']!r}; expected one of {', '.join(suites())}"
    if kind == "union_tag_not_found":
        return line, f"{where}: expected a field 'suite', one of {', '.join(suites())}"
    shown = repr(error.get("input"))
    suffix = f", got {shown}" if "got" not in message and len(shown) < 80 and kind != "value_error" else ""
    return line, f"{where}: {_lower(message)}{suffix}"


def _lower(message: str) -> str:
    """In the middle of a line; an abbreviation keeps its capitals."""
    return message if message[1:2].isupper() else message[0].lower() + message[1:]


def _cross_check(scenario: Scenario, lines: dict[Location, int]) -> list[tuple[int, str]]:
    """What one field says about another."""
    problems: list[tuple[int, str]] = []

    def problem(location: Location, message: str) -> None:
        probe = location
        while probe and probe not in lines:
            probe = probe[:-1]
        problems.append((lines.get(probe, 1), f"{'.'.join(map(str, location))}: {message}"))

    for name, service in scenario.services.items():
        where: Location = ("services", name)
        runtime = model = None
        try:
            runtime = find_runtime(service.runtime) if service.runtime else None
        except RuntimeSpecError as error:
            problem((*where, "runtime"), str(error))
        try:
            model = find_model(service.model) if service.model else None
        except RuntimeSpecError as error:
            problem((*where, "model"), str(error))
        if runtime and not runtime.runs_here and isinstance(scenario.cluster, Local):
            problem((*where, "runtime"), f"{runtime.name} runs on real clusters only; set cluster.provider")
        if runtime and model and model.format not in runtime.spec.model_formats:
            able = [key for key, (spec, _) in runtime_specs().items() if model.format in spec.model_formats]
            fits = [key for key, spec in model_specs().items() if spec.format in runtime.spec.model_formats]
            problem(
                (*where, "model"),
                f"{runtime.name} serves {', '.join(runtime.spec.model_formats)}, and {model.name} is {model.format};"
                f" serve it with {', '.join(able)}, or serve {', '.join(fits)}",
            )
        if service.manifest is not None and service.manifest.get("kind") != "InferenceService":
            problem((*where, "manifest"), f"expected kind InferenceService, got {service.manifest.get('kind')!r}")
    names: dict[str, int] = {}
    in_turn = scenario.in_turn()
    for index, step in enumerate(scenario.steps):
        if step.service not in scenario.services:
            known = ", ".join(scenario.services)
            problem(("steps", index, "service"), f"no service {step.service!r} in this scenario; there are {known}")
        elif step.needs_golden and scenario.services[step.service].model is None:
            problem(
                ("steps", index), f"{step.suite} needs golden outputs, which only a service with a catalog model has"
            )
        for place, other in step.others():
            if other not in scenario.services:
                known = ", ".join(scenario.services)
                problem(("steps", index, *place), f"no service {other!r} in this scenario; there are {known}")
        if step.service in in_turn and not step.in_turn():
            problem(
                ("steps", index, "service"),
                f"{step.service!r} is deployed in turn by a comparison, and not there for this step; expected a service"
                " of its own",
            )
        name = scenario.step_name(index)
        if name in names:
            problem(("steps", index, "name"), f"{name!r} is already the name of step {names[name] + 1}")
        names[name] = index
    return problems


def resolved(scenario: Scenario) -> str:
    """The scenario as it runs, defaults included, as YAML that can be run again."""
    data = json.loads(scenario.model_dump_json(exclude_none=True))
    return yaml.safe_dump(copy.deepcopy(data), sort_keys=False, allow_unicode=True)
