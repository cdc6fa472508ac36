"""A cluster that is there already: the embedded one, asked as any other by its kubeconfig."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cluster.local.api.podmarks import PORTS_ANNOTATION
from cluster.local.provider import LocalCluster
from cluster.model import Reach
from cluster.providers.existing import minified
from cluster.reach.ingress import open_ingress
from harness.base.errors import ClusterError, UsageError
from harness.kubernetes.events import Happened, more_often
from harness.kubernetes.kserve import KServe
from harness.kubernetes.kube import Kube
from harness.results.records import CheckResult, Outcome
from harness.target.endpoint import Endpoint
from runtimes.catalog import build_model
from scenarios.engine.deployment import with_port
from scenarios.engine.preflight import Answer, preflight
from scenarios.file.reading import load_scenario
from scenarios.model.services import Variant
from scenarios.suites.parity.suite import parity
from scenarios.suites.shared.deployed import Deployed
from tests.cluster.conftest import Deploy
from tests.cluster.standins import StandIns
from tests.helpers import ROOT, SERVECERT, free_port, servecert, wait_until


def reach(**fields: Any) -> Reach:
    return Reach.model_validate(fields)


def scenario(tmp_path: Path, cluster: LocalCluster, /, **changes: Any) -> Path:
    section = {
        "provider": "existing",
        "kubeconfig": str(cluster.kubeconfig),
        "reach": {"kind": "address", "address": cluster.ingress},
        **changes.pop("cluster", {}),
    }
    data = {
        "name": "there",
        "cluster": section,
        "namespace": changes.pop("namespace", "existing"),
        "services": {"echo": {"runtime": "reference", "model": "identity", **changes.pop("service", {})}},
        "steps": [{"suite": "parity", "service": "echo"}],
        **changes,
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def kube(cluster: LocalCluster) -> Kube:
    return Kube(cluster.kubeconfig)


@contextmanager
def objects(kube: Kube, *wanted: tuple[str, dict[str, Any]]) -> Iterator[None]:
    """Creates objects (path of the collection, object), and deletes them."""
    made = []
    try:
        for where, item in wanted:
            kube.call("POST", where, item)
            made.append(f"{where}/{item['metadata']['name']}")
        yield
    finally:
        for where in reversed(made):
            kube.call("DELETE", where)


# Kubeconfigs


def write(path: Path, **data: Any) -> Path:
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **data}))
    return path


def test_one_context_of_several_files(tmp_path: Path) -> None:
    first = write(
        tmp_path / "one",
        **{"current-context": "a"},
        contexts=[{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        clusters=[{"name": "c", "cluster": {"server": "https://one", "certificate-authority": "ca.pem"}}],
    )
    second = write(
        tmp_path / "two",
        **{"current-context": "b"},
        contexts=[{"name": "b", "context": {"cluster": "c", "user": "u"}}],
        clusters=[{"name": "c", "cluster": {"server": "https://two"}}],
        users=[{"name": "u", "user": {"token": "t"}}, {"name": "other", "user": {"token": "secret"}}],
    )
    found = minified([first, second], None)
    assert found["current-context"] == "a"
    assert found["clusters"][0]["cluster"]["server"] == "https://one", "the first holds, as with kubectl"
    assert found["clusters"][0]["cluster"]["certificate-authority"] == str(tmp_path / "ca.pem")
    assert found["users"] == [{"name": "u", "user": {"token": "t"}}], "no secret of others"
    assert minified([first, second, tmp_path / "none"], "b")["current-context"] == "b"
    with pytest.raises(UsageError, match=r"no context 'z'.*there are a, b"):
        minified([first, second], "z")
    with pytest.raises(UsageError, match="names user 'u', which is not"):
        minified([first], None)
    with pytest.raises(UsageError, match="cannot read the kubeconfig"):
        minified([tmp_path / "none"], None)


# Runs


def test_a_run_leaves_the_cluster_as_it_was(tmp_path: Path, cluster: LocalCluster, kube: Kube) -> None:
    out = tmp_path / "run"
    result = servecert("run", str(scenario(tmp_path, cluster)), "--out", str(out))
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert any(event["what"] == "preflight" for event in events)
    assert kube.list("serving.kserve.io/v1beta1", "inferenceservices", "existing") == []
    assert kube.version(), "it is still there"
    token = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]["token"]
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert not any(token.encode() in content for content in written), "no secret belongs into a run directory"


def test_what_the_cluster_lacks_is_said_before_anything_is_deployed(tmp_path: Path, cluster: LocalCluster) -> None:
    gpu = {"predictor": {"model": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}}
    path = scenario(tmp_path, cluster, service=gpu)
    result = servecert("run", str(path), "--out", str(tmp_path / "run"))
    assert result.returncode == 3
    assert "the cluster cannot run this scenario" in result.stderr
    assert "1 × nvidia.com/gpu" in result.stderr
    assert "does nvidia-smi show them?" in result.stderr, "the embedded cluster takes them from this machine"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"context": "nowhere"}, 2, "no context 'nowhere'"),
        ({"kubeconfig": "/none"}, 2, "cannot read the kubeconfig /none"),
    ],
)
def test_a_kubeconfig_that_is_none(
    tmp_path: Path, cluster: LocalCluster, change: dict[str, Any], code: int, words: str
) -> None:
    result = servecert("run", str(scenario(tmp_path, cluster, cluster=change)), "--out", str(tmp_path / "run"))
    assert result.returncode == code, result.stderr
    assert words in result.stderr


def other_kubeconfig(tmp_path: Path, cluster: LocalCluster, **user: str) -> dict[str, str]:
    data = yaml.safe_load(cluster.kubeconfig.read_text())
    data["users"][0]["user"] = user or data["users"][0]["user"]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(data))
    return {"kubeconfig": str(path)}


def test_credentials_that_have_expired(tmp_path: Path, cluster: LocalCluster) -> None:
    change = other_kubeconfig(tmp_path, cluster, token="expired")
    result = servecert("run", str(scenario(tmp_path, cluster, cluster=change)), "--out", str(tmp_path / "run"))
    assert result.returncode == 3
    assert "the credentials are not valid (any more); log in again" in result.stderr


def test_an_api_server_that_is_away_for_a_while(tmp_path: Path, cluster: LocalCluster) -> None:
    """A proxy before the API refuses for some seconds, in the middle of a run: the run goes on afterwards."""
    host, _, port = cluster.state["api"].removeprefix("https://").partition(":")
    front = _Front(host, int(port))
    try:
        data = yaml.safe_load(cluster.kubeconfig.read_text())
        data["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{front.port}"
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(data))
        wanted = scenario(tmp_path, cluster, cluster={"kubeconfig": str(path)}, namespace="away")
        process = subprocess.Popen(
            [*SERVECERT, "run", str(wanted), "--out", str(tmp_path / "run")],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        kube = Kube(cluster.kubeconfig)
        wait_until(lambda: kube.list("serving.kserve.io/v1beta1", "inferenceservices", "away"))
        front.away.set()
        assert front.refused.wait(20), "the run asked the API while it was away"
        front.away.clear()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    finally:
        front.close()


class _Front:
    """A TCP proxy that can be away: connections are closed then, and new ones refused."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.away, self.refused = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.away.is_set():
                self.refused.set()
                connection.close()
                continue
            upstream = socket.create_connection(self._target)
            for one, other in ((connection, upstream), (upstream, connection)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        source.settimeout(0.1)
        while not self.away.is_set():
            try:
                data = source.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                break
            try:
                target.sendall(data)
            except OSError:
                break
        source.close()
        target.close()

    def close(self) -> None:
        self.away.set()
        self._listener.close()


# Where the ingress is


def service(name: str, kind: str, **more: Any) -> dict[str, Any]:
    ports = [{"name": "status", "port": 15021, "nodePort": 30021}, {"name": "http2", "port": 80, "nodePort": 30080}]
    spec = {"type": kind, "ports": [*ports, {"name": "https", "port": 443, "nodePort": 30443}]}
    return {"metadata": {"name": name}, "spec": spec, **more}


def configured(namespace: str, name: str, **data: str) -> tuple[str, dict[str, Any]]:
    return f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": name}, "data": data}


def in_namespace(name: str) -> tuple[str, dict[str, Any]]:
    return "/api/v1/namespaces", {"metadata": {"name": name}}


ADDRESSED = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}


