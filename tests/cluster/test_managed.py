"""kind, GKE, EKS and AKS, with executables that stand in for their tools: what is called, in which order, and what is
left when something goes wrong anywhere."""

from __future__ import annotations

import contextlib
import json
import signal
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.commands import Command, run
from cluster.local.provider import LocalCluster
from cluster.model import Made
from cluster.providers.managed import ManagedCluster, plan_create, plan_delete
from harness.base.errors import ClusterError, DeployError, ScenarioError, UsageError
from harness.target.endpoint import Endpoint
from harness.target.protocol.messages import MESSAGES
from scenarios.engine import deployment
from scenarios.file.reading import load_cluster
from tests.cluster.standins import StandIns
from tests.helpers import ROOT, SERVECERT, free_port, grpc_server, processes_mentioning, servecert, wait_until

TOOLS = ("kind", "gcloud", "gke-gcloud-auth-plugin", "eksctl", "az", "aws", "helm", "kubectl")
NODES = {"type": "m", "min": 1, "max": 3}
SPECS: dict[str, dict[str, Any]] = {
    "kind": {"provider": "kind", "http_port": 18080},
    "gke": {"provider": "gke", "project": "p", "location": "us-central1-a", "nodes": NODES},
    "eks": {"provider": "eks", "region": "eu-west-1", "nodes": NODES},
    "aks": {"provider": "aks", "location": "westeurope", "nodes": NODES},
}
CREATES = {"kind": "kind create cluster", "gke": "clusters create", "eks": "eksctl create cluster", "aks": "aks create"}
DELETES = {"kind": "kind delete", "gke": "clusters delete", "eks": "eksctl delete", "aks": "group delete"}


@pytest.fixture
def standins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path / "tools").install(*TOOLS)


def write_spec(tmp_path: Path, provider: str, /, **changes: Any) -> str:
    path = tmp_path / f"{provider}.yaml"
    path.write_text(yaml.safe_dump({"cluster": {**SPECS[provider], **changes}}))
    return str(path)


def spec(provider: str, **changes: Any) -> Made:
    settings = [f"cluster={json.dumps({**SPECS[provider], **changes})}"]
    found = load_cluster(None, settings)
    assert found.provider == provider
    return found  # type: ignore[return-value]


def create(provider: str, **changes: Any) -> list[Command]:
    return plan_create(spec(provider, **changes), Path("/d"), 0.0)


def option(command: Command, name: str) -> str:
    return command.argv[command.argv.index(name) + 1]


# What would be run


def test_gke_with_gpus() -> None:
    gpu = {"type": "g2", "accelerator": "nvidia-l4", "min": 0, "max": 2, "spot": True, "zones": ["a", "b"]}
    commands = create("gke", gpu={**gpu, "per_node": 2, "shared_by": 4}, labels={"team": "ml"}, kubernetes="1.33")
    cluster, pool, credentials = commands[:3]
    assert cluster.argv[:4] == ("gcloud", "container", "clusters", "create")
    assert option(cluster, "--cluster-version") == "1.33"
    assert "team=ml" in option(cluster, "--labels").split(",")
    assert (option(cluster, "--min-nodes"), option(cluster, "--max-nodes")) == ("1", "3")
    assert option(pool, "--accelerator").split(",") == [
        *("type=nvidia-l4", "count=2", "gpu-driver-version=latest"),
        *("gpu-sharing-strategy=time-sharing", "max-shared-clients-per-gpu=4"),
    ]
    assert option(pool, "--node-taints") == "nvidia.com/gpu=present:NoSchedule"
    assert option(pool, "--node-locations") == "a,b"
    assert "--spot" in pool.argv
    assert credentials.environment == {"KUBECONFIG": "/d/kubeconfig"}
    mig = create("gke", gpu={**gpu, "mig": "1g.10gb"})[1]
    assert "gpu-partition-size=1g.10gb" in option(mig, "--accelerator")
    assert plan_delete(spec("gke"), Path("/d"))[0].argv[:5] == ("gcloud", "container", "clusters", "delete", "default")


