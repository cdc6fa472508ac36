"""The embedded cluster beside what was recorded of a real KServe with the same service on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Deploy

Object = dict[str, Any]
RECORDED: Object = json.loads((Path(__file__).parent / "recorded" / "knative-ready.json").read_text())
NAMES = {"namespace": "servecert-tests", "service": "sound"}
"""Of the recorded service."""
ELSEWHERE = {
    *("serving.knative.dev/configurationUID", "serving.knative.dev/serviceUID", "serving.knative.dev/revisionUID"),
    *("pod-template-hash", "serving.knative.dev/routingState", "serving.knative.dev/routingStateModified"),
    *("serving.knative.dev/routes", "serving.knative.dev/creator"),
}
"""Labels and annotations of objects that the embedded cluster has not: Configurations, Routes, ReplicaSets."""


def conditions(item: Object) -> Object:
    return {entry["type"]: [entry["status"], entry.get("severity", "")] for entry in item["status"]["conditions"]}


def recorded(value: Any, namespace: str) -> Any:
    """With the names of here."""
    text = json.dumps(value).replace(NAMES["namespace"], namespace).replace("servecert-reference-1-0-0", "RUNTIME")
    return json.loads(text)


@pytest.fixture
def service(deploy: Deploy) -> Object:
    return deploy("sound", annotations={"autoscaling.knative.dev/window": "6s"})


def test_the_status_of_a_ready_service_is_a_real_ones(service: Object, namespace: str) -> None:
    found = dict(service["status"])
    wanted = recorded(RECORDED["inferenceservice"]["status"], namespace)
    assert conditions(service) == wanted.pop("conditions")
    del found["conditions"], wanted["servingRuntimeName"]  # the embedded cluster does not say which runtime it took
    # With Kourier the predictor's address is the service's; the embedded cluster does as KServe does with Istio.
    assert wanted.pop("url") == f"http://sound-predictor.{namespace}.example.com"
    assert found.pop("url") == f"http://sound.{namespace}.example.com"
    assert found == wanted


def test_the_revision_is_a_real_ones(service: Object, custom: Any, namespace: str) -> None:
    listed = custom.list_namespaced_custom_object("serving.knative.dev", "v1", namespace, "revisions")["items"]
    assert [item["metadata"]["name"] for item in listed] == ["sound-predictor-00001"]
    found, wanted = listed[0], RECORDED["revision"]
    assert set(wanted["labels"]) - ELSEWHERE <= set(found["metadata"]["labels"])
    assert set(wanted["annotations"]) - ELSEWHERE <= set(found["metadata"]["annotations"])
    status = dict(found["status"])
    assert conditions(found) == wanted["status"]["conditions"]
    for key in set(wanted["status"]) - {"conditions"}:
        assert status[key] == wanted["status"][key], key


def test_the_pod_is_a_real_ones(service: Object, core: Any, namespace: str) -> None:
    pods = core.api_client.sanitize_for_serialization(core.list_namespaced_pod(namespace).items)
    assert len(pods) == 1
    found, wanted = pods[0], RECORDED["pod"]
    assert set(wanted["labels"]) - ELSEWHERE <= set(found["metadata"]["labels"])
    assert {item["type"]: item["status"] for item in found["status"]["conditions"]} == wanted["conditions"]
    assert found["spec"]["containers"][0]["name"] == wanted["containers"][0]
