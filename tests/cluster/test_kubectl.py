"""kubectl, unchanged, against the embedded API."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import yaml

from runtimes.catalog import BuiltModel
from tests.cluster.conftest import Deploy, Kubectl, isvc_manifest
from tests.helpers import tool, wait_until


def test_apply_wait_get_logs_describe_and_delete(kubectl: Kubectl, namespace: str, identity: BuiltModel) -> None:
    manifest = yaml.safe_dump(isvc_manifest("echo", namespace, f"file://{identity.artifacts}"))
    assert "created" in kubectl("apply", "-f", "-", stdin=manifest).stdout
    kubectl("-n", namespace, "wait", "--for=condition=Ready", "isvc/echo", "--timeout=60s")
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=manifest).stdout
    head, row = kubectl("-n", namespace, "get", "isvc").stdout.splitlines()
    assert head.split()[:3] == ["NAME", "URL", "READY"]
    assert row.split()[:3] == ["echo", f"http://echo.{namespace}.example.com", "True"]
    pods = kubectl("-n", namespace, "get", "pods").stdout
    assert "1/1" in pods
    assert "Running" in pods
    selector = "serving.kserve.io/inferenceservice=echo"
    assert "listens on" in kubectl("-n", namespace, "logs", "-l", selector, "-c", "kserve-container").stdout
    summary = json.loads(kubectl("get", "--raw", "/api/v1/nodes/servecert-local/proxy/stats/summary").stdout)
    (used,) = [item for item in summary["pods"] if item["podRef"]["namespace"] == namespace]
    assert used["cpu"]["usageCoreNanoSeconds"] > 10**7
    assert used["memory"]["workingSetBytes"] > 20 << 20
    described = kubectl("-n", namespace, "describe", "isvc", "echo").stdout
    assert "InferenceServiceReady" in described
    events = kubectl("-n", namespace, "get", "events", "-o", "json").stdout
    reasons = {item["reason"] for item in json.loads(events)["items"]}
    assert {"Scheduled", "Pulled", "Created", "Started", "InferenceServiceReady"} <= reasons
    kubectl("-n", namespace, "delete", "isvc", "echo", "--timeout=60s")
    wait_until(lambda: "No resources" in kubectl("-n", namespace, "get", "pods").stderr, what="the end of the pods")


def test_events_of_a_pods_end_are_recorded(kubectl: Kubectl, deploy: Any, namespace: str) -> None:
    deploy("short")
    kubectl("-n", namespace, "delete", "isvc", "short")

    def killed() -> bool:
        items = json.loads(kubectl("-n", namespace, "get", "events", "-o", "json").stdout)["items"]
        return any(item["reason"] == "Killing" for item in items)

    wait_until(killed, what="a Killing event")


def test_validation_names_the_unknown_field(kubectl: Kubectl, namespace: str) -> None:
    manifest = isvc_manifest("typo", namespace, "file:///nowhere", minReplica=2)
    refused = kubectl("apply", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(manifest), ok=False)
    assert refused.returncode != 0
    assert "minReplica" in refused.stderr


def test_explain_and_api_resources_work(kubectl: Kubectl) -> None:
    assert "minReplicas" in kubectl("explain", "isvc.spec.predictor").stdout
    assert "isvc" in kubectl("api-resources", "--api-group=serving.kserve.io").stdout


def test_patch_label_annotate_and_edit_by_replace(kubectl: Kubectl, namespace: str) -> None:
    # The create commands send protobuf.
    kubectl("-n", namespace, "create", "configmap", "settings", "--from-literal=a=1")
    kubectl("-n", namespace, "create", "secret", "generic", "key", "--from-literal=token=abc")
    kubectl("-n", namespace, "create", "serviceaccount", "robot")
    kubectl("-n", namespace, "create", "service", "clusterip", "front", "--tcp=80:8080")
    assert kubectl("-n", namespace, "get", "secret", "key", "-o", "jsonpath={.data.token}").stdout == "YWJj"
    assert (
        kubectl("-n", namespace, "get", "svc", "front", "-o", "jsonpath={.spec.ports[0].targetPort}").stdout == "8080"
    )
    kubectl("-n", namespace, "patch", "configmap", "settings", "--type=merge", "-p", '{"data":{"b":"2"}}')
    kubectl("-n", namespace, "label", "configmap", "settings", "tier=front")
    kubectl("-n", namespace, "annotate", "configmap", "settings", "note=x")
    found = json.loads(kubectl("-n", namespace, "get", "cm", "-l", "tier=front", "-o", "json").stdout)["items"][0]
    assert found["data"] == {"a": "1", "b": "2"}
    assert found["metadata"]["annotations"]["note"] == "x"


def test_server_side_apply(kubectl: Kubectl, namespace: str) -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ssa", "namespace": namespace}}
    first = yaml.safe_dump({**manifest, "data": {"a": "1"}})
    assert "serverside-applied" in kubectl("apply", "--server-side", "-f", "-", stdin=first).stdout
    other = yaml.safe_dump({**manifest, "data": {"a": "2"}})
    clash = kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=other, ok=False)
    assert "conflict" in clash.stderr.lower()


def test_logs_follow_until_the_pod_ends(cluster: Any, kubectl: Kubectl, deploy: Any, namespace: str) -> None:
    deploy("talk")
    selector = "serving.kserve.io/inferenceservice=talk"
    pod = kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "name").stdout.strip()
    with subprocess.Popen(
        [tool("kubectl"), "-n", namespace, "logs", "-f", pod, "-c", "kserve-container"],
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert "listens on" in following.stdout.readline()
        assert following.poll() is None
        kubectl("-n", namespace, "delete", "isvc", "talk")
        assert "drained" in following.stdout.read()
        assert following.wait(20) == 0


def test_a_pods_port_is_reached_through_the_api(kubectl: Kubectl, deploy: Deploy, namespace: str) -> None:
    deploy("proxied")
    pod = kubectl("get", "pods", "-n", namespace, "-o", "jsonpath={.items[0].metadata.name}").stdout
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy"
    assert "servecert_inference_requests_total" in kubectl("get", "--raw", f"{path}/metrics").stdout
    missing = kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/none:8080/proxy/metrics", ok=False)
    assert missing.returncode != 0
    assert "not found" in missing.stderr
