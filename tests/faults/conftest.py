"""Says at the end which mutants each check has killed, and which faults of a cluster each suite has noticed."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    killed: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name == "killed" and report.when == "call":
                check, _, mutant = value.partition(" ")
                killed.setdefault(check, []).append(mutant)
    _faults(terminalreporter)
    if not killed:
        return
    terminalreporter.section("mutants killed, by check")
    width = max(map(len, killed))
    for check in sorted(killed):
        terminalreporter.write_line(f"{check:<{width}}  {', '.join(killed[check])}")


def _faults(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        str(value).split("|")
        for report in terminalreporter.stats.get("passed", [])
        for name, value in getattr(report, "user_properties", [])
        if name == "noticed" and report.when == "call"
    ]
    if rows:
        terminalreporter.section("faults noticed: fault, suite, what failed")
        for fault, suite, checks in sorted(rows):
            terminalreporter.write_line(f"{fault:<42} {suite:<16} {checks}")