def test_istio_behind_a_load_balancer(cluster: LocalCluster, kube: Kube) -> None:
    where = "/api/v1/namespaces/istio-system/services"
    network = configured(
        "knative-serving", "config-network", **{"ingress-class": "istio.ingress.networking.knative.dev"}
    )
    balanced = service("istio-ingressgateway", "LoadBalancer")
    with objects(kube, in_namespace("istio-system"), network, (where, balanced)):
        kube.call("PUT", f"{where}/istio-ingressgateway/status", _with_status(kube, where, "istio-ingressgateway"))
        assert open_ingress(cluster.kubeconfig, reach()).address == "192.0.2.7:80"
        assert open_ingress(cluster.kubeconfig, reach(tls=True)).address == "192.0.2.7:443"


def _with_status(kube: Kube, where: str, name: str) -> dict[str, Any]:
    return {**kube.call("GET", f"{where}/{name}"), **ADDRESSED}


def test_kourier_on_a_port_of_a_node(cluster: LocalCluster, kube: Kube) -> None:
    network = configured(
        "knative-serving", "config-network", **{"ingress-class": "kourier.ingress.networking.knative.dev"}
    )
    where = "/api/v1/namespaces/knative-serving/services"
    node = {"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "ExternalIP", "address": "192.0.2.9"}]}}
    with objects(
        kube, network, (where, service("kourier", "NodePort")), ("/api/v1/nodes", {"metadata": {"name": "n1"}})
    ):
        live = kube.call("GET", "/api/v1/nodes/n1")
        kube.call("PUT", "/api/v1/nodes/n1/status", {**live, "status": node["status"]})
        found = open_ingress(cluster.kubeconfig, reach(kind="node-port"))
        assert found.address == "192.0.2.9:30080"
        assert "port 30080 of node n1" in found.found


def test_a_gateway_of_envoy(cluster: LocalCluster, kube: Kube) -> None:
    settings = json.dumps({"enableGatewayApi": True, "kserveIngressGateway": "kserve/my-gateway"})
    labels = {"gateway.envoyproxy.io/owning-gateway-name": "my-gateway"}
    where = "/api/v1/namespaces/envoy-gateway-system/services"
    item = service("envoy-x", "LoadBalancer")
    item["metadata"]["labels"] = labels
    with objects(
        kube,
        configured("kserve", "inferenceservice-config", ingress=settings),
        in_namespace("envoy-gateway-system"),
        (where, item),
    ):
        kube.call("PUT", f"{where}/envoy-x/status", _with_status(kube, where, "envoy-x"))
        assert open_ingress(cluster.kubeconfig, reach()).address == "192.0.2.7:80"


def test_a_forwarded_port_is_closed_again(
    tmp_path: Path, cluster: LocalCluster, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    standins = StandIns(tmp_path / "tools").install("kubectl")
    standins.rule({"match": "port-forward", "stdout": "Forwarding from 127.0.0.1:43210 -> 80\n", "hangs": True})
    monkeypatch.setenv("PATH", standins.environment()["PATH"])
    where = "/api/v1/namespaces/istio-system/services"
    with objects(kube, in_namespace("istio-system"), (where, service("istio-ingressgateway", "ClusterIP"))):
        found = open_ingress(cluster.kubeconfig, reach())
        assert found.address == "127.0.0.1:43210"
        (call,) = standins.calls()
        assert call["argv"][-2:] == ["service/istio-ingressgateway", ":80"]
        assert "--address 127.0.0.1" in call["line"]
        found.close()
        wait_until(lambda: not Path(f"/proc/{call['pid']}").exists())
        standins.rule({"match": "port-forward", "stderr": "error: unable to forward port\n", "exit": 1})
        with pytest.raises(ClusterError, match="did not start: error: unable to forward port"):
            open_ingress(cluster.kubeconfig, reach(kind="port-forward"))


async def test_grpc_of_a_pod_beside_rest_through_the_ingress(
    tmp_path: Path, cluster: LocalCluster, namespace: str, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ports are those of one pod, with one model's name; the forwarded one is closed when the step is over."""
    built = build_model("identity")
    isvc = deploy("echo")
    kserve = KServe(cluster.kubeconfig, namespace)
    (pod,) = await kserve.pods("echo")
    local = json.loads(pod["metadata"]["annotations"][PORTS_ANNOTATION])["grpc"]
    standins = StandIns(tmp_path / "tools").install("kubectl")
    standins.rule({"match": "port-forward", "stdout": f"Forwarding from 127.0.0.1:{local} -> 8081\n", "hangs": True})
    monkeypatch.setenv("PATH", standins.environment()["PATH"])
    host = urlsplit(isvc["status"]["url"]).hostname or ""
    there = Endpoint("echo", "reference", f"http://{cluster.ingress}", "echo", host=host, golden=built.golden)

    async def no_variant(variant: Variant) -> dict[str, Any]:
        raise AssertionError(variant)

    async with with_port(cluster.kubeconfig, Deployed(kserve, there, isvc, no_variant), "grpc", 8081) as endpoint:
        (call,) = standins.calls()
        assert call["argv"][-4:] == ["-n", namespace, f"pod/{pod['metadata']['name']}", ":8081"]
        found = [item async for item in parity(endpoint) if isinstance(item, CheckResult)]
    assert {item.id: item.outcome for item in found}["parity.rest_grpc"] is Outcome.PASSED
    assert all(item.outcome is Outcome.PASSED for item in found)
    wait_until(lambda: not Path(f"/proc/{call['pid']}").exists(), what="the end of the forwarding")


def test_no_ingress_says_where_it_looked(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError, match=r"istio-system/istio-ingressgateway.*cluster.reach"):
        open_ingress(cluster.kubeconfig, reach())
    with pytest.raises(ClusterError, match="a/b does not exist"):
        open_ingress(cluster.kubeconfig, reach(service="a/b"))


# Preflight


def test_preflight_passes_on_a_cluster_that_can(tmp_path: Path, cluster: LocalCluster) -> None:
    result = servecert("preflight", str(scenario(tmp_path, cluster)), "--json", "-")
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["able"] is True
    answers = {item["id"]: item["answer"] for item in found["findings"]}
    assert answers["kubernetes"] == answers["crd.inferenceservices"] == answers["rights"] == "passed"
    assert answers["ingress"] == answers["node.echo"] == "passed"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("node.echo", {"service": {"predictor": {"model": {"resources": {"requests": {"memory": "900Ti"}}}}}}),
        ("gpu.nvidia.com/gpu", {"service": {"predictor": {"model": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}}}),
        ("quota.small", {"namespace": "tight"}),
        ("ingress", {"cluster": {"reach": {"kind": "address", "address": "127.0.0.1:1"}}}),
        ("ingress", {"cluster": {"reach": {}}}),
    ],
)
def test_preflight_notices(
    tmp_path: Path, cluster: LocalCluster, kube: Kube, name: str, changes: dict[str, Any]
) -> None:
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "0", "requests.cpu": "100"}}}
    with objects(kube, in_namespace("tight"), ("/api/v1/namespaces/tight/resourcequotas", quota)):
        found = preflight(load_scenario(scenario(tmp_path, cluster, **changes)), kube)
    failed = {item.id: item for item in found if item.answer is Answer.FAILED}
    assert name in failed
    assert failed[name].fix


