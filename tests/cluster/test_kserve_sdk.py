"""KServe's own Python SDK, unchanged, in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.local.provider import LocalCluster
from runtimes.catalog import BuiltModel, find_runtime

SCRIPT = """
import json, sys
from kubernetes.client import V1ObjectMeta
from kserve import (
    KServeClient, V1beta1InferenceService, V1beta1InferenceServiceSpec, V1beta1ModelFormat, V1beta1ModelSpec,
    V1beta1PredictorSpec,
)
kubeconfig, namespace, uri = sys.argv[1:]
client = KServeClient(config_file=kubeconfig)
model = V1beta1ModelSpec(
    model_format=V1beta1ModelFormat(name="servecert-identity"), protocol_version="v2", storage_uri=uri
)
isvc = V1beta1InferenceService(
    api_version="serving.kserve.io/v1beta1", kind="InferenceService",
    metadata=V1ObjectMeta(name="sdk", namespace=namespace),
    spec=V1beta1InferenceServiceSpec(predictor=V1beta1PredictorSpec(min_replicas=1, model=model)),
)
seen = {"created": client.create(isvc)["metadata"]["name"]}
client.wait_isvc_ready("sdk", namespace=namespace, timeout_seconds=60, polling_interval=1)
seen["ready"] = client.is_isvc_ready("sdk", namespace=namespace)
found = client.get("sdk", namespace=namespace)
seen["url"] = found["status"]["url"]
seen["revision"] = found["status"]["components"]["predictor"]["latestReadyRevision"]
patch = V1beta1InferenceService(
    api_version="serving.kserve.io/v1beta1", kind="InferenceService",
    metadata=V1ObjectMeta(name="sdk", namespace=namespace, labels={"team": "blue"}),
    spec=V1beta1InferenceServiceSpec(predictor=V1beta1PredictorSpec(min_replicas=2, model=model)),
)
client.patch("sdk", patch, namespace=namespace)
client.wait_isvc_ready("sdk", namespace=namespace, timeout_seconds=60, polling_interval=1)
patched = client.get("sdk", namespace=namespace)
seen["replicas"] = patched["spec"]["predictor"]["minReplicas"]
seen["labels"] = patched["metadata"]["labels"]
client.delete("sdk", namespace=namespace)
try:
    client.get("sdk", namespace=namespace)
except RuntimeError as error:
    seen["gone"] = "404" in str(error) or "not found" in str(error).lower()
print(json.dumps(seen))
"""


@pytest.mark.runtime
def test_create_wait_get_patch_and_delete(
    cluster: LocalCluster, namespace: str, identity: BuiltModel, tmp_path: Path
) -> None:
    python = find_runtime("kserve").python(lambda line: print(line, file=sys.stderr))
    script = tmp_path / "session.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [str(python), str(script), str(cluster.kubeconfig), namespace, f"file://{identity.artifacts}"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen == {
        "created": "sdk",
        "ready": True,
        "url": f"http://sdk.{namespace}.example.com",
        "revision": "sdk-predictor-00001",
        "replicas": 2,
        "labels": {"team": "blue"},
        "gone": True,
    }
