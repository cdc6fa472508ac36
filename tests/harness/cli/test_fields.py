"""A field of a step is an option of the command by itself, under its own name and with its own words."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel, Field

from harness.base.errors import UsageError
from harness.base.fields import Duration, Strict
from harness.cli.fields import option_of, parameters, validated
from scenarios.suites import suites
from tests.helpers import servecert


class Inner(Strict):
    depth: int = Field(ge=0)


class Model(Strict):
    wait: Duration = Field(1.5, validate_default=False, description="how long")
    count: int = Field(3, ge=1)
    names: list[str] = Field(default_factory=list)
    inner: dict[str, Inner] = Field(default_factory=dict)
    fixed: str


@pytest.mark.parametrize("name", ["conformance", "parity", "load", "capacity"])
def test_each_field_of_a_step_is_an_option_with_its_description(name: str) -> None:
    shown = re.sub(r"\s+", " ", servecert(name, "--help").stdout)
    model: type[BaseModel] = suites()[name].step
    for field, described in model.model_fields.items():
        if field in ("suite", "service", "name"):
            assert f"{option_of(field, described)} " not in shown
            continue
        assert f"{option_of(field, described)} " in shown, field
        assert re.sub(r"\s+", " ", described.description or "") in shown


def test_values_are_read_as_a_file_reads_them() -> None:
    texts = {"wait": "250ms", "count": None, "names": ["a", "b"], "inner": "{x: {depth: 2}}"}
    found = validated(Model, texts, {"fixed": "yes"})
    assert (found.wait, found.count, found.names, found.inner["x"].depth) == (0.25, 3, ["a", "b"], 2)
    assert [item.name for item in parameters(Model, ("fixed",))] == ["wait", "count", "names", "inner"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"wait": "250"}, "--wait '250': expected a duration with a unit"),
        ({"count": "0"}, "--count '0'"),
        ({"inner": "{x: {depth: -1}}"}, "--inner -1"),
        ({"inner": "{x: {depth: 1, width: 2}}"}, "--inner 2: x.width: Extra inputs are not permitted"),
        ({"inner": "{x: ["}, "--inner: '{x: [' is not YAML"),
    ],
)
def test_a_mistake_names_its_option(texts: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        validated(Model, texts, {"fixed": "yes"})