def test_preflight_knows_that_nodes_may_be_added(tmp_path: Path, cluster: LocalCluster, kube: Kube) -> None:
    large = {"predictor": {"model": {"resources": {"limits": {"memory": "900Ti", "nvidia.com/gpu": 1}}}}}
    status = {"metadata": {"name": "cluster-autoscaler-status"}, "data": {"status": "autoscalerStatus: Running"}}
    path = "/api/v1/namespaces/kube-system/configmaps"
    with objects(kube, (path, status)):
        found = {item.id: item for item in preflight(load_scenario(scenario(tmp_path, cluster, service=large)), kube)}
    assert found["node.echo"].answer is found["gpu.nvidia.com/gpu"].answer is Answer.UNKNOWN
    assert "the cluster autoscaler may add one" in found["node.echo"].found


class _Bare:
    """What a Kubernetes without KServe answers, and one with few rights."""

    host = "https://bare"

    def __init__(self, version: str = "v1.33.1", *, may: bool | None = False) -> None:
        self._version, self._may = version, may

    def version(self) -> str:
        return self._version

    def serves(self, version: str, plural: str) -> bool:
        return False

    def get(self, *_: str) -> None:
        return None

    def list(self, *_: Any, **__: Any) -> list[Any]:
        raise ClusterError("GET /api/v1/nodes: the Kubernetes API answered 403 Forbidden")

    def may(self, *_: Any) -> bool | None:
        return self._may


