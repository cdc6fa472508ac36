"""The production checklist, read off manifests before anything runs: ``servecert lint``.

A rule gets one InferenceService with what is known about it and yields findings, each with what is wrong, why that
matters, and what to write instead.
"""

from harness.lint.manifests import Facts, Subject, read_manifests, subjects_of
from harness.lint.rules import RULES, Finding, Level, Rule, lint

__all__ = [
    "RULES",
    "Facts",
    "Finding",
    "Level",
    "Rule",
    "Subject",
    "lint",
    "read_manifests",
    "subjects_of",
]
