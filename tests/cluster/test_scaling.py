"""The autoscaler at work: settings, the rules for zero, and pods that come and go with the load."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.local.api.faults import parse
from cluster.local.controllers.autoscaler import RevisionScaler
from cluster.local.provider import LocalCluster
from harness.kubernetes.kpa_settings import Settings, check_config, duration_s, settings_of
from harness.load.arrivals import due_times, steady
from harness.load.runner import StageResult, run_stage
from runtimes.catalog import BuiltModel
from tests.cluster.conftest import Deploy, Kubectl, get_isvc
from tests.cluster.test_lifecycle import _job, pods_of
from tests.helpers import wait_until

PREFIX = "autoscaling.knative.dev/"
FAST = {PREFIX + "window": "6s"}


def annotated(**values: str) -> dict[str, str]:
    return {PREFIX + key.replace("_", "-"): value for key, value in values.items()}


def test_defaults_are_knatives() -> None:
    settings = settings_of({}, {})
    assert settings.spec.target_value == pytest.approx(70)
    assert settings.spec.total_value == 100
    assert settings.spec.target_burst_capacity == 211
    assert (settings.spec.stable_window_s, settings.spec.panic_window_s) == (60, 6)
    assert (settings.least, settings.most, settings.initial, settings.grace_s) == (0, 0, 1, 30)


def test_annotations_win_over_the_config_map() -> None:
    config = {"stable-window": "30s", "container-concurrency-target-default": "10", "max-scale": "4"}
    shared = settings_of({}, config)
    assert (shared.spec.stable_window_s, shared.spec.panic_window_s, shared.spec.target_value) == (30, 3, 7)
    assert shared.most == 4
    own = settings_of(annotated(window="6s", target="2", target_utilization_percentage="50", max_scale="9"), config)
    assert (own.spec.stable_window_s, own.spec.panic_window_s, own.spec.target_value) == (6, 1, 1)
    assert own.most == 9


def test_container_concurrency_bounds_the_target() -> None:
    assert settings_of({}, {}, 8).spec.total_value == 8
    assert settings_of(annotated(target="20"), {}, 8).spec.total_value == 8
    assert settings_of(annotated(target="4"), {}, 8).spec.total_value == 4
    assert settings_of(annotated(metric="rps", target="20"), {}, 8).spec.target_value == pytest.approx(14)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (annotated(window="5s"), "window: expected whole seconds between 6s and 1h"),
        (annotated(target="none"), "autoscaling.knative.dev/target"),
        (annotated(metric="cpu"), "expected concurrency or rps"),
        (annotated(target_burst_capacity="-2"), "expected -1"),
        (annotated(min_scale="3", max_scale="2"), "at most max-scale"),
    ],
)
def test_settings_that_mean_nothing_are_refused(annotations: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(annotations, {})


def test_an_unknown_key_of_the_config_map_is_named() -> None:
    with pytest.raises(ValueError, match="stable-windows"):
        check_config({"stable-windows": "60s"})
    check_config({"stable-window": "1m30s", "_example": "anything", "pod-autoscaler-class": "x"})


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1m30s", 90), ("0", 0), ("1.5h", 5400), ("250ms", 0.25)])
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


# The rules for zero, in simulated time


def settings(**values: Any) -> Settings:
    return settings_of(annotated(window="6s", **values), {"scale-to-zero-grace-period": "4s"})


def simulate(scaler: RevisionScaler, load: list[float]) -> list[int]:
    """``load`` by the second; pods are ready a second after they are wanted."""
    replicas = []
    ready = 0
    for second, value in enumerate(load):
        now_s = float(second)
        scaler.record(now_s, value, ready)
        if second % 2 == 0:
            scaler.decide(now_s, ready)
        scaler.follow(now_s, ready)
        replicas.append(scaler.replicas)
        ready = scaler.replicas
    return replicas


def test_an_idle_service_goes_to_zero_after_its_window_and_comes_back() -> None:
    scaler = RevisionScaler(settings(), 0.0)
    replicas = simulate(scaler, [1.0] * 10 + [0.0] * 20 + [3.0] * 4)
    assert replicas[:10] == [1] * 10
    gone = replicas.index(0)
    assert 10 + 6 <= gone <= 10 + 6 + 4 + 4, "the window, and at most the grace period and two decisions"
    assert replicas[-1] == 1


def test_retention_keeps_the_last_pod() -> None:
    scaler = RevisionScaler(settings(scale_to_zero_pod_retention_period="20s"), 0.0)
    replicas = simulate(scaler, [1.0] * 4 + [0.0] * 45)
    assert 4 + 6 + 20 <= replicas.index(0) <= 4 + 6 + 20 + 4


def test_min_scale_holds_while_the_route_leads_there() -> None:
    scaler = RevisionScaler(settings(min_scale="2"), 0.0)
    assert simulate(scaler, [0.0] * 30)[-1] == 2
    scaler.change(scaler.settings, reachable=False, faults=scaler.faults)
    for second in range(30, 60):
        scaler.record(float(second), 0.0, scaler.replicas)
        scaler.decide(float(second), scaler.replicas)
        scaler.follow(float(second), scaler.replicas)
    assert scaler.replicas == 0


def test_initial_scale_is_where_it_starts() -> None:
    scaler = RevisionScaler(settings(initial_scale="3"), 0.0)
    replicas = simulate(scaler, [1.0] * 12)
    assert replicas[0] == 3
    assert replicas[-1] == 1


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("autoscaler-frozen", lambda sound, broken: set(broken) == {1}),
        ("metrics-lost", lambda sound, broken: max(broken) == 1),
        ("autoscaler-overshoots=3x", lambda sound, broken: max(broken) >= 2 * max(sound)),
        ("autoscaler-slow=6s", lambda sound, broken: broken.index(max(sound)) >= sound.index(max(sound)) + 5),
        ("autoscaler-oscillates", lambda sound, broken: len({*broken[15:30]}) > len({*sound[15:30]})),
        ("never-zero", lambda sound, broken: min(sound) == 0 and min(broken) == 1),
    ],
)
def test_faults_of_the_autoscaler_show(fault: str, check: Any) -> None:
    load = [1.0] * 4 + [8.0] * 30 + [0.0] * 40
    sound = simulate(RevisionScaler(settings(target="2"), 0.0), load)
    broken = simulate(RevisionScaler(settings(target="2"), 0.0, faults=parse(fault)), load)
    assert max(sound) == 6
    assert check(sound, broken), (sound, broken)


# On the cluster


def test_cold_requests_wait_and_none_is_lost(cluster: LocalCluster, deploy: Deploy, core: Any, namespace: str) -> None:
    deploy("sleepy", minReplicas=0, annotations=FAST)
    wait_until(lambda: not pods_of(core, namespace, "sleepy"), 30, "zero pods")
    host = f"sleepy.{namespace}.example.com"

    async def wake() -> list[int]:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            url = f"http://{cluster.ingress}/v2/models/sleepy"
            answers = await asyncio.gather(*(http.get(url, headers={"Host": host}) for _ in range(20)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(wake()) == [200] * 20
    assert len(pods_of(core, namespace, "sleepy")) == 1


def test_load_brings_pods_and_loses_none_when_they_go(
    cluster: LocalCluster, deploy: Deploy, core: Any, custom: Any, namespace: str, identity: BuiltModel
) -> None:
    fault = {"local.servecert.io/faults": "latency=60x"}
    deploy("elastic", scaleTarget=1, maxReplicas=3, annotations={**FAST, **fault})
    job, bodies = _job(cluster, "rest", f"elastic.{namespace}.example.com", identity)
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            pods = [pod for pod in pods_of(core, namespace, "elastic") if not pod.metadata.deletion_timestamp]
            seen.add(len(pods))
            time.sleep(0.2)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        busy = due_times("poisson", steady(80, 8), seed=1)
        calm = 8_000_000_000 + due_times("poisson", steady(3, 10), seed=2)
        stage: StageResult = asyncio.run(run_stage(job, bodies, np.concatenate([busy, calm]), lambda progress: None))
    finally:
        over.set()
        watching.join()
    assert max(seen) == 3
    assert not stage.columns["error"].any(), "a request was lost while pods came and went"
    wait_until(lambda: len(pods_of(core, namespace, "elastic")) == 1, 30, "one pod again")


def test_the_config_map_is_followed_and_a_wrong_one_is_not(
    kubectl: Kubectl, deploy: Deploy, core: Any, namespace: str
) -> None:
    patch = json.dumps({"data": {"min-scale": "2"}})
    deploy("bounded", minReplicas=0)
    name = "bounded-predictor-00001"

    def desired() -> str:
        path = "jsonpath={.status.desiredReplicas}"
        return kubectl("get", "revision", name, "-n", namespace, "-o", path).stdout

    # min-scale of the InferenceService is an annotation and wins; that of the ConfigMap is for revisions without one.
    kubectl("annotate", "revision", name, "-n", namespace, PREFIX + "min-scale-")
    kubectl("patch", "configmap", "config-autoscaler", "-n", "knative-serving", "--type=merge", "-p", patch)
    try:
        wait_until(lambda: desired() == "2", 20, "two pods")
        wrong = json.dumps({"data": {"min-scale": "many"}})
        kubectl("patch", "configmap", "config-autoscaler", "-n", "knative-serving", "--type=merge", "-p", wrong)

        def refused() -> bool:
            events = core.list_namespaced_event("knative-serving").items
            return any(event.reason == "InvalidConfig" and "many" in event.message for event in events)

        wait_until(refused, 10, "an event that names the mistake")
        assert desired() == "2"
    finally:
        right = json.dumps({"data": {"min-scale": "0"}})
        kubectl("patch", "configmap", "config-autoscaler", "-n", "knative-serving", "--type=merge", "-p", right)


def test_canary_promotion_and_rollback_on_the_cluster(
    cluster: LocalCluster, deploy: Deploy, custom: Any, namespace: str
) -> None:
    deploy("release")

    def change(**predictor: Any) -> None:
        custom.patch_namespaced_custom_object(
            "serving.kserve.io",
            "v1beta1",
            namespace,
            "inferenceservices",
            "release",
            {"spec": {"predictor": predictor}},
        )

    def traffic() -> dict[str, int]:
        predictor = get_isvc(custom, namespace, "release")["status"]["components"]["predictor"]
        return {item["revisionName"][-1]: item["percent"] for item in predictor["traffic"]}

    change(canaryTrafficPercent=20, model={"env": [{"name": "COLOUR", "value": "blue"}]})
    wait_until(lambda: traffic() == {"2": 20, "1": 80}, 30, "the canary")
    change(canaryTrafficPercent=None)
    wait_until(lambda: traffic() == {"2": 100}, 10, "promotion")
    predictor = get_isvc(custom, namespace, "release")["status"]["components"]["predictor"]
    assert predictor["latestRolledoutRevision"].endswith("2")
    assert predictor["previousRolledoutRevision"].endswith("1")
    change(canaryTrafficPercent=0)
    wait_until(lambda: traffic() == {"2": 0, "1": 100}, 10, "rollback")
    host = {"Host": f"release.{namespace}.example.com"}
    assert httpx.get(f"http://{cluster.ingress}/v2/models/release/ready", headers=host).status_code == 200


def test_an_unknown_fault_is_an_invalid_spec(deploy: Deploy, custom: Any, namespace: str) -> None:
    deploy("typo", wait=False, annotations={"local.servecert.io/faults": "slow-lod"})
    failure = wait_until(
        lambda: get_isvc(custom, namespace, "typo").get("status", {}).get("modelStatus", {}).get("lastFailureInfo"),
        what="a failure",
    )
    assert "slow-lod" in failure["message"]