def test_preflight_of_a_bare_cluster(tmp_path: Path, cluster: LocalCluster) -> None:
    """GPU-less, KServe-less, without rights: each is said, and what may not be asked is not called a failure."""
    changes = {"faults": ["slow-load=1s"], "predictor": {"minReplicas": 0}}
    loaded = load_scenario(scenario(tmp_path, cluster, service=changes))
    found = {item.id: item for item in preflight(loaded, _Bare("v1.20.0"))}  # type: ignore[arg-type]
    failed = {name for name, item in found.items() if item.answer is Answer.FAILED}
    assert failed == {
        *("kubernetes", "crd.inferenceservices", "crd.servingruntimes", "controller.kserve-controller-manager"),
        *("crd.revisions", "rights", "model.echo", "image.echo", "faults.echo"),
    }
    assert found["room"].answer is Answer.UNKNOWN
    assert "403" in found["room"].found
    assert "create inferenceservices" in found["rights"].found
    silent = preflight(loaded, _Bare(may=None))  # type: ignore[arg-type]
    assert next(item for item in silent if item.id == "rights").answer is Answer.UNKNOWN


def test_preflight_knows_that_one_port_is_routed_to(tmp_path: Path, cluster: LocalCluster) -> None:
    """Load over gRPC needs the one, probes need the other; answers are had by a pod, whichever it is."""

    def of(service: dict[str, Any], *steps: dict[str, Any]) -> dict[str, Any]:
        changes = {"service": service, "steps": [{"service": "echo", **step} for step in steps]}
        loaded = load_scenario(scenario(tmp_path, cluster, **changes))
        found = preflight(loaded, _Bare("v1.33.1"))  # type: ignore[arg-type]
        return {item.id: item.fix for item in found if item.id.startswith("port.")}

    load = {"suite": "load", "rate": "1/s", "duration": "1s"}
    both = [{"suite": "conformance", "profiles": ["rest", "grpc"]}, {"suite": "parity"}]
    compared = {"suite": "compare", "rate": "1/s", "duration": "1s", "against": [{"protocol": "grpc"}]}
    assert of({}, load, *both) == of({"expose": "grpc"}, {**load, "protocol": "grpc"}, *both) == {}
    (fix,) = of({}, {**load, "protocol": "grpc-stream"}).values()
    assert "set services.echo.expose: grpc" in fix
    assert list(of({}, compared)) == list(of({"expose": "grpc"}, compared)) == ["port.1"]
    probes = {"suite": "probes", "protocol": "grpc"}
    (fix,) = of({"expose": "grpc"}, probes).values()
    assert "leave services.echo.expose out" in fix


