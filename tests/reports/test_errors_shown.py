"""Errors of a load stage in all that people and pipelines read: status, first words, and where a redirect led."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from harness.load.recording import CONNECT, GRPC_STATUS, HTTP_5XX, REDIRECT, Example
from harness.results.records import ErrorSeen, LoadResult, Outcome, load_from_json, to_json
from harness.results.runstore import RunStore, read_run
from reports.terminal import Terminal
from reports.write import write_reports
from scenarios.suites.shared.stage.errors import errors_seen, in_words
from tests.records import check, load_result
from tests.reports.test_reports import samples

HOSTILE = "![x](http://evil/)<img src=x onerror=alert(1)>|`|[red]\\x1b[31m \\"
SEEN = (
    ErrorSeen("http_5xx", 503, 286, 0.2, "upstream connect error", ""),
    ErrorSeen("redirect", 302, 3, 0.1, "", "https://login.example/a|b?[x]\\"),
    ErrorSeen("http_4xx", 418, 2, 1.5, HOSTILE, ""),
    ErrorSeen("grpc_status", 14, 1, 1.0, "UNAVAILABLE: no healthy upstream", ""),
)


def result() -> LoadResult:
    classes = {seen.kind: seen.count for seen in SEEN}
    return load_result(errors=292, errors_by_class=classes, errors_seen=SEEN, resent=4)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = RunStore(tmp_path_factory.mktemp("errors") / "run", "night", seed=1)
    store.info["services"] = {"svc": {"runtime": "mlserver@1.7.1", "model": "iris", "ready_s": 2.0}}
    store.info["steps"] = [{"name": "1", "suite": "load", "service": "svc", "state": "done"}]
    store.add(check("load.valid", suite="load", step="1"))
    store.add(check("load.slo.errors", Outcome.FAILED, suite="load", step="1", observed=HOSTILE + "\x1b[2J"))
    store.add(result())
    store.add(samples("1", errors=3))
    store.finish(1)
    store.close()
    write_reports(store.directory)
    return store.directory


def test_records_survive_the_run_directory(written: Path) -> None:
    assert load_from_json(json.loads(json.dumps(to_json(result())))) == result()
    assert read_run(written).loads[0].errors_seen == SEEN
    data = json.loads((written / "results.json").read_text())
    assert data["loads"][0]["errors_seen"][0]["detail"] == "upstream connect error"
    assert data["loads"][0]["resent"] == 4


def test_a_run_from_before_has_none(written: Path) -> None:
    data = to_json(result())
    del data["errors_seen"], data["resent"]
    assert load_from_json(data).errors_seen == ()


def test_in_words() -> None:
    assert SEEN[0].text == "286 http_5xx (503): first after 0.2 s: 'upstream connect error'"
    assert SEEN[3].text == "1 grpc_status: first after 1 s: 'UNAVAILABLE: no healthy upstream'"
    assert in_words(SEEN[:1]) == "286 http_5xx (503) 'upstream connect error'"
    assert in_words(()) == ""


def test_terminal_shows_them_below_the_stage() -> None:
    console = Console(file=io.StringIO(), width=400)
    with Terminal(console) as terminal:
        terminal.record(result())
        terminal.record(check("load.slo.errors", Outcome.FAILED, suite="load", observed="\x1b[2J" + HOSTILE))
        terminal.step_done("1", 1.0)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    stage = next(number for number, line in enumerate(lines) if "292 of 1000" in line)
    assert any(SEEN[0].text in line for line in lines[stage : stage + 3])
    assert "to https://login.example/a|b?[x]\\" in text
    assert HOSTILE in text
    assert "4 requests went out twice" in text
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in text


def test_report_shows_them_as_text(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "<code>upstream connect error</code>" in page
    assert "https://login.example/a|b?[x]" in page
    assert "<img src=x" not in page
    assert "went out twice" in page


def test_summary_shows_them_and_no_markup_of_theirs(written: Path) -> None:
    text = (written / "summary.md").read_text()
    assert "| 1 | http_5xx (503) | 286 | 0.2 s | 'upstream connect error' |" in text
    assert "<img" not in text
    assert "![x](" not in text
    assert "\x1b" not in text
    rows = [line for line in text.partition("### Errors")[2].partition("##")[0].splitlines() if line.startswith("| 1")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [6] * len(SEEN)


def test_junit_shows_them(written: Path) -> None:
    root = ElementTree.parse(written / "junit.xml").getroot()
    said = [item.text or "" for item in root.iter("system-out")]
    assert len(said) == 1
    assert SEEN[0].text in said[0]


def test_counts_are_of_the_rows_and_words_of_the_examples() -> None:
    error = np.array([0, HTTP_5XX, HTTP_5XX, HTTP_5XX, REDIRECT, CONNECT, GRPC_STATUS], np.int16)
    status = np.array([200, 503, 500, 503, 302, 0, 14], np.int32)
    done = np.array([1, 9, 3, 2, 4, 5, 6], np.int64) * 10**9
    examples = {
        (HTTP_5XX, 503): Example(0.5, "busy"),
        (REDIRECT, 302): Example(0.1, "", "http://login/"),
        (HTTP_5XX, 599): Example(0.1, "only while it was warmed up"),
    }
    seen = errors_seen(error, status, done, examples)
    assert seen == (
        ErrorSeen("http_5xx", 503, 2, 2.0, "busy", ""),
        ErrorSeen("connect", 0, 1, 5.0, "", ""),
        ErrorSeen("grpc_status", 14, 1, 6.0, "", ""),
        ErrorSeen("http_5xx", 500, 1, 3.0, "", ""),
        ErrorSeen("redirect", 302, 1, 4.0, "", "http://login/"),
    )
    assert errors_seen(error[:1], status[:1], done[:1], examples) == ()
