"""The embedded cluster beside what was recorded of a real KServe with the same service on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from runtimes.catalog import find_runtime
from tests.cluster.conftest import Deploy, condition_of, get_isvc
from tests.helpers import wait_until

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


REFUSED = (
    'admission webhook "servingruntime.kserve-webhook-server.validator" denied the request: same priority assigned for'
    " the model format {format} in the servingruntimes {first} and {second} in namespace {namespace}"
)
"""Recorded of KServe 0.20.0."""


def test_two_runtimes_with_one_priority_are_refused_as_by_kserve(custom: Any, namespace: str) -> None:
    def runtime(name: str, **entry: Any) -> Object:
        found = find_runtime("reference").serving_runtime(name)
        found["spec"]["supportedModelFormats"] = [{"name": "mine", "version": "1", "autoSelect": True, **entry}]
        return found

    def create(item: Object) -> None:
        custom.create_namespaced_custom_object("serving.kserve.io", "v1alpha1", namespace, "servingruntimes", item)

    create(runtime("first", priority=1))
    with pytest.raises(ApiException) as caught:
        create(runtime("second", priority=1))
    assert caught.value.status == 403
    said = json.loads(caught.value.body)["message"]
    assert said == REFUSED.format(format="mine", first="first", second="second", namespace=namespace)
    create(runtime("second", priority=2))
    create(runtime("third", autoSelect=False, priority=1))
    create({**find_runtime("reference").serving_runtime("ours"), "metadata": {"name": "ours"}})
    create({**find_runtime("reference").serving_runtime("ours-grpc", grpc=True), "metadata": {"name": "ours-grpc"}})


def test_a_second_port_is_refused_as_by_knative(custom: Any, namespace: str, deploy: Deploy, identity: Any) -> None:
    model = {
        "modelFormat": {"name": "servecert-identity"},
        "protocolVersion": "v2",
        "storageUri": f"file://{identity.artifacts}",
        "ports": [{"containerPort": 8081, "name": "h2c", "protocol": "TCP"}],
    }
    deploy("two", wait=False, model=model)
    status = wait_until(
        lambda: (get_isvc(custom, namespace, "two").get("status") or {}).get("modelStatus"), what="what is wrong"
    )
    message = status["lastFailureInfo"]["message"]
    assert "more than one container port is set: spec.template.spec.containers[*].ports" in message


def test_probes_go_to_the_port_that_is_routed_to(
    custom: Any, core: Any, namespace: str, identity: Any, deploy: Deploy
) -> None:
    """As in Knative: HTTP/1 to a port that speaks h2c fails, so the pod is never ready."""
    runtime = find_runtime("reference").serving_runtime("h2c")
    (container,) = runtime["spec"]["containers"]
    container["ports"] = [{"containerPort": 8081, "name": "h2c", "protocol": "TCP"}]
    custom.create_namespaced_custom_object("serving.kserve.io", "v1alpha1", namespace, "servingruntimes", runtime)
    model = {
        "modelFormat": {"name": "servecert-identity"},
        "runtime": "h2c",
        "protocolVersion": "v2",
        "storageUri": f"file://{identity.artifacts}",
    }
    deploy("probed", wait=False, model=model)

    def unhealthy() -> list[str]:
        events = core.list_namespaced_event(namespace).items
        return [item.message for item in events if item.reason == "Unhealthy" and "eadiness" in item.message]

    assert wait_until(unhealthy, what="a probe that fails")
    assert condition_of(get_isvc(custom, namespace, "probed"), "Ready").get("status") != "True"