async def test_the_timeline_is_of_this_run(cluster: LocalCluster, core: Any, namespace: str) -> None:
    """Events stay for an hour, and a service of the run before had the same name."""

    def event(name: str, **more: Any) -> dict[str, Any]:
        about = {"kind": "Pod", "name": name, "namespace": namespace}
        moment = "2026-01-01T00:00:00Z"
        fields = {"reason": "Unhealthy", "message": f"of {name}", "firstTimestamp": moment, "lastTimestamp": moment}
        return {"metadata": {"name": name}, "involvedObject": about, **fields, **more}

    kserve = KServe(cluster.kubeconfig, namespace)
    core.create_namespaced_event(namespace, event("earlier"))
    core.create_namespaced_event(namespace, event("repeated", count=3))
    await kserve.begin_timeline()
    assert await kserve.timeline() == []
    core.create_namespaced_event(namespace, event("later"))
    later = {"count": 5, "lastTimestamp": "2026-01-01T00:01:00Z"}
    before = await kserve.happened("Unhealthy")
    async with kserve.watch_events() as watch:
        known = len(watch.changes)
        core.patch_namespaced_event("repeated", namespace, later)
        again = await watch.until(lambda event: event.pod == "repeated", 10, since=known)
    assert again is not None
    assert (again.type, again.reason, again.event["count"]) == ("MODIFIED", "Unhealthy", 5)
    assert more_often(before, await kserve.happened("Unhealthy")) == [Happened(2, "repeated", "of repeated")]
    found = [(item.object, item.detail, item.wall) for item in await kserve.timeline()]
    assert found == [
        ("pod/later", "of later", "2026-01-01T00:00:00.000+00:00"),
        ("pod/repeated", "of repeated (×2)", "2026-01-01T00:01:00.000+00:00"),
    ]


