"""Every module of this folder that has ``CLAIMS``."""

from __future__ import annotations

import importlib
import pkgutil

import tests.truth
from tests.truth.claim import Claim


def claims() -> list[Claim]:
    found: list[Claim] = []
    for module in sorted(pkgutil.iter_modules(tests.truth.__path__), key=lambda item: item.name):
        if module.name.startswith("claims_"):
            found += importlib.import_module(f"tests.truth.{module.name}").CLAIMS
    return found
