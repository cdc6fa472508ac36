"""Triton and TorchServe, as real processes on the embedded cluster, against the whole protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers import processes_mentioning, servecert, tool


@pytest.mark.runtime
def test_triton_and_torchserve_miss_exactly_what_is_known(tmp_path: Path) -> None:
    tool("java")
    scenario = {
        "name": "others",
        "services": {
            "triton": {"runtime": "triton", "model": "identity"},
            "torchserve": {"runtime": "torchserve", "model": "mlp"},
        },
        "steps": [
            {
                "suite": "conformance",
                "service": "triton",
                "profiles": ["rest", "binary", "grpc", "repository", "statistics"],
            },
            {"suite": "conformance", "service": "torchserve", "profiles": ["rest"]},
        ],
    }
    path = tmp_path / "others.yaml"
    path.write_text(yaml.safe_dump(scenario))
    out = tmp_path / "run"
    result = servecert("run", str(path), "--out", str(out), timeout_s=500)
    assert result.returncode == 0, result.stderr
    results = json.loads((out / "results.json").read_text())
    cards = {card["service"]: card["profiles"] for card in results["scorecard"]}
    assert set(cards["triton"]) == {"rest", "binary", "grpc", "repository", "statistics"}
    assert set(cards["torchserve"]) == {"rest"}
    for service in ("triton", "torchserve"):
        checks = [check for check in results["checks"] if check["service"] == service]
        known = [check for check in checks if check["outcome"] == "failed" and check["deviation"]]
        assert len(known) > 20
        must = {"passed": 0, "applicable": 0}
        for profile in cards[service].values():
            for key in must:
                must[key] += profile["must"][key]
        judged = [check for check in checks if check["level"] == "must" and check["outcome"] != "skipped"]
        assert must == {"passed": len(judged) - len(known), "applicable": len(judged)}
    assert not processes_mentioning("tritonserver")
    assert not processes_mentioning("model-server.jar")
