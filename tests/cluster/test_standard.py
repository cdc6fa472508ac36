"""Standard mode: deployments, canaries beside them, rolling updates, and the horizontal pod autoscaler."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from cluster.local.controllers.hpa import Hpa, wish
from cluster.local.controllers.podtemplate import InvalidSpec
from cluster.local.controllers.standard import canary_replicas, check
from cluster.local.provider import LocalCluster
from harness.load.arrivals import due_times, steady
from harness.load.runner import StageResult, run_stage
from runtimes.catalog import BuiltModel
from tests.cluster.conftest import Kubectl, condition_of, get_isvc, isvc_manifest, ready_isvc
from tests.cluster.test_lifecycle import _job, pods_of
from tests.helpers import wait_until

STANDARD = {"serving.kserve.io/deploymentMode": "RawDeployment"}
WHERE = ("serving.kserve.io", "v1beta1")


# Decisions: pure


def test_wishes_follow_the_ratio_and_ignore_what_is_within_a_tenth() -> None:
    assert wish(3, 3, 160, 80) == 6
    assert wish(3, 3, 85, 80) == 3
    assert wish(3, 3, 10, 80) == 1
    assert wish(2, 0, 500, 80) == 2


def test_up_is_limited_by_a_period_and_down_waits_for_the_highest_wish() -> None:
    hpa = Hpa(stabilization_s=60)
    assert hpa.decide(0, 2, 50, 1, 100) == 6
    assert hpa.decide(15, 6, 50, 1, 100) == 12
    assert hpa.decide(30, 12, 3, 1, 100) == 12
    assert hpa.decide(70, 12, 3, 1, 100) == 12
    assert hpa.decide(80, 12, 3, 1, 100) == 3
    assert hpa.decide(200, 3, 1, 2, 100) == 2


def isvc(canary: list[dict[str, Any]], **predictor: Any) -> dict[str, Any]:
    return {"metadata": {"name": "m"}, "spec": {"predictor": predictor, "canary": canary}}


def test_canary_replicas_are_its_own_or_its_share() -> None:
    entry = {"predictor": {"name": "v2"}, "trafficPercent": 25}
    assert canary_replicas({"minReplicas": 3}, entry) == 1
    assert canary_replicas({"minReplicas": 8}, entry) == 2
    assert canary_replicas({"minReplicas": 8}, {**entry, "trafficPercent": 0}) == 0
    assert (
        canary_replicas({"minReplicas": 8}, {"predictor": {"name": "v2", "minReplicas": 5}, "trafficPercent": 5}) == 5
    )


@pytest.mark.parametrize(
    ("canaries", "message"),
    [
        ([{"predictor": {}, "trafficPercent": 5}], "name is required"),
        (
            [{"predictor": {"name": "a"}, "trafficPercent": 60}, {"predictor": {"name": "b"}, "trafficPercent": 50}],
            "110",
        ),
        ([{"predictor": {"name": "a", "maxReplicas": 3}, "trafficPercent": 5}], "must not set maxReplicas"),
        ([{"predictor": {"name": "a"}, "trafficPercent": 5}] * 2, "taken already"),
        ([{"predictor": {"name": "a", "minReplicas": 2}, "trafficPercent": 5}], "more minReplicas"),
    ],
)
def test_canaries_that_kserve_does_not_admit(canaries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        check(isvc(canaries))


# On the cluster


def create(custom: Any, namespace: str, name: str, built: BuiltModel, **predictor: Any) -> None:
    manifest = isvc_manifest(name, namespace, f"file://{built.artifacts}", **predictor)
    manifest["metadata"]["annotations"] = STANDARD
    custom.create_namespaced_custom_object(*WHERE, namespace, "inferenceservices", manifest)


def patch(custom: Any, namespace: str, name: str, spec: dict[str, Any]) -> None:
    custom.patch_namespaced_custom_object(*WHERE, namespace, "inferenceservices", name, {"spec": spec})


def test_a_standard_service_is_a_deployment(
    kubectl: Kubectl, custom: Any, core: Any, namespace: str, identity: BuiltModel, cluster: LocalCluster
) -> None:
    create(custom, namespace, "plain", identity, minReplicas=2)
    found = ready_isvc(custom, namespace, "plain")
    assert found["status"]["deploymentMode"] == "Standard"
    assert found["status"]["modelStatus"]["transitionStatus"] == "UpToDate"
    line = kubectl("get", "deploy", "-n", namespace).stdout.splitlines()[1].split()
    assert line[:4] == ["plain-predictor", "2/2", "2", "2"]
    assert kubectl("get", "hpa", "plain-predictor", "-n", namespace, "-o", "jsonpath={.spec.minReplicas}").stdout == "2"
    kubectl("rollout", "status", "deployment/plain-predictor", "-n", namespace, "--timeout=10s")
    host = {"Host": f"plain.{namespace}.example.com"}
    assert httpx.get(f"http://{cluster.ingress}/v2/models/plain/ready", headers=host).status_code == 200
    custom.delete_namespaced_custom_object(*WHERE, namespace, "inferenceservices", "plain")
    wait_until(lambda: not pods_of(core, namespace, "plain"), 20, "the end of the pods")
    assert "plain" not in kubectl("get", "deploy,hpa", "-n", namespace).stdout


def test_a_rolling_update_loses_no_request(
    custom: Any, core: Any, namespace: str, identity: BuiltModel, cluster: LocalCluster
) -> None:
    create(custom, namespace, "rolled", identity)
    ready_isvc(custom, namespace, "rolled")
    (first,) = pods_of(core, namespace, "rolled")
    job, bodies = _job(cluster, "rest", f"rolled.{namespace}.example.com", identity)
    due = due_times("poisson", steady(60, 5), seed=1)

    async def under_load() -> StageResult:
        running = asyncio.create_task(run_stage(job, bodies, due, lambda progress: None))
        await asyncio.sleep(1.0)
        change = {"predictor": {"model": {"env": [{"name": "COLOUR", "value": "blue"}]}}}
        await asyncio.to_thread(patch, custom, namespace, "rolled", change)
        return await running

    stage = asyncio.run(under_load())
    assert not stage.columns["error"].any(), "a request was lost in the rolling update"
    (second,) = wait_until(
        lambda: (found := pods_of(core, namespace, "rolled")) and len(found) == 1 and found, 20, "one pod"
    )
    assert second.metadata.name != first.metadata.name


def test_a_canary_beside_a_deployment_and_its_promotion_without_a_restart(
    custom: Any, core: Any, namespace: str, identity: BuiltModel, cluster: LocalCluster, kubectl: Kubectl
) -> None:
    create(custom, namespace, "split", identity)
    ready_isvc(custom, namespace, "split")
    second = {"args": ["--model-version", "2"]}
    canary = {"predictor": {"name": "v2", "model": second}, "trafficPercent": 40}
    patch(custom, namespace, "split", {"canary": [canary]})

    def ready() -> bool:
        states = get_isvc(custom, namespace, "split")["status"].get("canaryStatuses") or [{}]
        return bool(states[0].get("ready"))

    wait_until(ready, 30, "the canary")
    assert condition_of(get_isvc(custom, namespace, "split"), "CanaryPredictorReady")["status"] == "True"
    body = json.loads(_job(cluster, "rest", f"split.{namespace}.example.com", identity)[1][0])

    def versions(count: int) -> Counter[str]:
        headers = {"Host": f"split.{namespace}.example.com"}
        with httpx.Client(base_url=f"http://{cluster.ingress}", headers=headers) as http:
            url = "/v2/models/split/infer"
            return Counter(http.post(url, json=body).json()["model_version"] for _ in range(count))

    seen = versions(300)
    assert set(seen) == {"1", "2"}
    assert 70 < seen["2"] < 170  # 120 expected, six standard deviations
    pod = next(pod for pod in pods_of(core, namespace, "split") if "-v2-" in pod.metadata.name)
    model = get_isvc(custom, namespace, "split")["spec"]["predictor"]["model"]
    patch(custom, namespace, "split", {"canary": None, "predictor": {"name": "v2", "model": {**model, **second}}})
    wait_until(lambda: len(pods_of(core, namespace, "split")) == 1, 30, "the end of the former pods")
    assert pods_of(core, namespace, "split")[0].metadata.name == pod.metadata.name
    assert versions(20) == {"2": 20}
    assert "split-predictor " not in kubectl("get", "deploy", "-n", namespace).stdout


def test_a_canary_that_cannot_load_gets_nothing(
    custom: Any, namespace: str, identity: BuiltModel, cluster: LocalCluster
) -> None:
    create(custom, namespace, "guarded", identity)
    ready_isvc(custom, namespace, "guarded")
    wrong = {"predictor": {"name": "bad", "model": {"storageUri": "file:///no/such/directory"}}, "trafficPercent": 50}
    patch(custom, namespace, "guarded", {"canary": [wrong]})
    wait_until(
        lambda: condition_of(get_isvc(custom, namespace, "guarded"), "CanaryPredictorReady").get("status") == "False",
        20,
        "a canary that is not ready",
    )
    headers = {"Host": f"guarded.{namespace}.example.com"}
    for _ in range(20):
        answer = httpx.get(f"http://{cluster.ingress}/v2/models/guarded/ready", headers=headers)
        assert answer.status_code == 200


def test_cpu_brings_pods(
    custom: Any, core: Any, namespace: str, identity: BuiltModel, cluster: LocalCluster, kubectl: Kubectl
) -> None:
    requests = {"resources": {"requests": {"cpu": "50m"}}}
    create(custom, namespace, "hot", identity, maxReplicas=3, scaleTarget=50, scaleMetric="cpu", model=requests)
    ready_isvc(custom, namespace, "hot")
    job, bodies = _job(cluster, "rest", f"hot.{namespace}.example.com", identity)
    due = due_times("constant", steady(120, 8), seed=1)
    stage: list[StageResult] = []

    async def load() -> None:
        stage.append(await run_stage(job, bodies, due, lambda progress: None))

    asyncio.run(load())
    found = kubectl("get", "hpa", "hot-predictor", "-n", namespace).stdout
    replicas = kubectl("get", "deploy", "hot-predictor", "-n", namespace, "-o", "jsonpath={.spec.replicas}").stdout
    assert int(replicas) > 1, found
    assert not stage[0].columns["error"].any()
