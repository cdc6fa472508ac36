"""The main job with the real runtimes: MLServer and KServe's server, deployed, checked, measured, reported."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from harness.results.runstore import read_run
from tests.helpers import ROOT, servecert


@pytest.mark.runtime
def test_quickstart_passes_with_exactly_the_known_deviations(tmp_path: Path) -> None:
    shorter = [f"--set=steps.{index}.duration=3s" for index in (6, 7, 8)]
    out = tmp_path / "run"
    result = servecert("run", "quickstart", "--out", str(out), *shorter, timeout_s=600)
    assert result.returncode == 0, result.stderr
    run = read_run(out)
    by_runtime = {check.runtime for check in run.checks}
    assert by_runtime == {"mlserver@1.7.1", "kserve@0.21.0", "reference@1.0.0"}
    known = {runtime: sum(check.known for check in run.checks if check.runtime == runtime) for runtime in by_runtime}
    assert known["mlserver@1.7.1"] >= 10
    assert known["kserve@0.21.0"] >= 10
    assert known["reference@1.0.0"] == 0
    for service in ("iris", "cnn", "identity"):
        comparisons = {item.comparison for item in run.parity if item.service == service}
        assert comparisons == {"golden.rest", "golden.grpc", "rest_grpc", "batch", "concurrent"}
        load = next(item for item in run.loads if item.service == service)
        assert load.errors == 0
        assert load.checked_answers > 0
    html = (out / "report.html").read_text()
    assert "mlserver@1.7.1" in html
    assert "kserve@0.21.0" in html
    results = json.loads((out / "results.json").read_text())
    assert results["passed"] is True
    jsonschema.validate(results, json.loads((ROOT / "reports" / "results.schema.json").read_text()))
