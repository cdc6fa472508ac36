"""Label and field selectors, as Kubernetes writes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]
_SET = re.compile(r"\s*([^\s!=,()]+)\s+(in|notin)\s+\(([^)]*)\)\s*")


def matches_labels(item: Object, wanted: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in wanted.items())


def label_selector(text: str) -> Callable[[Object], bool]:
    """``a=b,c!=d,e,!f,g in (x,y),h notin (z)``. Raises ValueError."""
    tests: list[Callable[[dict[str, str]], bool]] = []
    for term in _terms(text):
        tests.append(_label_term(term))
    return lambda item: all(test(item["metadata"].get("labels") or {}) for test in tests)


def _terms(text: str) -> list[str]:
    terms, depth, current = [], 0, ""
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            terms.append(current)
            current = ""
        else:
            current += character
    return [term for term in [*terms, current] if term.strip()]


def _label_term(term: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.fullmatch(term):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    for operator in ("!=", "==", "="):
        if operator in term:
            key, value = (part.strip() for part in term.split(operator, 1))
            if operator == "!=":
                return lambda labels: labels.get(key) != value
            return lambda labels: labels.get(key) == value
    name = term.strip()
    if name.startswith("!"):
        return lambda labels: name[1:].strip() not in labels
    if re.search(r"[\s()]", name):
        raise ValueError(f"unable to parse requirement: {term!r}")
    return lambda labels: name in labels


def field_selector(text: str) -> Callable[[Object], bool]:
    """``metadata.name=x,status.phase!=Running``. Raises ValueError."""
    tests: list[tuple[list[str], bool, str]] = []
    for term in text.split(","):
        if not term.strip():
            continue
        operator = "!=" if "!=" in term else "==" if "==" in term else "="
        key, separator, value = term.partition(operator)
        if not separator:
            raise ValueError(f"invalid field selector: {term!r}")
        tests.append((key.strip().split("."), operator == "!=", value.strip()))

    def matches(item: Object) -> bool:
        for keys, negated, value in tests:
            found: Any = item
            for key in keys:
                found = found.get(key, "") if isinstance(found, dict) else ""
            if (str(found) == value) is negated:
                return False
        return True

    return matches
