"""Against a real kube-apiserver and etcd, where ``KUBEBUILDER_ASSETS`` names the folder that holds them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
import yaml

from harness.kubernetes.kserve import KServe
from harness.kubernetes.kube import Kube
from scenarios.engine.preflight import Answer, preflight
from scenarios.file.reading import load_scenario
from tests.helpers import free_port, servecert, wait_until

ASSETS = os.environ.get("KUBEBUILDER_ASSETS", "")
pytestmark = [
    pytest.mark.envtest,
    pytest.mark.skipif(not ASSETS, reason="KUBEBUILDER_ASSETS does not name a folder with kube-apiserver and etcd"),
]
TOKEN = "of-this-test-only"


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("envtest")
    etcd_port, peer_port, port = free_port(), free_port(), free_port()
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1", "localhost")
    (folder / "ca.pem").write_bytes(ca.cert_pem.bytes())
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
    (folder / "tokens.csv").write_text(f'{TOKEN},admin,1,"system:masters"\n')
    etcd = [
        *(f"{ASSETS}/etcd", "--data-dir", str(folder / "etcd")),
        *("--listen-client-urls", f"http://127.0.0.1:{etcd_port}"),
        *("--advertise-client-urls", f"http://127.0.0.1:{etcd_port}"),
        *("--listen-peer-urls", f"http://127.0.0.1:{peer_port}"),
    ]
    apiserver = [
        *(f"{ASSETS}/kube-apiserver", f"--etcd-servers=http://127.0.0.1:{etcd_port}"),
        *(f"--secure-port={port}", "--bind-address=127.0.0.1", "--service-cluster-ip-range=10.0.0.0/24"),
        *(f"--tls-cert-file={folder}/cert.pem", f"--tls-private-key-file={folder}/key.pem"),
        *(f"--service-account-key-file={folder}/key.pem", f"--service-account-signing-key-file={folder}/key.pem"),
        *("--service-account-issuer=https://kubernetes.default.svc", f"--token-auth-file={folder}/tokens.csv"),
        *("--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"),
    ]
    path = folder / "kubeconfig"
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": "ca.pem"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "envtest",
        "contexts": [{"name": "envtest", "context": {"cluster": "envtest", "user": "admin"}}],
        "clusters": [{"name": "envtest", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
    }
    path.write_text(yaml.safe_dump(config))
    processes = []
    try:
        for command in (etcd, apiserver):
            with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait_until(lambda: _answers(path), within_s=60, what="the API server")
        yield path
    finally:
        for process in reversed(processes):  # one after the other: an API server without its etcd does not end
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(path: Path) -> bool:
    try:
        return bool(Kube(path).version()) and Kube(path).get("v1", "namespaces", "default") is not None
    except Exception:
        return False


def scenario(tmp_path: Path, kubeconfig: Path) -> Path:
    data = {
        "name": "envtest",
        "cluster": {
            "provider": "existing",
            "kubeconfig": str(kubeconfig),
            "reach": {"kind": "address", "address": "127.0.0.1:1"},
        },
        "services": {"echo": {"runtime": "reference", "model": "identity"}},
        "steps": [{"suite": "parity", "service": "echo"}],
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


async def test_the_facade_speaks_to_a_real_api_server(kubeconfig: Path) -> None:
    kserve = KServe(kubeconfig, "envtest", 5.0)
    assert await kserve.ensure_namespace() is True
    assert await kserve.ensure_namespace() is False
    assert (await kserve.version()).startswith("v1.")
    low, high = await kserve.clock_offset_s()
    assert low <= 0 <= high
    assert await kserve.pods("nobody") == []
    assert await kserve.timeline() == []


def test_rights_and_what_is_missing_are_seen(tmp_path: Path, kubeconfig: Path) -> None:
    found = {item.id: item for item in preflight(load_scenario(scenario(tmp_path, kubeconfig)), Kube(kubeconfig))}
    assert found["kubernetes"].answer is Answer.PASSED
    assert found["rights"].answer is Answer.PASSED, "system:masters may everything"
    assert found["crd.inferenceservices"].answer is Answer.FAILED
    assert found["ingress"].answer is Answer.FAILED


def test_preflight_by_the_command_line(tmp_path: Path, kubeconfig: Path) -> None:
    result = servecert("preflight", str(scenario(tmp_path, kubeconfig)), "--json", "-")
    assert result.returncode == 1
    assert json.loads(result.stdout)["able"] is False
