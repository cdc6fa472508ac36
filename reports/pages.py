"""How the templates of HTML pages are read: everything is escaped, and a name that is not there is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pages_environment() -> Any:
    import jinja2  # most commands write no page

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
