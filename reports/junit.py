"""``junit.xml``: one test case a check.

Known deviations and advisory failures (SHOULD, MAY) are shown as skipped with their reason, so that a pipeline is red
exactly when servecert's exit code is not 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from xml.etree import ElementTree as xml

from harness.results.records import CheckResult, LoadResult, Outcome
from harness.results.runstore import Run
from harness.results.verdict import Verdict, describe

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    """XML 1.0 has no way to write most control characters."""
    return _FORBIDDEN.sub("\ufffd", text)


def junit(run: Run, verdict: Verdict) -> str:
    """The text of the document."""
    root = xml.Element("testsuites", name=_clean(str(run.info.get("name", "servecert"))))
    suites: dict[tuple[str, str], list[CheckResult]] = defaultdict(list)
    for check in run.checks:
        suites[(check.step or check.suite, check.service)].append(check)
    failures = 0
    for (step, service), checks in suites.items():
        own = re.compile(f"{re.escape(step)}(-[0-9][0-9])?")  # a trial of a search is numbered
        loads = [load for load in run.loads if load.service == service and own.fullmatch(load.step)]
        failures += _suite(root, step, service, checks, loads)
    # What is wrong with the run as a whole has no check of its own, and must not be green for that.
    shown = {describe(check) for check in run.checks}
    others = [reason for reason in verdict.reasons if reason not in shown]
    if others:
        suite = xml.SubElement(root, "testsuite", name="servecert", tests=str(len(others)), errors=str(len(others)))
        for reason in others:
            case = xml.SubElement(suite, "testcase", classname="servecert.run", name=_clean(reason[:120]))
            xml.SubElement(case, "error", message=_clean(reason[:500])).text = _clean(reason)
    root.set("tests", str(len(run.checks) + len(others)))
    root.set("failures", str(failures))
    root.set("errors", str(len(others)))
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _suite(root: xml.Element, step: str, service: str, checks: list[CheckResult], loads: list[LoadResult]) -> int:
    failed = skipped = 0
    seconds = sum(check.duration_s for check in checks)
    suite = xml.SubElement(root, "testsuite", name=_clean(f"{step}"), time=f"{seconds:.3f}")
    for check in checks:
        case = xml.SubElement(
            suite,
            "testcase",
            classname=_clean(f"{service}.{check.group}"),
            name=_clean(check.id),
            time=f"{check.duration_s:.6f}",
        )
        detail = _clean(
            f"{check.requirement}\nlevel: {check.level}\nsource: {check.source}\nexpected: {check.expected}\n"
            f"observed: {check.observed}\n" + "\n".join(exchange.request for exchange in check.evidence)
        )
        if check.fails_run:
            failed += 1
            kind = "error" if check.outcome is Outcome.ERROR else "failure"
            xml.SubElement(case, kind, message=_clean(describe(check)[:500])).text = detail
        elif reason := skip_reason(check):
            skipped += 1
            xml.SubElement(case, "skipped", message=_clean(reason[:500]))
    lines = [f"{load.step}: {seen.text}" for load in loads for seen in load.errors_seen]
    if lines:
        xml.SubElement(suite, "system-out").text = _clean("\n".join(["errors:", *lines]))
    suite.set("tests", str(len(checks)))
    suite.set("failures", str(failed))
    suite.set("skipped", str(skipped))
    return failed


def skip_reason(check: CheckResult) -> str:
    """Why a check that does not fail the run is not a plain pass either; empty when it is one."""
    if check.known:
        return f"known deviation: {check.deviation_reason}"
    if check.outcome is Outcome.SKIPPED:
        return check.reason
    if check.outcome is Outcome.FAILED:
        return f"{check.level} not met: expected {check.expected}, observed {check.observed}"
    if check.outcome is Outcome.UNDECIDED:
        return f"{check.level} undecided: expected {check.expected}, observed {check.observed}; {check.reason}"
    return ""
