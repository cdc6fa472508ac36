"""Colours: one thing has one, they can be told apart by everybody, and a dark page has its own."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from reports import palette
from runtimes.catalog import runtime_specs

# Simulation of dichromats by Machado, Oliveira and Fernandes, 2009 (severity 1.0), on linear RGB.
VISIONS = {
    name: np.array(text.split(), np.float64).reshape(3, 3)
    for name, text in {
        "trichromat": "1 0 0  0 1 0  0 0 1",
        "protanope": "0.152286 1.052583 -0.204868  0.114503 0.786281 0.099216  -0.003882 -0.048116 1.051998",
        "deuteranope": "0.367322 0.860646 -0.227968  0.280085 0.672501 0.047413  -0.011820 0.042940 0.968881",
        "tritanope": "1.255528 -0.076749 -0.178779  -0.078411 0.930809 0.147602  0.004733 0.691367 0.303900",
    }.items()
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ @ np.ones(3)


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    scaled = (TO_XYZ @ np.clip(rgb, 0, 1)) / WHITE
    f = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str, vision: np.ndarray) -> float:
    """CIE 1976; 2.3 is just noticeable."""
    return float(np.linalg.norm(lab(vision @ linear(one)) - lab(vision @ linear(other))))


def contrast(one: str, other: str) -> float:
    lights = sorted(float((TO_XYZ @ linear(colour))[1]) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


RUNNABLE = [palette.colour_of(name) for name in ("kserve", "mlserver", "triton", "torchserve", "reference")]
KINDS = {
    "runtimes that run here": RUNNABLE,
    "percentiles of one plot": [palette.PERCENTILES[name] for name in ("p50", "p95", "p99")],
    "pods": list(palette.PODS.values()),
    "verdicts": list(palette.VERDICTS.values()),
}


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dark", [False, True])
def test_colours_of_one_kind_can_be_told_apart(kind: str, vision: str, dark: bool) -> None:
    colours = [palette.DARK.get(colour, colour) if dark else colour for colour in KINDS[kind]]
    for one, other in itertools.combinations(colours, 2):
        assert distance(one, other, VISIONS[vision]) > 10, (one, other)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_can_be_seen_and_words_can_be_read(dark: bool) -> None:
    ground = "#171d24" if dark else "#ffffff"
    shown = {
        colour: palette.DARK.get(colour, colour) if dark else colour for colours in KINDS.values() for colour in colours
    }
    for colour, drawn in shown.items():
        assert contrast(drawn, ground) > 2, colour
    for colour in (palette.SOFT, palette.INK):
        assert contrast(palette.DARK[colour] if dark else colour, ground) > 4.5


def test_a_runtime_keeps_its_colour_and_versions_differ_by_line() -> None:
    assert all(palette.colour_of(name) != palette.colour_of("something of my own") for name in runtime_specs())
    assert palette.colour_of("mlserver@1.6.1") == palette.colour_of("mlserver@1.7.1")
    (first, line), (second, other), (third, _) = palette.styles(["mlserver@1.6.1", "mlserver@1.7.1", "kserve"])
    assert first == second != third
    assert line != other


def test_dark_colours_are_variables_that_the_page_sets() -> None:
    svg = palette.themed(f'<path style="stroke: {palette.SOFT.upper()}; fill: #123456"/>')
    found = re.search(r"var\((--p[0-9a-f]{6}),(#[0-9A-F]{6})\)", svg)
    assert found is not None
    assert found[2].lower() == palette.SOFT
    assert f"{found[1]}:{palette.DARK[palette.SOFT]};" in palette.dark_variables()
    assert "fill: #123456" in svg
