"""README says what is so."""

from __future__ import annotations

import re

from runtimes.catalog import find_runtime
from scenarios.suites import suites
from scenarios.suites.conformance.suite import PROFILES, REGISTRY, select
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
RUNTIMES = (ROOT / "docs" / "runtimes.md").read_text()
SUITES = (ROOT / "docs" / "suites.md").read_text()


def test_number_of_checks_and_profiles() -> None:
    for page in (README, SUITES):
        match = re.search(r"(\d+) checks in (\w+) profiles", page)
        assert match
        assert int(match[1]) == len(REGISTRY.checks) == len(select(list(PROFILES)))
        assert match[2] == "eight"
    assert len(PROFILES) == 8


def test_numbers_of_known_deviations() -> None:
    for name in ("mlserver", "kserve", "triton", "torchserve", "reference"):
        runtime = find_runtime(name)
        match = re.search(rf"\| `{name}` {re.escape(runtime.version)}[^|]*\|[^|]+\| (\d+) \|", RUNTIMES)
        assert match, name
        assert int(match[1]) == sum(len(entry.checks) for entry in runtime.deviations())


def test_readme_fits_a_few_screens() -> None:
    assert len(README.splitlines()) < 120


def test_links_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "test", "install"):
        assert f"make {command}" in README
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_every_command_of_the_readme_is_one() -> None:
    from tests.helpers import servecert

    commands = {match.split()[0] for match in re.findall(r"servecert ((?:[a-z]+)(?: [a-z]+)?)", README) if match}
    listed = servecert("--help").stdout
    for command in commands - {"certifies"}:
        assert re.search(rf"^\s*{command}\b", listed, re.MULTILINE), command


def test_every_suite_is_described() -> None:
    for name in suites():
        assert f"| `{name}` |" in README
        assert f"| `{name}` |" in SUITES
