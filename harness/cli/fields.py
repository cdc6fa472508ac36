"""Options of a command, made from a model: each field is an option, and its description is the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel, BeforeValidator, PlainSerializer, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.base.errors import UsageError
from harness.base.fields import METAVARS

_M = TypeVar("_M", bound=BaseModel)


def option_of(name: str, field: FieldInfo) -> str:
    """Of a list, the name of one item: such an option may be repeated."""
    return "--" + (name.removesuffix("s") if get_origin(field.annotation) is list else name).replace("_", "-")


def parameters(
    model: type[BaseModel], without: Collection[str], defaults: Mapping[str, str] | None = None
) -> list[inspect.Parameter]:
    """One for each field that is not in ``without``. Values stay text, which the model reads as it reads a file's.
    ``defaults`` are shown in the place of the model's own."""
    shown = {name: _default(field) for name, field in model.model_fields.items()} | dict(defaults or {})
    return [_parameter(name, field, shown[name]) for name, field in model.model_fields.items() if name not in without]


def _parameter(name: str, field: FieldInfo, default: str) -> inspect.Parameter:
    several = get_origin(field.annotation) is list
    help_ = field.description or name.replace("_", " ")
    help_ += ("; may be repeated" if several else "") + (f"  [default: {default}]" if default else "")
    option = typer.Option(option_of(name, field), metavar=_metavar(field), help=help_)
    kind: Any = list[str] if several else str
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _parts(annotation: object) -> Iterator[object]:
    """A type, what it is made of, and what is noted beside it."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _nested(field: FieldInfo) -> bool:
    """Whether a value has parts with names, which one word on a command line cannot say."""
    parts = list(_parts(field.annotation))
    return any(get_origin(part) is dict or (isinstance(part, type) and issubclass(part, BaseModel)) for part in parts)


def _metavar(field: FieldInfo) -> str:
    if _nested(field):
        return "YAML"
    parts = [*field.metadata, *_parts(field.annotation)]
    kinds = [METAVARS[part.func] for part in parts if isinstance(part, BeforeValidator) and part.func in METAVARS]
    kinds += ["N"] if int in parts else []
    kinds += [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if kinds:
        return "|".join(kinds)
    if Path in parts:
        return "FILE"
    return "NUMBER" if float in parts else "TEXT"


def _default(field: FieldInfo) -> str:
    """As a scenario would say it; empty where leaving it out means that there is none."""
    value = field.get_default(call_default_factory=False)
    if value in (None, PydanticUndefined, "", []):
        return ""
    for item in (*field.metadata, *_parts(field.annotation)):
        if isinstance(item, PlainSerializer) and isinstance(value, float):
            value = item.func(value)  # type: ignore[call-arg]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def validated(model: type[_M], texts: Mapping[str, object], given: Mapping[str, object]) -> _M:
    """The model from what the command line said; None was not said. Raises UsageError that names the option."""
    values: dict[str, object] = dict(given)
    for name, text in texts.items():
        if text is None or text == []:
            continue
        field = model.model_fields[name]
        try:
            values[name] = yaml.safe_load(str(text)) if _nested(field) else text
        except yaml.YAMLError as error:
            raise UsageError(f"{option_of(name, field)}: {text!r} is not YAML") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            problem = item["msg"].removeprefix("Value error, ")
            if item["loc"]:
                name, *inside = map(str, item["loc"])
                field = model.model_fields[name]
                if inside and _nested(field):
                    problem = f"{'.'.join(inside)}: {problem}"
                problem = f"{option_of(name, field)} {item['input']!r}: {problem}"
            problems.append(problem)
        raise UsageError("; ".join(problems)) from error


def with_options(function: Callable[..., None], own: list[inspect.Parameter]) -> Callable[..., None]:
    """``function``, which takes ``**texts``, as a command line sees it: with ``own`` in the place of those, after its
    first two, which are where and what it asks."""
    signature = inspect.signature(function, eval_str=True)
    fixed = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    fixed = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in fixed]
    chosen = [*fixed[:2], *own, *fixed[2:]]
    function.__signature__ = signature.replace(parameters=chosen)  # type: ignore[attr-defined]
    function.__annotations__ = {item.name: item.annotation for item in chosen} | {"return": None}
    return function