def test_preflight_without_an_api(tmp_path: Path, cluster: LocalCluster) -> None:
    change = other_kubeconfig(tmp_path, cluster)
    path = Path(change["kubeconfig"])
    path.write_text(path.read_text().replace(cluster.state["api"], f"https://127.0.0.1:{free_port()}"))
    result = servecert("preflight", str(scenario(tmp_path, cluster, cluster=change)))
    assert result.returncode == 3
    assert "does not answer" in result.stderr


# What goes wrong on the way


@pytest.mark.parametrize(
    ("status", "said"), [("Unknown", "was lost (NodeStatusUnknown)"), ("True", "was lost, and is back since 20")]
)
def test_a_node_that_is_lost_during_the_run(
    tmp_path: Path, cluster: LocalCluster, kube: Kube, status: str, said: str
) -> None:
    conditions = [{"type": "Ready", "status": status, "reason": "NodeStatusUnknown"}]
    with objects(kube, ("/api/v1/nodes", {"metadata": {"name": "n2"}})):
        born = datetime.fromisoformat(kube.call("GET", "/api/v1/nodes/n2")["metadata"]["creationTimestamp"])
        wait_until(lambda: datetime.now(UTC) >= born + timedelta(seconds=1))  # it was there before the run
        process = subprocess.Popen(
            [*SERVECERT, "run", str(scenario(tmp_path, cluster, namespace="lost")), "--out", str(tmp_path / "run")],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: kube.list("serving.kserve.io/v1beta1", "inferenceservices", "lost"))
        conditions[0]["lastTransitionTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        live = kube.call("GET", "/api/v1/nodes/n2")
        kube.call("PUT", "/api/v1/nodes/n2/status", {**live, "status": {"conditions": conditions}})
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert f"node n2 {said}" in errors


def test_what_keeps_a_service_from_starting_is_named_and_collected(tmp_path: Path, cluster: LocalCluster) -> None:
    out = tmp_path / "run"
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "nowhere.example/none:1"}]}},
    }
    wanted = {"runtime": None, "model": None, "manifest": manifest, "served_model": "m"}
    steps = [{"suite": "conformance", "service": "echo"}]
    path = scenario(tmp_path, cluster, service=wanted, steps=steps, namespace="broken")
    result = servecert("run", str(path), "--out", str(out))
    assert result.returncode == 3
    assert "InferenceService broken/echo: ErrImagePull" in result.stderr
    assert "nowhere.example/none:1" in result.stderr
    assert "last warning: Pod broken/echo-" in result.stderr
    live = list(yaml.safe_load_all((out / "logs" / "echo.objects.yaml").read_text()))
    assert {item.get("kind", "Pod") for item in live} >= {"InferenceService", "Pod"}
    assert Kube(cluster.kubeconfig).list("serving.kserve.io/v1beta1", "inferenceservices", "broken") == []