def test_eks_config_file() -> None:
    gpu = {"type": "p4d.24xlarge", "min": 0, "max": 1, "per_node": 8, "mig": "1g.5gb", "zones": ["eu-west-1a"]}
    commands = create("eks", gpu=gpu, profile="work", kubernetes="1.33.2")
    config = yaml.safe_load(commands[0].stdin)
    assert config["metadata"]["version"] == "1.33"
    assert config["metadata"]["tags"]["servecert-cluster"] == "default"
    nodes, gpus = config["managedNodeGroups"]
    assert (nodes["minSize"], nodes["maxSize"]) == (1, 3)
    assert gpus["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    assert gpus["labels"] == {"nvidia.com/mig.config": "all-1g.5gb"}
    assert gpus["propagateASGTags"] is True
    assert gpus["availabilityZones"] == ["eu-west-1a"]
    assert commands[0].environment == {"AWS_PROFILE": "work"}
    installed = [option(command, "--install") for command in commands if command.argv[0] == "helm"]
    assert "gpu-operator" in installed, "without it no pod gets a GPU"
    assert "cluster-autoscaler" in installed, "without it no group grows"


def test_aks_with_gpus() -> None:
    gpu = {"type": "Standard_NC4as_T4_v3", "min": 0, "max": 2, "spot": True, "shared_by": 2, "labels": {"a": "b"}}
    commands = create("aks", gpu=gpu, subscription="s")
    group, cluster, pool, credentials = commands[:4]
    assert option(group, "--name") == option(cluster, "--resource-group") == "servecert-default"
    assert all(option(command, "--subscription") == "s" for command in commands[:4])
    assert (option(pool, "--priority"), option(pool, "--node-taints")) == ("Spot", "nvidia.com/gpu=present:NoSchedule")
    assert (option(pool, "--min-count"), option(pool, "--max-count")) == ("0", "2")
    assert option(credentials, "--file") == "/d/kubeconfig"
    operator = next(command for command in commands if "gpu-operator" in command.argv)
    assert "devicePlugin.config.name=servecert-time-slicing" in operator.argv
    config = next(command.stdin for command in commands if "kind: ConfigMap" in command.stdin)
    sliced = yaml.safe_load(list(yaml.safe_load_all(config))[1]["data"]["any"])
    assert sliced["sharing"]["timeSlicing"]["resources"] == [{"name": "nvidia.com/gpu", "replicas": 2}]


def test_kind_maps_its_ingress_to_loopback() -> None:
    commands = create("kind", workers=2, load_images=["own:1", "other.tar"])
    config = yaml.safe_load(commands[0].stdin)
    mapping = config["nodes"][0]["extraPortMappings"][0]
    assert (mapping["hostPort"], mapping["listenAddress"]) == (18080, "127.0.0.1")
    assert [node["role"] for node in config["nodes"]] == ["control-plane", "worker", "worker"]
    assert option(commands[0], "--image") == "kindest/node:v1.34.0"
    assert [command.argv[2:4] for command in commands[1:3]] == [
        ("docker-image", "own:1"),
        ("image-archive", "other.tar"),
    ]
    service = yaml.safe_load(commands[-1].stdin)
    assert service["spec"]["ports"][0]["nodePort"] == mapping["containerPort"]
    assert service["spec"]["selector"] == {"app": "3scale-kourier-gateway"}


@pytest.mark.parametrize(
    ("mode", "network", "expected"),
    [
        ("Knative", "kourier", ["cert-manager", "knative-operator", "kserve-crd", "kserve-resources"]),
        ("Knative", "istio", ["cert-manager", "istio-base", "istiod", "istio-ingressgateway", "knative-operator"]),
        ("Standard", "gateway-api", ["cert-manager", "eg", "kserve-crd", "kserve-resources", "kserve-runtime-configs"]),
        ("Standard", "istio", ["cert-manager", "istio-base", "istiod", "kserve-crd", "kserve-resources"]),
    ],
)
def test_what_is_installed_and_in_which_order(mode: str, network: str, expected: list[str]) -> None:
    commands = create("kind", install={"mode": mode, "network": network})
    helm = [command for command in commands if command.argv[0] == "helm"]
    assert [option(command, "--install") for command in helm][: len(expected)] == expected
    assert all("--wait" in command.argv for command in helm)
    kserve = next(command for command in helm if "kserve-resources" in command.argv)
    assert f"kserve.controller.deploymentMode={mode}" in kserve.argv
    assert ("kserve.controller.gateway.disableIstioVirtualHost=true" in kserve.argv) is (network == "kourier")
    assert any(command.argv[3:5] == ("rollout", "status") for command in commands), "a roll-out is waited for"
    assert all(command.does for command in commands)


def test_a_cluster_without_internet(tmp_path: Path) -> None:
    """Charts lie in a folder, and helm takes every image from the mirror by a plugin, which is written first."""
    install = {"charts": str(tmp_path), "images": "registry.example/mirror", "mode": "Standard"}
    commands = plan_create(spec("kind", install=install), tmp_path, 0.0)
    assert not any("https://" in part or "oci://" in part for command in commands for part in command.argv)
    helm = [command for command in commands if command.argv[0] == "helm"]
    assert f"{tmp_path}/cert-manager-v1.17.0.tgz" in helm[0].argv
    assert {option(command, "--post-renderer") for command in helm} == {"servecert-images"}
    first = commands.index(helm[0])
    (prepare,) = [command for command in commands[:first] if "cluster.install.images" in command.argv]
    subprocess.run(prepare.argv, check=True, cwd=ROOT)
    place = Path(helm[0].environment["HELM_PLUGINS"].split(":")[-1])
    plugin = yaml.safe_load((place / "servecert-images" / "plugin.yaml").read_text())
    assert (plugin["apiVersion"], plugin["type"], plugin["runtime"]) == ("v1", "postrenderer/v1", "subprocess")
    (command,) = plugin["runtimeConfig"]["platformCommand"]
    chart = (
        "spec: {containers: [{image: 'quay.io/jetstack/c:v1'}]}\n---\n"
        'kind: ConfigMap\ndata: {agent: \'{"image": "kserve/agent:v1"}\', other: "no image here: {"}\n---\n'
        "kind: ConfigMap\ndata: {config: 'shutdown: {image: \"docker.io/envoyproxy/gateway:v1\"}'}\n"
    )
    rendered = subprocess.run(
        [command["command"], *command["args"]], input=chart, capture_output=True, text=True, check=True, cwd=ROOT
    )
    pod, config, envoy = yaml.safe_load_all(rendered.stdout)
    assert pod["spec"]["containers"][0]["image"] == "registry.example/mirror/jetstack/c:v1"
    assert json.loads(config["data"]["agent"]) == {"image": "registry.example/mirror/kserve/agent:v1"}
    assert config["data"]["other"] == "no image here: {"
    (found,) = yaml.safe_load(envoy["data"]["config"]).values()
    assert found == {"image": "registry.example/mirror/envoyproxy/gateway:v1"}
    gateway = next(command for command in helm if "eg" in command.argv)
    assert any(part.startswith("global.images.envoyProxy.image=") for part in gateway.argv), "no chart names it"


def test_a_mirror_needs_helm_4(standins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", standins.environment()["PATH"])
    install = {"images": "registry.example/mirror"}
    standins.rule({"match": "version", "stdout": "v3.19.0"})
    with pytest.raises(UsageError, match=r"needs Helm 4, found v3\.19\.0.*hooks"):
        create("kind", install=install)
    standins.rule({"match": "version", "stdout": "v4.2.4"}, {"match": "HELM_PLUGINS", "stdout": "/own/plugins"})
    helm = [command for command in create("kind", install=install) if command.argv[0] == "helm"]
    assert {command.environment["HELM_PLUGINS"] for command in helm} == {"/own/plugins:/d/helm-plugins"}


@pytest.mark.parametrize(
    ("provider", "changes", "words"),
    [
        ("gke", {"nodes": {**NODES, "min": 4}}, "min <= max"),
        ("gke", {"cost_ceiling": 5}, "price_per_hour of nodes"),
        ("gke", {"cost_ceiling": 5, "nodes": {**NODES, "price_per_hour": 1.0}}, "could cost 12.00"),
        ("gke", {"gpu": {"type": "g2"}}, "gpu.accelerator"),
        ("gke", {"install": {"components": ["gpu-operator"]}}, "GKE has its own driver"),
        ("aks", {"nodes": {**NODES, "spot": True}}, "cannot be spot"),
        ("eks", {"nodes": {**NODES, "min": 0}}, "nodes.min must be 1"),
        ("kind", {"install": {"mode": "Knative", "network": "gateway-api"}}, "kourier or istio"),
        ("kind", {"reach": {"kind": "address"}}, "address: HOST:PORT"),
        ("kind", {"colour": "red"}, "allowed here: reach, models"),
        ("kind", {"install": {"chart": "x"}}, "allowed here: mode, network"),
        ("kind", {"provider": "gcp"}, "expected one of local, existing, kind, gke, eks, aks"),
        ("gke", {"name": "Upper"}, "cluster.name"),
        ("gke", {"gpu": {"type": "g2", "accelerator": "x", "mig": "big"}}, "cluster.gpu.mig"),
        ("gke", {"nodes": {**NODES, "taints": ["gpu"]}}, "cluster.nodes.taints"),
    ],
)
def test_mistakes_are_named_before_anything_is_created(
    tmp_path: Path, provider: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ScenarioError) as error:
        load_cluster(Path(write_spec(tmp_path, provider, **changes)))
    assert words in str(error.value)


# Running it


@pytest.mark.parametrize("provider", list(SPECS))
def test_plan_and_dry_run_run_nothing_and_up_runs_what_they_print(
    tmp_path: Path, standins: StandIns, provider: str
) -> None:
    file, environment = write_spec(tmp_path, provider), standins.environment()
    planned = servecert("cluster", "plan", file, "--json", "-", env=environment)
    assert planned.returncode == 0, planned.stderr
    shown = servecert("cluster", "up", file, "--dry-run", env=environment)
    assert standins.calls() == []
    assert not standins.state.exists()
    assert CREATES[provider] in shown.stdout
    assert DELETES[provider] in shown.stdout
    up = servecert("cluster", "up", file, env=environment)
    assert up.returncode == 0, up.stderr
    plan = json.loads(planned.stdout)
    ran, expected = [call["argv"] for call in standins.calls()], [command["argv"] for command in plan["up"]]
    expires = "servecert-expires="  # to the minute
    assert [[part.split(expires)[0] for part in argv] for argv in ran] == [
        [part.split(expires)[0] for part in argv] for argv in expected
    ]
    assert all(call["known"] == [f"{provider}-default.json"] for call in standins.calls()), "written down before"
    assert f"export KUBECONFIG={standins.state}/clusters/{provider}-default/kubeconfig" in up.stdout
    again = servecert("cluster", "up", file, env=environment)
    assert again.returncode == 3
    assert "there is a cluster already" in again.stderr
    standins.forget_calls()
    down = servecert("cluster", "down", f"{provider}-default", env=environment)
    assert down.returncode == 0, down.stderr
    assert [call["argv"] for call in standins.calls()] == [command["argv"] for command in plan["down"]]
    assert "no cluster is known here" in servecert("cluster", "status", "--all", env=environment).stdout


@pytest.mark.parametrize("provider", list(SPECS))
def test_failure_at_any_step_takes_everything_down(
    standins: StandIns, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """Whichever command fails for good: the cluster is deleted, and nothing is left written down."""
    for key, value in {**standins.environment(), "SERVECERT_RETRY_S": "0"}.items():
        monkeypatch.setenv(key, value)
    wanted = spec(provider)
    for number, step in enumerate(plan_create(wanted, Path("/d"), 0.0)):
        if number > 3 and provider != "kind":
            break  # what is installed on it is the same everywhere
        standins.forget_calls()
        broken = {"exit": 7, "stderr": "first line\nquota of GPUs exceeded\n"}
        standins.rule({"match": DELETES[provider]}, {"match": "", "skips": number, **broken})
        with pytest.raises(ClusterError) as error:
            ManagedCluster.create(wanted, threading.Event(), lambda line: None, keep=True)
        text = str(error.value)
        assert text.startswith(f"could not {step.does}: exit code 7"), number
        assert "quota of GPUs exceeded" in text
        log = Path(text.split("all of it: ")[1])
        assert "quota of GPUs exceeded" in log.read_text()
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert DELETES[provider] in standins.lines()[-1], number
        assert list((standins.state / "clusters").iterdir()) == [], number


def test_what_cannot_be_deleted_stays_written_down(tmp_path: Path, standins: StandIns) -> None:
    file, environment = write_spec(tmp_path, "gke"), {**standins.environment(), "SERVECERT_RETRY_S": "0"}
    standins.rule(
        {"match": "clusters create", "exit": 1, "stderr": "no capacity\n"},
        {"match": "clusters delete", "exit": 1, "stderr": "the API is down\n"},
    )
    up = servecert("cluster", "up", file, env=environment)
    assert up.returncode == 3
    assert "no capacity" in up.stderr
    assert "the API is down" in up.stderr
    assert "servecert cluster down gke-default" in up.stderr
    assert sum("clusters delete" in line for line in standins.lines()) == 3, "deletion is tried more than once"
    status = servecert("cluster", "status", "--all", env=environment)
    assert "gke-default: deleting" in status.stdout
    assert "left behind" in status.stdout
    standins.rule(
        {"match": "clusters delete", "exit": 1, "stderr": "ERROR: ResponseError: code=404, message=Not found\n"}
    )
    down = servecert("cluster", "down", "--all", env=environment)
    assert down.returncode == 0, down.stderr + down.stdout
    assert "gke-default is down" in down.stdout
    assert servecert("cluster", "down", "--all", env=environment).returncode == 0, "may be repeated"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_tool_and_takes_the_cluster_down(
    tmp_path: Path, standins: StandIns, number: signal.Signals
) -> None:
    standins.rule({"match": "clusters create", "hangs": True})
    process = subprocess.Popen(
        [*SERVECERT, "cluster", "up", write_spec(tmp_path, "gke")],
        env=standins.environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    call = wait_until(standins.calls)[0]
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3, errors
    assert "it was stopped" in errors
    assert not Path(f"/proc/{call['pid']}").exists()
    assert DELETES["gke"] in standins.lines()[-1]
    assert list((standins.state / "clusters").iterdir()) == []


def test_a_killed_command_leaves_what_down_all_finds(tmp_path: Path, standins: StandIns) -> None:
    standins.rule({"match": "clusters create", "hangs": True})
    environment = standins.environment()
    process = subprocess.Popen(
        [*SERVECERT, "cluster", "up", write_spec(tmp_path, "gke")], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    call = wait_until(standins.calls)[0]
    busy = servecert("cluster", "down", "--all", env=environment)
    assert "left alone: gke-default" in busy.stdout
    assert f"used by process {process.pid}" in busy.stdout
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{call['pid']}").exists(), what="the tool's end")
    assert "left behind" in servecert("cluster", "status", "--all", env=environment).stdout
    shown = servecert("cluster", "down", "--all", "--dry-run", env=environment)
    assert DELETES["gke"] in shown.stdout
    standins.rule()
    standins.forget_calls()
    assert servecert("cluster", "down", "--all", env=environment).returncode == 0
    assert [DELETES["gke"] in line for line in standins.lines()] == [True]
    assert list((standins.state / "clusters").iterdir()) == []


def test_expired_clusters_and_those_that_nobody_knows_here(tmp_path: Path, standins: StandIns) -> None:
    environment = standins.environment()
    servecert("cluster", "up", write_spec(tmp_path, "aks", name="old", ttl="1s"), env=environment)
    file = write_spec(tmp_path, "aks", name="young")
    servecert("cluster", "up", file, env=environment)
    wait_until(lambda: "aks-old: up, expired" in servecert("cluster", "status", "--all", env=environment).stdout)
    assert servecert("cluster", "down", "--expired", env=environment).returncode == 0
    entries = [path.stem for path in (standins.state / "clusters").glob("*.json")]
    assert entries == ["aks-young"]
    listed = json.dumps([{"name": "servecert-young"}, {"name": "servecert-lost"}])
    standins.rule({"match": "az group list", "stdout": listed})
    standins.forget_calls()
    found = servecert("cluster", "down", "--strays", file, env=environment)
    assert found.returncode == 0, found.stderr
    deleted = [line for line in standins.lines() if "group delete" in line]
    assert len(deleted) == 1
    assert "servecert-lost" in deleted[0], "what is known here is no stray"


def test_missing_tools_are_named_before_anything_is_written_down(tmp_path: Path, standins: StandIns) -> None:
    (standins.bin / "gke-gcloud-auth-plugin").unlink()
    (standins.bin / "helm").unlink()
    result = servecert("cluster", "up", write_spec(tmp_path, "gke"), env=standins.environment(alone=True))
    assert result.returncode == 3
    assert "gke-gcloud-auth-plugin (gcloud components install" in result.stderr
    assert "helm (https" in result.stderr
    assert standins.calls() == []
    assert not list((standins.state / "clusters").glob("*.json"))


def test_a_tool_that_takes_too_long_is_ended(tmp_path: Path, standins: StandIns) -> None:
    standins.rule({"match": "az", "hangs": True, "stderr": "still waiting\n"})
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"longer than 0.5 s[\s\S]*still waiting"):
        run(Command((str(standins.bin / "az"), "x"), "wait", timeout_s=0.5), tmp_path / "log", threading.Event())
    assert time.monotonic() - started < 10
    assert not processes_mentioning(str(standins.bin / "az"))


# A whole run: what the stand-in for kind makes is a cluster, the embedded one


def scenario(tmp_path: Path, cluster: LocalCluster, **changes: Any) -> Path:
    _, _, port = cluster.ingress.partition(":")
    data = {
        "name": "on-kind",
        "cluster": {"provider": "kind", "http_port": int(port), **changes},
        "services": {"echo": {"runtime": "reference", "model": "identity"}},
        "steps": [{"suite": "parity", "service": "echo"}],
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_run_on_a_cluster_that_it_makes_itself(tmp_path: Path, standins: StandIns, cluster: LocalCluster) -> None:
    standins.rule({"match": "kind create", "writes": ["--kubeconfig", cluster.kubeconfig.read_text()]})
    out = tmp_path / "run"
    path = scenario(tmp_path, cluster)
    result = servecert("run", str(path), "--out", str(out), env=standins.environment())
    assert result.returncode == 0, result.stderr
    assert "kind create cluster" in (out / "logs" / "cluster.log").read_text()
    assert json.loads((out / "run.json").read_text())["provider"] == "kind"
    assert DELETES["kind"] in standins.lines()[-1]
    assert list((standins.state / "clusters").iterdir()) == []
    token = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]["token"]
    assert not any(token in item.read_text() for item in out.rglob("*.log")), "no secret in a log"


def test_a_run_that_is_interrupted_takes_its_cluster_down(
    tmp_path: Path, standins: StandIns, cluster: LocalCluster
) -> None:
    standins.rule({"match": "helm upgrade", "hangs": True})
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*SERVECERT, "run", str(scenario(tmp_path, cluster)), "--out", str(out)],
        env=standins.environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: any("helm upgrade" in line for line in standins.lines()))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert DELETES["kind"] in standins.lines()[-1]
    assert list((standins.state / "clusters").iterdir()) == []


def test_a_run_says_first_what_it_would_do(tmp_path: Path, standins: StandIns, cluster: LocalCluster) -> None:
    result = servecert("run", str(scenario(tmp_path, cluster)), "--dry-run", env=standins.environment())
    assert result.returncode == 0, result.stderr
    assert "kind create cluster" in result.stdout
    assert "kind: InferenceService" in result.stdout
    assert "parity on echo" in result.stdout
    assert standins.calls() == []


async def test_an_ingress_that_nobody_listens_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "INGRESS_S", 0.8)
    address = f"127.0.0.1:{free_port()}"
    endpoint = Endpoint("echo", "r", f"http://{address}", "echo", host="echo.ns.example.com", grpc_address=address)
    for port, at in (("http", f"http://{address}"), ("grpc", address)):
        words = rf"echo is ready, and the ingress at {at} does not answer for echo.ns"
        with pytest.raises(DeployError, match=words):
            await deployment.through_ingress(endpoint, port, 60.0)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def model_ready(*answers: bool) -> AsyncIterator[tuple[Endpoint, list[bool]]]:
    """A server whose model is ready as the answers say, the last for ever; and what it said."""
    said: list[bool] = []

    async def ready(request: Any, context: Any) -> Any:
        said.append(answers[min(len(said), len(answers) - 1)])
        return MESSAGES["ModelReadyResponse"](ready=said[-1])

    async with grpc_server("ModelReady", ready) as address:
        yield Endpoint("echo", "r", f"http://{address}", "echo", grpc_address=address), said


async def test_a_model_behind_a_port_that_only_connects_may_be_loaded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes of a service that exposes gRPC say no more than that its port is open."""
    monkeypatch.setattr(deployment, "INGRESS_S", 0.2)
    async with model_ready(False, False, True) as (endpoint, said):
        await deployment.through_ingress(endpoint, "grpc", 60.0)
        assert said == [False, False, True]
    async with model_ready(False) as (endpoint, said):
        with pytest.raises(DeployError, match=r"ModelReady says that echo is not ready; still so 0\.6 s after"):
            await deployment.through_ingress(endpoint, "grpc", 0.6)
        assert len(said) >= 2
