"""From an InferenceService to processes and back: statuses, probes, restarts, draining, rolling over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.local.provider import LocalCluster
from harness.base.protocols import Protocol
from harness.load.arrivals import due_times, steady
from harness.load.job import Job, Request
from harness.load.runner import StageResult, run_stage
from harness.target.golden import read_golden
from harness.target.protocol.grpc_client import infer_request
from harness.target.protocol.messages import SERVICE
from harness.target.protocol.rest import json_body, json_request
from runtimes.catalog import BuiltModel
from tests.cluster.conftest import Deploy, condition_of, get_isvc, ready_isvc
from tests.helpers import wait_until


def pods_of(core: Any, namespace: str, name: str) -> list[Any]:
    selector = f"serving.kserve.io/inferenceservice={name}"
    return list(core.list_namespaced_pod(namespace, label_selector=selector).items)


def process_of(pod: Any) -> psutil.Process:
    """The container's main process: who listens on the pod's HTTP port."""
    port = json.loads(pod.metadata.annotations["local.servecert.io/ports"])["http"]
    for connection in psutil.net_connections("tcp"):
        if connection.laddr.port == port and connection.status == "LISTEN":
            return psutil.Process(connection.pid)
    raise AssertionError(f"nobody listens on {port}")


def pod_condition(pod: Any, kind: str) -> Any:
    return next(item for item in pod.status.conditions if item.type == kind)


def test_status_of_a_ready_service_has_what_kserve_says(deploy: Deploy, namespace: str) -> None:
    isvc = deploy("status")
    status = isvc["status"]
    for kind in (
        "Ready",
        "PredictorReady",
        "IngressReady",
        "PredictorRouteReady",
        "PredictorConfigurationReady",
        "RoutesReady",
        "LatestDeploymentReady",
    ):
        assert condition_of(isvc, kind)["status"] == "True", kind
    assert condition_of(isvc, "Stopped")["status"] == "False"
    assert status["url"] == f"http://status.{namespace}.example.com"
    assert status["address"]["url"].endswith(f".{namespace}.svc.cluster.local")
    predictor = status["components"]["predictor"]
    assert predictor["latestCreatedRevision"] == predictor["latestReadyRevision"] == "status-predictor-00001"
    assert predictor["traffic"] == [{"latestRevision": True, "percent": 100, "revisionName": "status-predictor-00001"}]
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"
    assert status["modelStatus"]["states"] == {"activeModelState": "Loaded", "targetModelState": "Loaded"}
    assert status["deploymentMode"] == "Knative"


def test_pod_conditions_carry_their_transition_times_in_order(deploy: Deploy, core: Any, namespace: str) -> None:
    deploy("times")
    (pod,) = pods_of(core, namespace, "times")
    times = [pod_condition(pod, kind).last_transition_time for kind in ("PodScheduled", "Initialized", "Ready")]
    assert times == sorted(times)
    assert all(item.status == "True" for item in pod.status.conditions)
    container = pod.status.container_statuses[0]
    assert container.ready
    assert container.state.running.started_at <= pod_condition(pod, "Ready").last_transition_time
    assert pod.status.init_container_statuses[0].state.terminated.exit_code == 0


def test_pods_listen_on_loopback_only(deploy: Deploy, core: Any, namespace: str) -> None:
    deploy("closed")
    process = process_of(pods_of(core, namespace, "closed")[0])
    listening = {
        item.laddr.ip.removeprefix("::ffff:") for item in process.net_connections("tcp") if item.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}


def test_min_replicas_are_started_and_share_the_requests(
    cluster: LocalCluster, deploy: Deploy, core: Any, namespace: str
) -> None:
    deploy("pair", minReplicas=2)
    pods = pods_of(core, namespace, "pair")
    assert len(pods) == 2
    with httpx.Client(base_url=f"http://{cluster.ingress}", headers={"Host": f"pair.{namespace}.example.com"}) as http:
        for _ in range(20):
            assert http.get("/v2/models/pair").status_code == 200
    for pod in pods:
        process = process_of(pod)
        assert process.is_running()


def test_crashing_container_backs_off_and_says_why(
    deploy: Deploy, core: Any, custom: Any, namespace: str, tmp_path: Path
) -> None:
    deploy("broken", wait=False, uri=f"file://{tmp_path}")  # a directory without model.json

    def looping() -> Any:
        pods = pods_of(core, namespace, "broken")
        if not pods or not pods[0].status.container_statuses:
            return None
        status = pods[0].status.container_statuses[0]
        waiting = status.state.waiting
        return status if waiting and waiting.reason == "CrashLoopBackOff" and status.restart_count >= 2 else None

    status = wait_until(looping, 30, "CrashLoopBackOff")
    assert status.last_state.terminated.exit_code == 1
    log = core.read_namespaced_pod_log(
        pods_of(core, namespace, "broken")[0].metadata.name, namespace, container="kserve-container", previous=True
    )
    assert "model.json" in log
    isvc = get_isvc(custom, namespace, "broken")
    model = isvc["status"]["modelStatus"]
    assert model["transitionStatus"] == "BlockedByFailedLoad"
    assert model["lastFailureInfo"]["reason"] == "ModelLoadFailed"
    assert model["lastFailureInfo"]["exitCode"] == 1
    assert "model.json" in model["lastFailureInfo"]["message"]
    assert condition_of(isvc, "Ready")["status"] == "False"


def test_storage_that_does_not_exist_fails_the_init_step(deploy: Deploy, core: Any, namespace: str) -> None:
    deploy("nowhere", wait=False, uri="file:///no/such/directory")

    def failed() -> bool:
        pods = pods_of(core, namespace, "nowhere")
        statuses = (pods[0].status.init_container_statuses or []) if pods else []
        return bool(statuses and statuses[0].state.waiting and statuses[0].state.waiting.reason == "CrashLoopBackOff")

    wait_until(failed, what="Init:CrashLoopBackOff")
    log = core.read_namespaced_pod_log(
        pods_of(core, namespace, "nowhere")[0].metadata.name, namespace, container="storage-initializer"
    )
    assert "/no/such/directory" in log


def test_model_format_without_a_runtime_is_an_invalid_spec(deploy: Deploy, custom: Any, namespace: str) -> None:
    deploy("alien", wait=False, model={"modelFormat": {"name": "cobol"}})
    failure = wait_until(
        lambda: get_isvc(custom, namespace, "alien").get("status", {}).get("modelStatus", {}).get("lastFailureInfo"),
        what="a failure",
    )
    assert failure["reason"] == "NoSupportingRuntime"


def test_unready_probe_keeps_a_pod_out_of_the_route(
    cluster: LocalCluster, deploy: Deploy, core: Any, namespace: str
) -> None:
    probe = {"httpGet": {"path": "/v2/models/other/ready", "port": 8080}, "periodSeconds": 1}
    deploy("lazy", wait=False, model={"readinessProbe": probe})
    wait_until(
        lambda: [p for p in pods_of(core, namespace, "lazy") if p.status.phase == "Running"], what="a running pod"
    )

    def unhealthy() -> bool:
        return any(
            event.reason == "Unhealthy" and "404" in event.message
            for event in core.list_namespaced_event(namespace).items
        )

    wait_until(unhealthy, what="an Unhealthy event")
    (pod,) = pods_of(core, namespace, "lazy")
    assert pod_condition(pod, "Ready").status == "False"
    answer = httpx.get(f"http://{cluster.ingress}/v2/health/live", headers={"Host": f"lazy.{namespace}.example.com"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "no pod is ready" in answer.json()["error"]


def test_failed_liveness_restarts_the_container(deploy: Deploy, core: Any, namespace: str) -> None:
    probe = {
        "httpGet": {"path": "/no-such-path", "port": 8080},
        "periodSeconds": 1,
        "failureThreshold": 2,
        "initialDelaySeconds": 2,
    }
    deploy("frail", model={"livenessProbe": probe})

    def restarted() -> bool:
        statuses = pods_of(core, namespace, "frail")[0].status.container_statuses
        return bool(statuses and statuses[0].restart_count >= 1)

    wait_until(restarted, what="a restart")
    reasons = {event.reason for event in core.list_namespaced_event(namespace).items}
    assert {"Unhealthy", "Killing"} <= reasons


def test_killed_process_is_restarted_and_serves_again(
    cluster: LocalCluster, deploy: Deploy, core: Any, custom: Any, namespace: str
) -> None:
    deploy("phoenix")
    process_of(pods_of(core, namespace, "phoenix")[0]).kill()

    def back() -> bool:
        status = pods_of(core, namespace, "phoenix")[0].status.container_statuses[0]
        return bool(status.restart_count == 1 and status.ready)

    wait_until(back, what="the restart")
    assert pods_of(core, namespace, "phoenix")[0].status.container_statuses[0].last_state.terminated.exit_code == 137
    ready_isvc(custom, namespace, "phoenix")
    host = {"Host": f"phoenix.{namespace}.example.com"}
    wait_until(
        lambda: httpx.get(f"http://{cluster.ingress}/v2/models/phoenix/ready", headers=host).status_code == 200,
        what="an answer",
    )


def test_process_that_ignores_sigterm_is_killed_after_its_grace_period(
    deploy: Deploy, core: Any, custom: Any, namespace: str
) -> None:
    deploy("stubborn", terminationGracePeriodSeconds=2)
    process = process_of(pods_of(core, namespace, "stubborn")[0])
    os.kill(process.pid, signal.SIGSTOP)  # a stopped process takes no SIGTERM
    custom.delete_namespaced_custom_object("serving.kserve.io", "v1beta1", namespace, "inferenceservices", "stubborn")
    wait_until(lambda: not pods_of(core, namespace, "stubborn"), 15, "the end of the pod")
    assert not process.is_running()


def _job(cluster: LocalCluster, protocol: Protocol, host: str, identity: BuiltModel) -> tuple[Job, list[bytes]]:
    model = host.partition(".")[0]
    inputs = read_golden(identity.golden)[0].inputs
    if protocol == "grpc":
        body = infer_request(model, inputs).SerializeToString()
        request = Request(f"/{SERVICE}/ModelInfer", {}, "body")
    else:
        body = json_body(json_request(inputs))
        request = Request(f"/v2/models/{model}/infer", {"Content-Type": "application/json"}, "body")
    address, _, port = cluster.ingress.rpartition(":")
    job = Job(protocol, address, int(port), host, (request,), timeout_s=20)
    return job, [body]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_changed_spec_rolls_over_without_losing_a_request(
    cluster: LocalCluster,
    deploy: Deploy,
    core: Any,
    custom: Any,
    namespace: str,
    identity: BuiltModel,
    protocol: Protocol,
) -> None:
    deploy("rolling", annotations={"autoscaling.knative.dev/window": "6s"})
    first = pods_of(core, namespace, "rolling")[0].metadata.name
    job, bodies = _job(cluster, protocol, f"rolling.{namespace}.example.com", identity)
    due = due_times("poisson", steady(60, 6), seed=1)

    async def under_load() -> StageResult:
        running = asyncio.create_task(run_stage(job, bodies, due, lambda progress: None))
        await asyncio.sleep(1.5)  # some of the load meets the old revision
        change = {"spec": {"predictor": {"model": {"env": [{"name": "COLOUR", "value": "blue"}]}}}}
        await asyncio.to_thread(
            custom.patch_namespaced_custom_object,
            "serving.kserve.io",
            "v1beta1",
            namespace,
            "inferenceservices",
            "rolling",
            change,
        )
        return await running

    result = asyncio.run(under_load())
    isvc = ready_isvc(custom, namespace, "rolling")
    predictor = isvc["status"]["components"]["predictor"]
    assert predictor["latestReadyRevision"] == "rolling-predictor-00002"
    assert predictor["previousRolledoutRevision"] == "rolling-predictor-00001"
    wait_until(lambda: [p.metadata.name for p in pods_of(core, namespace, "rolling")] != [first], what="the new pod")
    wait_until(lambda: len(pods_of(core, namespace, "rolling")) == 1, 30, "the end of the old pod")
    assert result.columns["error"].size == 360
    assert not result.columns["error"].any(), "a request was lost in the roll-over"


def test_new_revision_that_never_becomes_ready_gets_no_traffic(
    cluster: LocalCluster, deploy: Deploy, custom: Any, namespace: str, tmp_path: Path
) -> None:
    deploy("steady")
    change = {"spec": {"predictor": {"model": {"storageUri": f"file://{tmp_path}"}}}}
    custom.patch_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", namespace, "inferenceservices", "steady", change
    )

    def blocked() -> bool:
        status = get_isvc(custom, namespace, "steady")["status"]
        return bool(status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad")

    wait_until(blocked, 30, "BlockedByFailedLoad")
    status = get_isvc(custom, namespace, "steady")["status"]
    assert status["components"]["predictor"]["latestCreatedRevision"] == "steady-predictor-00002"
    assert status["components"]["predictor"]["traffic"][0]["revisionName"] == "steady-predictor-00001"
    host = {"Host": f"steady.{namespace}.example.com"}
    for _ in range(10):
        assert httpx.get(f"http://{cluster.ingress}/v2/models/steady/ready", headers=host).status_code == 200


@pytest.mark.parametrize("extra", [["--drain-seconds", "3"]])
def test_model_args_reach_the_process(deploy: Deploy, core: Any, namespace: str, extra: list[str]) -> None:
    deploy("argued", model={"args": extra})
    command = process_of(pods_of(core, namespace, "argued")[0]).cmdline()
    assert command[-2:] == extra
