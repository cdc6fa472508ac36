from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

from harness.results.records import Level, Measurement, Outcome, SampleBatch, Series, to_json
from harness.results.runstore import Run, RunStore, read_run
from harness.results.verdict import judge
from reports.markdown import markdown
from reports.signoff import sign_off
from reports.tables import matrix, scorecard, service_rows
from reports.write import write_reports
from tests.helpers import ROOT, servecert
from tests.records import check, load_result

HOSTILE = "</script><script>alert(1)</script>\x00\x1b[31m"


def samples(step: str, errors: int = 0) -> SampleBatch:
    generator = np.random.default_rng(1)
    due = np.arange(1000, dtype=np.int64) * 10_000_000
    done = due + (generator.exponential(0.01, 1000) * 1e9).astype(np.int64)
    kinds = np.zeros(1000, np.int16)
    kinds[:errors] = 1
    status = np.full(1000, 200, np.int32)
    return SampleBatch(
        "svc", step, due, due, due + 1000, done, done, status, status.astype(np.int64), kinds, ("", "timeout")
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    store = RunStore(tmp_path / "run", "night", seed=1)
    store.info["services"] = {
        "svc": {"runtime": "mlserver@1.7.1", "model": "iris", "ready_s": 2.0},
        "other": {"runtime": "kserve@0.21.0", "model": "cnn", "ready_s": 3.0},
    }
    store.info["steps"] = [{"name": "1", "suite": "conformance", "service": "svc", "state": "done"}]
    for service in ("svc", "other"):
        store.add(check("rest.infer.status", service=service))
        store.add(
            check("rest.errors.empty_body.body", Outcome.FAILED, service=service, deviation="FastAPI says detail")
        )
        store.add(check("rest.health.prompt", Outcome.FAILED, Level.SHOULD, service=service))
    store.add(check("rest.infer.id_echo", Outcome.FAILED, observed=HOSTILE, requirement="An id comes back."))
    store.add(load_result(samples=store.samples_name("svc", "1")))
    store.add(samples("1", errors=3))
    store.finish(1)
    store.close()
    write_reports(store.directory)
    return store.directory


def test_report_is_one_file_that_needs_no_network(directory: Path) -> None:
    html = (directory / "report.html").read_text()
    links = re.findall(r'(?:src|href)="(?!#)(?!https://example\.test)([^"]+)"', html)
    assert links == ["samples/1-svc.parquet", "timelines/1-svc.csv", "timelines/1-svc.hlog"]
    for link in links:
        assert (directory / link).stat().st_size > 0
    assert "http-equiv" in html
    assert "default-src 'none'" in html


def test_what_a_server_sent_cannot_leave_its_place(directory: Path) -> None:
    html = (directory / "report.html").read_text()
    assert "<script>alert" not in html
    tree = ElementTree.parse(directory / "junit.xml")
    assert "alert(1)" in ElementTree.tostring(tree.getroot(), encoding="unicode")


def test_junit_is_red_exactly_for_what_decides(directory: Path) -> None:
    root = ElementTree.parse(directory / "junit.xml").getroot()
    failures = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    assert failures == ["rest.infer.id_echo"]
    skipped = {case.get("name"): case.find("skipped") for case in root.iter("testcase")}
    known, advisory = skipped["rest.errors.empty_body.body"], skipped["rest.health.prompt"]
    assert known is not None
    assert "known deviation: FastAPI says detail" in (known.get("message") or "")
    assert advisory is not None
    assert "should not met" in (advisory.get("message") or "")
    assert root.get("failures") == "1"


def test_run_without_results_is_red_in_junit_too(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", "empty", seed=1)
    store.finish(0)
    verdict = write_reports(store.directory)
    assert verdict.exit_code == 1
    root = ElementTree.parse(store.directory / "junit.xml").getroot()
    assert [case.find("error") is not None for case in root.iter("testcase")] == [True]


def test_summary_and_json_agree_with_the_verdict(directory: Path) -> None:
    data = json.loads((directory / "results.json").read_text())
    assert data["exit_code"] == judge(read_run(directory)).exit_code == 1
    summary = (directory / "summary.md").read_text()
    assert summary.startswith("# night: failed")
    assert "FastAPI says detail" in summary
    assert "rest.infer.id_echo" in summary


def test_reports_of_a_copied_directory_are_the_same(directory: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copied"
    shutil.copytree(directory, copy)
    for name in ("report.html", "summary.md", "junit.xml", "results.json"):
        (copy / name).unlink()
    write_reports(copy)
    for name in ("summary.md", "junit.xml", "results.json"):
        assert (copy / name).read_text() == (directory / name).read_text()


def test_fuzz_stands_beside_the_checks(tmp_path: Path) -> None:
    checks = [check(), check("fuzz.refused", Outcome.FAILED, suite="fuzz"), check("fuzz.valid", suite="fuzz")]
    run = Run(tmp_path, {"services": {"svc": {"runtime": "r", "model": "m"}}}, checks=checks)
    assert [(group.name, [row.title for row in group.rows]) for group in matrix(run)] == [
        ("rest.infer", ["status"]),
        ("fuzz", ["refused", "valid"]),
    ]
    (row,) = service_rows(run)
    assert (row.conformance.passed, row.conformance.failed) == (2, 1)
    (card,) = scorecard(run)
    assert set(card.scores) == {"rest"}, "fuzz is no profile"


def cluster_run(directory: Path) -> Path:
    """A run of the suites that watch a cluster: one check each, with what there is to plot."""
    store = RunStore(directory, "cluster", seed=1)
    suites = ("cold-start", "autoscaling", "canary-rollback")
    store.info["suites"] = {"canary-rollback": "Canary and rollback"}  # the others: as in runs of older versions
    store.info["steps"] = [
        {"name": suite, "suite": suite, "service": "svc", "state": "done", "seconds": 1.5} for suite in suites
    ]
    for suite in suites:
        store.add(check(f"{suite}.one", suite=suite, step=suite, observed="as it should be"))
        store.add(Measurement(f"{suite}.lag", 1.25, "s", 1, "svc", suite))
    seconds = [float(second) for second in range(20)]
    pods = {name: [1.0] * 10 + [3.0] * 10 for name in ("desired", "ready", "ideal", "low", "high", "concurrency")}
    store.add(Series("replicas", "svc", "autoscaling", {"t_s": seconds, "offered_per_s": [5.0] * 20, **pods}))
    phases = ("created", "scheduled", "storage", "image", "started", "ready", "first_byte")
    store.add(Series("cold-start", "svc", "cold-start", {name: [0.1, 0.2] for name in phases}))
    counts = {"percent": [20.0] * 20, "requests": [100.0] * 20, "candidate": [21.0] * 20, "errors": [0.0] * 20}
    store.add(Series("split", "svc", "canary-rollback", {"t_s": seconds, **counts}))
    store.finish(0)
    store.close()
    return directory


def test_suites_on_a_cluster_have_their_part_with_a_plot(tmp_path: Path) -> None:
    assert write_reports(cluster_run(tmp_path / "run")).passed
    page = (tmp_path / "run" / "report.html").read_text()
    for title, label in (
        ("Cold start of svc", "Cold starts by phase"),
        ("Autoscaling of svc", "Pods, offered load and latency over time"),
        ("Canary and rollback of svc", "The candidate&#x27;s share"),
    ):
        assert title in page
        assert label in page
    assert "as it should be" in page
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "## Autoscaling of svc" in summary
    assert "lag 1.25 s" in summary


def test_sign_off_names_what_was_run_and_ties_the_summary_to_its_records(tmp_path: Path) -> None:
    directory = cluster_run(tmp_path / "run")
    before = sign_off(read_run(directory))
    assert [step.name for step in before.steps] == ["cold-start", "autoscaling", "canary-rollback"]
    assert before.steps[0].result == "1 passed"
    facts = dict(before.facts)
    assert len(facts["records, SHA-256"]) == 64
    assert "processors" in facts["machine"]
    lines = (directory / "checks.jsonl").read_text().splitlines(keepends=True)
    (directory / "checks.jsonl").write_text("".join(lines[:-1]))
    assert dict(sign_off(read_run(directory)).facts)["records, SHA-256"] != facts["records, SHA-256"]


def validator() -> jsonschema.Draft202012Validator:
    published = json.loads((ROOT / "reports" / "results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published)


def test_published_schema_of_results_is_current() -> None:
    current = json.loads(servecert("schema", "results").stdout)
    published = json.loads((ROOT / "reports" / "results.schema.json").read_text())
    assert published == current, "run: servecert schema results > reports/results.schema.json"


def test_results_are_as_their_schema_says(directory: Path, tmp_path: Path) -> None:
    write_reports(cluster_run(tmp_path / "cluster"))
    for place in (directory, tmp_path / "cluster"):
        data = json.loads((place / "results.json").read_text())
        validator().validate(data)
        assert data["schema_version"] == 1
    data["checks"][0].pop("outcome")
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(data)


def test_infinite_numbers_are_within_the_schema(directory: Path) -> None:
    data = json.loads((directory / "results.json").read_text())
    data["measurements"] = [to_json(Measurement("a", math.inf, "s", 1)), to_json(Measurement("b", math.nan, "s", 1))]
    validator().validate(data)
    data["measurements"][0]["value"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(data)


def test_summary_fits_a_job_summary(tmp_path: Path) -> None:
    checks = [
        check(f"rest.infer.n{number}", Outcome.FAILED, service=f"svc-{number}", deviation="because " + "ü" * 400)
        for number in range(3000)
    ]
    run = Run(
        tmp_path,
        {"services": {}, "host": {"system": "", "cpu_count": 1, "memory_bytes": 1, "python": ""}, "versions": {}}
        | {"command": [], "seed": 1, "started": "", "finished": "", "name": "large"},
        checks=checks,
    )
    text = markdown(run, judge(run))
    assert 900_000 < len(text.encode()) < 1 << 20
    assert text.startswith("# large: ")
    assert "is in report.html and results.json" in text.splitlines()[-1]
