"""The runtimes that others wrote, as the embedded cluster runs them; and the models they serve."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.local.provider import LocalCluster
from harness.kubernetes.kserve import KServe
from harness.target.golden import read_golden
from harness.target.protocol.tensors import same
from runtimes.catalog import CATALOG, Runtime, build_model, find_model, find_runtime, model_specs, runtime_specs
from scenarios.suites.conformance.suite import REGISTRY
from tests.helpers import processes_mentioning, tool, wait_until


def listening(text: str) -> set[tuple[str, int]]:
    """Addresses and ports of the processes whose command lines hold ``text``, and of their children."""
    found = set()
    for pid in processes_mentioning(text):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in [process, *process.children(recursive=True)]:
                for connection in one.net_connections("tcp"):
                    if connection.status == "LISTEN":
                        found.add((connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port))
    return found


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("name", "model"), [("mlserver", "iris"), ("kserve", "mlp"), ("triton", "identity"), ("torchserve", "mlp")]
)
async def test_runtime_listens_on_loopback_only(cluster: LocalCluster, name: str, model: str) -> None:
    if name == "torchserve":
        tool("java")
    built, runtime = build_model(model), find_runtime(name)
    kserve = KServe(cluster.kubeconfig, f"confined-{name}")
    await kserve.ensure_namespace()
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": model},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": built.spec.format},
                    "storageUri": f"file://{built.artifacts}",
                    "runtime": f"servecert-{name}",
                }
            }
        },
    }
    await kserve.apply(manifest)
    try:
        isvc = await kserve.wait_ready(model, 60, lambda text: None)
        assert isvc["status"]["url"] == f"http://{model}.confined-{name}.example.com"
        # every port of the runtime is served, some of them a moment after it is ready
        wait_until(lambda: len(listening(f"confined-{name}")) >= len(runtime.spec.ports), what="a listener a port")
        assert {address for address, _ in listening(f"confined-{name}")} == {"127.0.0.1"}
    finally:
        await kserve.delete(model)


@pytest.mark.runtime
@pytest.mark.parametrize("name", sorted(set(model_specs()) - {"text"}))
def test_models_build_the_same_twice(name: str, tmp_path: Path) -> None:
    first = build_model(name)
    spec = find_model(name)
    python = find_runtime(spec.runtime).python()
    command = [str(python), str(CATALOG / "models" / spec.builder), "--out", str(tmp_path), *spec.arguments]
    environment = {**os.environ, "PYTHONPATH": str(CATALOG / "models")}
    subprocess.run(command, check=True, timeout=120, env=environment, capture_output=True)
    assert first.golden is not None
    again = read_golden(tmp_path / "golden.npz")
    cases = read_golden(first.golden)
    assert len(cases) == len(again) >= 3
    for case, other in zip(cases, again, strict=True):
        for side in ("inputs", "outputs"):
            assert all(same(a, b) for a, b in zip(getattr(case, side), getattr(other, side), strict=True))
    assert len({case.batch for case in cases}) > 1, "a batch against singles needs both"
    flat = [tensor for case in cases for tensor in case.outputs if tensor.array.dtype.kind == "f"]
    assert all(np.isfinite(tensor.array.astype(np.float64)).all() for tensor in flat)


def _runtimes() -> list[Runtime]:
    return [
        find_runtime(f"{name}@{version}") for name, (spec, _) in runtime_specs().items() for version in spec.versions
    ]


@pytest.mark.parametrize("runtime", _runtimes(), ids=lambda runtime: runtime.name)
def test_deviations_name_checks_that_exist_once_each(runtime: Runtime) -> None:
    named = [check for entry in runtime.deviations() for check in entry.checks]
    assert len(named) == len(set(named))
    assert set(named) <= set(REGISTRY.checks)
    assert all(entry.reason for entry in runtime.deviations())


@pytest.mark.parametrize("runtime", _runtimes(), ids=lambda runtime: runtime.name)
def test_requirements_pin_every_package(runtime: Runtime) -> None:
    for line in (runtime.requirements() or "").splitlines():
        assert "==" in line, line
