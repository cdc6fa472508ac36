"""Says at the end which mutants each check has killed."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    killed: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name == "killed" and report.when == "call":
                check, _, mutant = value.partition(" ")
                killed.setdefault(check, []).append(mutant)
    if not killed:
        return
    terminalreporter.section("mutants killed, by check")
    width = max(map(len, killed))
    for check in sorted(killed):
        terminalreporter.write_line(f"{check:<{width}}  {', '.join(killed[check])}")
