"""Models for pods elsewhere: where they are put, and which credentials go with them."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.local.provider import LocalCluster
from cluster.model import Models
from cluster.workloads.delivery import Delivery, fingerprint
from harness.base.errors import ClusterError, UsageError
from harness.kubernetes.kube import Kube
from runtimes.catalog import BuiltModel
from tests.cluster.standins import StandIns, running_pod

NAMESPACE = "delivery"


@pytest.fixture(scope="module")
def kube(cluster: LocalCluster) -> Kube:
    found = Kube(cluster.kubeconfig)
    found.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    return found


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "weights").write_bytes(b"\x00\x01")
    (folder / "model.json").write_text("{}")
    return folder


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[MemoryFileSystem]:
    """In place of S3: files in memory, by the same interface."""

    class S3(MemoryFileSystem):
        protocol = "s3"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + str(path).removeprefix("s3://").strip("/")

        def mkdirs(self, path: str, exist_ok: bool = False) -> None:
            self.makedirs(path, exist_ok=exist_ok)

    fsspec.register_implementation("s3", S3, clobber=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    return S3


def delivery(cluster: LocalCluster, tmp_path: Path, **models: Any) -> Delivery:
    wanted = Models.model_validate(models)
    return Delivery(wanted, cluster.kubeconfig, NAMESPACE, tmp_path / "log", threading.Event())


def test_object_storage_with_a_secret(
    cluster: LocalCluster,
    kube: Kube,
    artifacts: Path,
    tmp_path: Path,
    store: type[MemoryFileSystem],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    wanted = delivery(cluster, tmp_path, uri="s3://bucket/models/", secret_from=names, endpoint="s3.internal:9000")
    delivered = wanted.deliver("iris", artifacts)
    assert delivered.storage_uri == f"s3://bucket/models/iris-{fingerprint(artifacts)}"
    assert delivered.service_account == "servecert-models"
    root = "/" + delivered.storage_uri.removeprefix("s3://")
    assert store.store[f"{root}/1/weights"].getvalue() == b"\x00\x01"
    secret = kube.get("v1", "secrets", "servecert-models", NAMESPACE)
    assert secret is not None
    assert base64.b64decode(secret["data"]["AWS_SECRET_ACCESS_KEY"]) == b"hush"
    assert secret["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"] == "s3.internal:9000"
    assert secret["metadata"]["annotations"]["serving.kserve.io/s3-usehttps"] == "1"
    plain = delivery(cluster, tmp_path, uri="s3://bucket", secret_from=names, endpoint="http://s3.internal:9000")
    annotations = plain._secret()["metadata"]["annotations"]
    assert annotations["serving.kserve.io/s3-endpoint"] == "s3.internal:9000"
    assert annotations["serving.kserve.io/s3-usehttps"] == "0"
    account = kube.get("v1", "serviceaccounts", "servecert-models", NAMESPACE)
    assert account is not None
    assert account["secrets"] == [{"name": "servecert-models"}]
    wanted.deliver("iris", artifacts)
    (artifacts / "model.json").write_text('{"other": 1}')
    assert wanted.deliver("iris", artifacts) != delivered, "another content is another place"
    wanted.clean()
    assert kube.get("v1", "secrets", "servecert-models", NAMESPACE) is None, "credentials do not stay"
    assert not (tmp_path / "log").exists() or "hush" not in (tmp_path / "log").read_text()


def test_an_account_that_is_there_is_left_alone(
    cluster: LocalCluster, kube: Kube, artifacts: Path, tmp_path: Path, store: type[MemoryFileSystem]
) -> None:
    wanted = delivery(cluster, tmp_path, uri="s3://bucket", service_account="reader")
    assert wanted.deliver("m", artifacts).service_account == "reader"
    assert kube.get("v1", "secrets", "servecert-models", NAMESPACE) is None


def test_what_is_missing_is_named(cluster: LocalCluster, artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the environment variable NO_SUCH_KEY is not set"):
        delivery(cluster, tmp_path, uri="s3://b", secret_from=["NO_SUCH_KEY"]).deliver("m", artifacts)
    with pytest.raises(UsageError, match=r"gs:// needs gcsfs: pip install 'servecert\[gcs\]'"):
        delivery(cluster, tmp_path, uri="gs://b").deliver("m", artifacts)
    for wrong in ({"uri": "ftp://x"}, {"uri": "s3://"}, {"uri": "gs://b", "minio": True}):
        with pytest.raises(ValueError, match=r"expected a URI|'minio' goes with"):
            Models.model_validate(wrong)


def test_a_claim_is_filled_through_a_pod_that_goes(
    cluster: LocalCluster,
    kube: Kube,
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    identity: BuiltModel,
) -> None:
    labels = {"app.kubernetes.io/name": "servecert-models"}
    _start(kube, NAMESPACE, "servecert-models", labels, identity.artifacts)
    standins = StandIns(tmp_path / "tools").install("kubectl")
    monkeypatch.setenv("PATH", standins.environment()["PATH"])
    monkeypatch.setenv("SERVECERT_RETRY_S", "0")
    wanted = delivery(cluster, tmp_path, uri="pvc://models/nightly", storage="2Gi", storage_class="fast")
    delivered = wanted.deliver("iris", artifacts)
    place = f"nightly/iris-{fingerprint(artifacts)}"
    assert delivered.storage_uri == f"pvc://models/{place}"
    assert delivered.service_account is None
    claim = kube.get("v1", "persistentvolumeclaims", "models", NAMESPACE)
    assert claim is not None
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    verbs = [call["argv"][5] for call in standins.calls()]
    assert verbs == ["apply", "exec", "cp", "delete"]
    assert standins.calls()[2]["argv"][-2:] == [f"{artifacts}/.", f"servecert-models:/models/{place}"]
    standins.forget_calls()
    standins.rule({"match": " cp ", "exit": 1, "stderr": "no space left on device\n"})
    with pytest.raises(ClusterError, match=r"could not copy the model[\s\S]*no space left"):
        wanted.deliver("iris", artifacts)
    assert " delete pod/servecert-models" in standins.lines()[-1]


def test_minio_has_a_password_of_its_own(
    cluster: LocalCluster,
    kube: Kube,
    artifacts: Path,
    tmp_path: Path,
    store: type[MemoryFileSystem],
    monkeypatch: pytest.MonkeyPatch,
    identity: BuiltModel,
) -> None:
    standins = StandIns(tmp_path / "tools").install("kubectl")
    standins.rule({"match": "port-forward", "stdout": "Forwarding from 127.0.0.1:43210 -> 9000\n", "hangs": True})
    monkeypatch.setenv("PATH", standins.environment()["PATH"])
    seen: list[dict[str, Any]] = []
    opened = fsspec.core.url_to_fs

    def url_to_fs(path: str, **options: Any) -> Any:
        seen.append(options)
        return opened(path)

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    pod = (kube, "minio", "minio-x", {"app": "minio"}, identity.artifacts)
    available = threading.Thread(target=_start, args=pod, daemon=True)
    available.start()
    wanted = delivery(cluster, tmp_path, uri="s3://models", minio=True)
    delivered = wanted.deliver("iris", artifacts)
    assert delivered.service_account == "servecert-models"
    secret = kube.get("v1", "secrets", "minio", "minio")
    assert secret is not None
    password = base64.b64decode(secret["data"]["password"]).decode()
    assert len(password) >= 24
    assert seen[0]["endpoint_url"] == "http://127.0.0.1:43210"
    assert seen[0]["secret"] == password
    given = kube.get("v1", "secrets", "servecert-models", NAMESPACE)
    assert given is not None
    assert given["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"] == "minio.minio:9000"
    assert given["metadata"]["annotations"]["serving.kserve.io/s3-usehttps"] == "0"
    again = delivery(cluster, tmp_path, uri="s3://models", minio=True)
    again.deliver("iris", artifacts)
    assert seen[-1]["secret"] == password, "drawn once"
    assert password not in json.dumps(standins.calls())
    wanted.clean()


def _start(kube: Kube, namespace: str, name: str, labels: dict[str, str], artifacts: Path) -> None:
    """A ready pod with these labels, as soon as there is the namespace: the embedded cluster starts no pods for
    Deployments that are not KServe's, and the stand-in for kubectl none at all."""
    for _ in range(200):
        try:
            kube.call("POST", f"/api/v1/namespaces/{namespace}/pods", running_pod(name, labels, artifacts))
            return
        except LookupError:
            threading.Event().wait(0.05)
