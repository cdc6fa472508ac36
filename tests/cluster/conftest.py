from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client, config

from cluster.local.provider import LocalCluster
from runtimes.catalog import BuiltModel
from tests.helpers import tool, wait_until

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def api(cluster: LocalCluster) -> Any:
    return config.new_client_from_config(str(cluster.kubeconfig))


@pytest.fixture(scope="session", autouse=True)
def _short_grace(api: Any) -> None:
    """Pods that nobody needs go after two seconds behind the activator instead of thirty."""
    body = {"data": {"scale-to-zero-grace-period": "2s"}}
    client.CoreV1Api(api).patch_namespaced_config_map("config-autoscaler", "knative-serving", body)


@pytest.fixture
def core(api: Any) -> Any:
    return client.CoreV1Api(api)


@pytest.fixture
def custom(api: Any) -> Any:
    return client.CustomObjectsApi(api)


@pytest.fixture
def kubectl(cluster: LocalCluster) -> Kubectl:
    program = tool("kubectl")

    def run(*arguments: str, ok: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [program, *arguments],
            env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=90,
            input=stdin,
            check=False,
        )
        if ok:
            assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture
def namespace(core: Any) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)

    def gone() -> bool:
        try:
            core.read_namespace(name)
        except client.ApiException as error:
            return bool(error.status == 404)
        return False

    wait_until(gone, 60, f"the end of namespace {name}")


def isvc_manifest(name: str, namespace: str, uri: str, **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "servecert-identity"}, "protocolVersion": "v2", "storageUri": uri}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": {**predictor, "model": {**model, **predictor.get("model", {})}}},
    }


Deploy = Callable[..., dict[str, Any]]


@pytest.fixture
def deploy(custom: Any, namespace: str, identity: BuiltModel) -> Deploy:
    """Creates an InferenceService of the identity model; ``wait=False`` does not wait for it to be ready."""

    def run(name: str, wait: bool = True, uri: str = "", **predictor: Any) -> dict[str, Any]:
        manifest = isvc_manifest(name, namespace, uri or f"file://{identity.artifacts}", **predictor)
        custom.create_namespaced_custom_object("serving.kserve.io", "v1beta1", namespace, "inferenceservices", manifest)
        if not wait:
            return manifest
        return ready_isvc(custom, namespace, name)

    return run


def get_isvc(custom: Any, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = custom.get_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", namespace, "inferenceservices", name
    )
    return found


def condition_of(item: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), {})


def ready_isvc(custom: Any, namespace: str, name: str, within_s: float = 40) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = get_isvc(custom, namespace, name)
        current = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        return found if current and condition_of(found, "Ready").get("status") == "True" else None

    found: dict[str, Any] = wait_until(look, within_s, f"readiness of {name}")
    return found
