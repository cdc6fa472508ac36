"""The suites, one package each. A package that has a ``SUITE`` is one: nothing else need know of it."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from scenarios.suites.shared.suite import Suite


@cache
def suites() -> dict[str, Suite[Any]]:
    """All of them, by name, in the order of their packages."""
    packages = [item.name for item in pkgutil.iter_modules(__path__) if item.ispkg]
    found = [getattr(importlib.import_module(f"{__name__}.{name}"), "SUITE", None) for name in packages]
    return {suite.name: suite for suite in found if suite is not None}
