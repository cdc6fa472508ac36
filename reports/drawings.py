"""Figures as parts of a page and as files. Each is drawn once a format."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from reports.palette import EDGE, GRID, SOFT, themed

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "servecert",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": GRID,
}
DPI = 130


class Drawings:
    """The figures of one page. ``files`` holds each as SVG and PNG, by its place in the run directory."""

    def __init__(self, folder: str = "plots", *, png: bool = True) -> None:
        self.files: dict[str, bytes] = {}
        self._folder = folder
        self._png = png

    def add(self, name: str, label: str, figure: Figure) -> Markup:
        """The figure as inline SVG, with the page's colours; ``label`` is what a screen reader says of it."""
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")
        with matplotlib.rc_context(STYLE):
            text = self._saved(figure, "svg", metadata={"Date": None, "Creator": None}).decode()
            place = f"{self._folder}/{slug}"
            self.files[f"{place}.svg"] = text.encode()
            if self._png:
                figure.set_layout_engine("none")  # it has been laid out
                self.files[f"{place}.png"] = self._saved(figure, "png", dpi=DPI)
        return _inline(text, label, slug)

    @staticmethod
    def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, facecolor="white" if kind == "png" else "none", **options)
        return buffer.getvalue()


def _inline(text: str, label: str, slug: str) -> Markup:
    svg = themed(text[text.index("<svg") :])
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    # Ids are unique within a figure; a page holds several.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href=")#', rf"\1#{slug}-", svg).replace("url(#", f"url(#{slug}-")
    attributes = f'role="img" aria-label="{html.escape(label)}" class="plot"'
    return Markup(svg.replace("<svg ", f"<svg {attributes} ", 1))  # noqa: S704 - our own SVG