def test_time_that_is_over_ends_the_run(tmp_path: Path, cluster: LocalCluster) -> None:
    standins = StandIns(tmp_path / "tools").install("kind")
    standins.rule({"match": "kind create", "writes": ["--kubeconfig", cluster.kubeconfig.read_text()]})
    _, _, port = cluster.ingress.partition(":")
    made = {
        "provider": "kind",
        "http_port": int(port),
        "ttl": "6s",
        "install": None,
        "load_images": ["servecert/reference:1.0.0"],
    }
    steps = [{"suite": "load", "service": "echo", "rate": "5/s", "duration": "5m"}]
    path = scenario(tmp_path, cluster, steps=steps, namespace="ttl")
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**data, "cluster": made}))
    result = servecert("run", str(path), "--out", str(tmp_path / "run"), env=standins.environment())
    assert result.returncode == 3, result.stderr
    assert "time to live of 6 s was over" in result.stderr
    assert "kind delete" in standins.lines()[-1]


def test_what_pods_and_the_api_say_is_told() -> None:
    """Pure: sentences for what no cluster here can do."""
    from harness.kubernetes.apierrors import explain
    from harness.kubernetes.kserve import describe_state, hopeless

    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient nvidia.com/gpu"}
    pod = {"metadata": {"name": "p"}, "spec": {}, "status": {"conditions": [condition]}}
    assert describe_state({}, [pod]) == "unschedulable: 0/3 nodes: insufficient nvidia.com/gpu"
    assert hopeless({}, [pod]) is None, "a node may still be added"
    denied = json.dumps({"message": 'admission webhook "validator.kserve.io" denied the request: minReplicas'})
    assert explain(400, "Bad Request", denied).startswith("the Kubernetes API answered 400 Bad Request: a webhook")
    assert "minReplicas" in explain(400, "Bad Request", denied)
    quota = json.dumps({"message": "pods is forbidden: exceeded quota: small"})
    assert "exceeded quota" in explain(403, "Forbidden", quota)
    assert "log in again" in explain(401, "Unauthorized", "Unauthorized")


def test_an_interruption_while_a_model_is_delivered_takes_away_what_was_begun(
    tmp_path: Path, cluster: LocalCluster
) -> None:
    standins = StandIns(tmp_path / "tools").install("kubectl")
    standins.rule({"match": "apply -f -", "hangs": True})
    path = scenario(tmp_path, cluster, cluster={"models": {"uri": "pvc://models"}, "preflight": False})
    process = subprocess.Popen(
        [*SERVECERT, "run", str(path), "--out", str(tmp_path / "run")],
        env=standins.environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: any("apply" in line for line in standins.lines()), within_s=60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = standins.calls()[-1]
    assert "delete pod/servecert-models" in last["line"]
    assert last["there"], "the pod goes while there is a kubeconfig to say so with"
    assert (tmp_path / "run" / "logs" / "kubectl.log").exists()
