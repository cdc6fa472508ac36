"""What goes onto a bare cluster, as commands of helm and kubectl: pure functions, so that a plan can be read before it
runs.

Every command is safe to repeat, waits for what it installed, and says so. Sources: KServe's own installation for its
0.20 line (versions, charts and values), Knative's operator, Gateway API, NVIDIA's GPU Operator, the OpenTelemetry
operator.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.commands import Command
from cluster.install.images import PLUGIN, rewrite_text
from cluster.model import Aks, Eks, Existing, GpuNodes, Install, Kind, Made
from harness.base.errors import UsageError

INGRESS_NODE_PORT = 31380
"""Where kind's nodes take requests for the ingress."""
GATEWAY = "kserve-ingress-gateway"
Object = dict[str, Any]


@functools.cache
def pinned() -> dict[str, str]:
    found = yaml.safe_load((Path(__file__).parent / "versions.yaml").read_text())
    return {str(key): str(value) for key, value in found.items()}


def versions(install: Install) -> dict[str, str]:
    """The pinned ones, with those that the scenario changes. Raises UsageError for a component that there is not."""
    if unknown := sorted(set(install.versions) - set(pinned())):
        raise UsageError(f"install.versions: no component {', '.join(unknown)}; there are {', '.join(pinned())}")
    return {**pinned(), **install.versions}


def own_plugins() -> str:
    """Where the plugins of the helm on PATH lie; empty without one. Raises UsageError for Helm 3, whose post-renderers
    do not see the images of hooks."""
    answers = []
    for arguments in (("version", "--template", "{{.Version}}"), ("env", "HELM_PLUGINS")):
        try:
            answer = subprocess.run(
                ["helm", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        answers.append(answer.stdout.strip() if answer.returncode == 0 else "")
    version, place = answers
    if re.match(r"v?[0-3]\.", version):
        raise UsageError(
            f"install.images needs Helm 4, found {version}: Helm 3 leaves the images of hooks as they are;"
            " see https://helm.sh/docs/intro/install"
        )
    return place


@dataclass(frozen=True)
class _On:
    """What every command needs to know of the cluster that it is for."""

    install: Install
    kubeconfig: Path
    own_plugins: str = ""
    """Where helm's own lie, beside ours."""

    @property
    def wait(self) -> str:
        return f"{self.install.within:g}s"

    def chart(self, release: str, namespace: str, repository: str, chart: str, version: str, *values: str) -> Command:
        """``repository`` is a chart repository (https), an OCI registry (oci), or the address of the archive itself."""
        argv = ["helm", "upgrade", "--install", release]
        if self.install.charts is not None:
            argv.append(str(self.install.charts / f"{chart}-{version}.tgz"))
        elif repository.endswith(".tgz"):
            argv.append(repository)
        elif repository.startswith("oci://"):
            argv += [f"{repository}/{chart}", "--version", version]
        else:
            argv += [chart, "--repo", repository, "--version", version]
        argv += ["--kubeconfig", str(self.kubeconfig), "--namespace", namespace, "--create-namespace"]
        argv += ["--wait", "--timeout", self.wait]
        for value in values:
            argv += ["--set", value]
        environment: dict[str, str] = {}
        if self.install.images is not None:
            argv += ["--post-renderer", PLUGIN]
            environment["HELM_PLUGINS"] = os.pathsep.join(filter(None, [self.own_plugins, str(self.plugins)]))
        what = f"install {release} {version} and wait for its pods"
        timeout_s = self.install.within + 60
        return Command(tuple(argv), what, environment=environment, timeout_s=timeout_s, attempts=2)

    @property
    def plugins(self) -> Path:
        return self.kubeconfig.parent / "helm-plugins"

    def prepare(self) -> list[Command]:
        """What the charts' commands need."""
        if self.install.images is None:
            return []
        argv = (sys.executable, "-m", "cluster.install.images", self.install.images, "--plugin", str(self.plugins))
        return [Command(argv, "let helm take images from the mirror")]

    def kubectl(self, *arguments: str, does: str, stdin: str = "", attempts: int = 2) -> Command:
        argv = ("kubectl", "--kubeconfig", str(self.kubeconfig), *arguments)
        return Command(argv, does, stdin=stdin, timeout_s=self.install.within + 60, attempts=attempts)

    def apply(self, *objects: Object, does: str) -> Command:
        text = yaml.safe_dump_all(objects, sort_keys=False)
        if self.install.images is not None:
            text = rewrite_text(text, self.install.images)
        # Webhooks that came up a moment ago refuse now and then; applying is safe to repeat.
        return self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", does=does, stdin=text, attempts=4)

    def await_(self, what: str, condition: str, namespace: str = "") -> Command:
        where = ("--namespace", namespace) if namespace else ()
        return self.kubectl(
            *("wait", what, f"--for={condition}", *where, f"--timeout={self.wait}"),
            does=f"wait for {what}: {condition}",
        )

    def rolled_out(self, what: str, namespace: str) -> Command:
        return self.kubectl(
            *("rollout", "status", what, "--namespace", namespace, f"--timeout={self.wait}"),
            does=f"wait for {what} in {namespace}",
        )


def plan_install(install: Install, spec: Made | Existing, kubeconfig: Path) -> list[Command]:
    """Every command, in order. Raises UsageError for versions that there are not."""
    on = _On(install, kubeconfig, own_plugins() if install.images else "")
    version = versions(install)
    gpu = getattr(spec, "gpu", None)
    wanted = list(install.components)
    if gpu is not None and isinstance(spec, Eks | Aks) and "gpu-operator" not in wanted:
        wanted.append("gpu-operator")  # without it nothing on these offers GPUs to pods
    commands = [*on.prepare(), *_cert_manager(on, version)]
    if isinstance(spec, Eks) and any(pool.max > pool.min for pool in spec.pools().values()):
        commands += _cluster_autoscaler(on, version, spec)
    if install.mode == "Knative":
        commands += _knative(on, version, on_kind=isinstance(spec, Kind))
    else:
        commands += _gateway(on, version)
    commands += _kserve(on, version)
    for name in ("runtimes", "gpu-operator", "prometheus", "opentelemetry"):
        if name in wanted:
            commands += _COMPONENTS[name](on, version, spec, gpu)
    if isinstance(spec, Kind):
        commands.append(on.apply(node_port(install), does="open the ingress on the nodes"))
    return commands


def _cert_manager(on: _On, version: dict[str, str]) -> list[Command]:
    where = "https://charts.jetstack.io"
    return [
        on.chart("cert-manager", "cert-manager", where, "cert-manager", version["cert-manager"], "crds.enabled=true")
    ]


def _istio(on: _On, version: dict[str, str], *, gateway: bool, service_type: str = "") -> list[Command]:
    where, number = "https://istio-release.storage.googleapis.com/charts", version["istio"]
    namespace = "istio-system"
    commands = [
        on.chart("istio-base", namespace, where, "base", number, "defaultRevision=default"),
        on.chart("istiod", namespace, where, "istiod", number, "proxy.autoInject=disabled"),
    ]
    if gateway:
        # Without load balancers helm would wait for an address that never comes.
        values = [f"service.type={service_type}"] if service_type else []
        commands.append(on.chart("istio-ingressgateway", namespace, where, "gateway", number, *values))
    return commands


def _knative(on: _On, version: dict[str, str], *, on_kind: bool) -> list[Command]:
    commands: list[Command] = []
    if on.install.layer == "istio":
        commands += _istio(on, version, gateway=True, service_type="ClusterIP" if on_kind else "")
    number = version["knative-operator"]
    archive = f"https://github.com/knative/operator/releases/download/knative-{number}/knative-operator-{number}.tgz"
    commands += [
        on.chart("knative-operator", "knative-operator", archive, "knative-operator", number),
        on.apply(_namespace("knative-serving"), _knative_serving(on, version, on_kind), does="ask for Knative Serving"),
        on.await_("knativeserving/knative-serving", "condition=Ready", "knative-serving"),
    ]
    return commands


def _knative_serving(on: _On, version: dict[str, str], on_kind: bool) -> Object:
    config: Object = {
        # KServe's services are reached under this domain; svc.cluster.local is not exposed by ingresses.
        "domain": {"example.com": ""},
        "deployment": {"registries-skipping-tag-resolving": "nvcr.io,index.docker.io"},
        # Reference runtimes are put on GPU nodes with these.
        "features": {
            "kubernetes.podspec-tolerations": "enabled",
            "kubernetes.podspec-nodeselector": "enabled",
            "kubernetes.podspec-affinity": "enabled",
        },
    }
    spec: Object = {"version": version["knative-serving"], "config": config}
    if on.install.layer == "kourier":
        config["network"] = {"ingress-class": "kourier.ingress.networking.knative.dev"}
        spec["ingress"] = {
            "kourier": {"enabled": True, "service-type": "ClusterIP" if on_kind else "LoadBalancer"},
            "istio": {"enabled": False},
        }
    else:
        config["network"] = {"ingress-class": "istio.ingress.networking.knative.dev"}
        spec["ingress"] = {"istio": {"enabled": True}}
    if on.install.images is not None:
        # The operator makes the Deployments itself; the mirror holds them under the names of their containers.
        spec["registry"] = {"default": f"{on.install.images}/knative/${{NAME}}:v{version['knative-serving']}"}
    return {
        "apiVersion": "operator.knative.dev/v1beta1",
        "kind": "KnativeServing",
        "metadata": {"name": "knative-serving", "namespace": "knative-serving"},
        "spec": spec,
    }


def _gateway(on: _On, version: dict[str, str]) -> list[Command]:
    established = on.await_("crd/gateways.gateway.networking.k8s.io", "condition=Established")
    if on.install.layer == "istio":
        number = version["gateway-api"]
        if on.install.charts is not None:
            source = str(on.install.charts / f"gateway-api-{number}.yaml")
        else:
            source = f"https://github.com/kubernetes-sigs/gateway-api/releases/download/{number}/standard-install.yaml"
        apply = ("apply", "--server-side", "--force-conflicts", "-f", source)
        name, controller = "istio", "istio.io/gateway-controller"
        commands = [on.kubectl(*apply, does=f"install Gateway API {number}"), established]
        commands += _istio(on, version, gateway=False)
    else:
        # Gateway API's CRDs come with the chart. Beside others that are there, Helm 4 would end with a conflict.
        number = version["envoy-gateway"]
        name, controller = "envoy", "gateway.envoyproxy.io/gatewayclass-controller"
        # Its proxies' image is not in the chart; named, it goes the way of all images.
        named = [f"global.images.envoyProxy.image={version['envoy-proxy-image']}"] if on.install.images else []
        chart = on.chart("eg", "envoy-gateway-system", "oci://docker.io/envoyproxy", "gateway-helm", number, *named)
        commands = [chart, established]
    group = "gateway.networking.k8s.io/v1"
    gateway_class = {
        "apiVersion": group,
        "kind": "GatewayClass",
        "metadata": {"name": name},
        "spec": {"controllerName": controller},
    }
    gateway = {
        "apiVersion": group,
        "kind": "Gateway",
        "metadata": {"name": GATEWAY, "namespace": "kserve"},
        "spec": {
            "gatewayClassName": name,
            "listeners": [
                {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}
            ],
        },
    }
    commands += [
        on.apply(_namespace("kserve"), gateway_class, gateway, does=f"ask for the Gateway kserve/{GATEWAY}"),
        # Programmed needs an address, which there is not without a load balancer.
        on.await_(f"gateway/{GATEWAY}", "condition=Accepted", "kserve"),
    ]
    return commands


def _kserve(on: _On, version: dict[str, str]) -> list[Command]:
    where, number = "oci://ghcr.io/kserve/charts", version["kserve"]
    prefix = "kserve.controller"
    values = [f"kserve.version={number}", f"{prefix}.deploymentMode={on.install.mode}"]
    if on.install.mode == "Standard":
        values += [f"{prefix}.gateway.ingressGateway.enableGatewayApi=true"]
        values += [f"{prefix}.gateway.ingressGateway.kserveGateway=kserve/{GATEWAY}"]
        values += [f"{prefix}.gateway.ingressGateway.className={'istio' if on.install.layer == 'istio' else 'envoy'}"]
    elif on.install.layer == "kourier":
        values.append(f"{prefix}.gateway.disableIstioVirtualHost=true")
    return [
        on.chart("kserve-crd", "kserve", where, "kserve-crd", number),
        on.chart("kserve-resources", "kserve", where, "kserve-resources", number, *values),
        on.rolled_out("deployment/kserve-controller-manager", "kserve"),
    ]


def _runtimes(on: _On, version: dict[str, str], spec: Any, gpu: GpuNodes | None) -> list[Command]:
    values = (f"kserve.version={version['kserve']}", "kserve.servingruntime.enabled=true")
    where = "oci://ghcr.io/kserve/charts"
    return [on.chart("kserve-runtime-configs", "kserve", where, "kserve-runtime-configs", version["kserve"], *values)]


SLICING = "servecert-time-slicing"


def _gpu_operator(on: _On, version: dict[str, str], spec: Any, gpu: GpuNodes | None) -> list[Command]:
    namespace = "gpu-operator"
    values: list[str] = []
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    objects: list[Object] = [_namespace(namespace, labels)]
    if isinstance(spec, Eks):
        # Amazon's image for GPU types has the driver and the container toolkit.
        values += ["driver.enabled=false", "toolkit.enabled=false"]
    if gpu is not None and gpu.mig is not None:
        values += ["mig.strategy=mixed", "migManager.env[0].name=WITH_REBOOT", "migManager.env[0].value=true"]
    if gpu is not None and gpu.shared_by > 1:
        values += [f"devicePlugin.config.name={SLICING}", "devicePlugin.config.default=any"]
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": SLICING, "namespace": namespace},
                "data": {"any": yaml.safe_dump(_slicing(gpu), sort_keys=False)},
            }
        )
    chart = on.chart(
        *("gpu-operator", namespace, "https://helm.ngc.nvidia.com/nvidia", "gpu-operator", version["gpu-operator"]),
        *values,
    )
    # A bare "true" would reach the environment variable as a boolean, which Kubernetes refuses.
    strings = tuple(
        "--set-string" if chart.argv[place + 1].startswith("migManager.env[0].value") else part
        for place, part in enumerate(chart.argv[:-1])
    )
    chart = Command((*strings, chart.argv[-1]), chart.does, timeout_s=chart.timeout_s, attempts=chart.attempts)
    return [on.apply(*objects, does="prepare the namespace of the GPU Operator"), chart]


def _slicing(gpu: GpuNodes) -> Object:
    return {
        "version": "v1",
        "flags": {"migStrategy": "mixed" if gpu.mig else "none"},
        "sharing": {"timeSlicing": {"resources": [{"name": gpu.resource, "replicas": gpu.shared_by}]}},
    }


def _prometheus(on: _On, version: dict[str, str], spec: Any, gpu: GpuNodes | None) -> list[Command]:
    settings = "prometheus.prometheusSpec"
    return [
        on.chart(
            *("prometheus", "monitoring", "https://prometheus-community.github.io/helm-charts"),
            *("kube-prometheus-stack", version["kube-prometheus-stack"]),
            # Monitors of every release are read, not only of this one.
            f"{settings}.serviceMonitorSelectorNilUsesHelmValues=false",
            f"{settings}.podMonitorSelectorNilUsesHelmValues=false",
            "grafana.enabled=false",
            "alertmanager.enabled=false",
        )
    ]


def _opentelemetry(on: _On, version: dict[str, str], spec: Any, gpu: GpuNodes | None) -> list[Command]:
    where = "https://open-telemetry.github.io/opentelemetry-helm-charts"
    namespace = "opentelemetry"
    repository = "otel/opentelemetry-collector-contrib"
    listen = {"grpc": {"endpoint": "0.0.0.0:4317"}, "http": {"endpoint": "0.0.0.0:4318"}}
    pipeline = {"receivers": ["otlp"], "exporters": ["debug"]}
    collector = {
        "apiVersion": "opentelemetry.io/v1beta1",
        "kind": "OpenTelemetryCollector",
        "metadata": {"name": "servecert", "namespace": namespace},
        "spec": {
            "mode": "deployment",
            "image": f"{repository}:{version['opentelemetry-collector']}",
            "config": {
                "receivers": {"otlp": {"protocols": listen}},
                "exporters": {"debug": {"verbosity": "basic"}},
                "service": {"pipelines": {"traces": pipeline, "metrics": pipeline}},
            },
        },
    }
    number = version["opentelemetry-operator"]
    return [
        on.chart(
            *("opentelemetry-operator", namespace, where, "opentelemetry-operator", number),
            f"manager.collectorImage.repository={repository}",
        ),
        on.apply(collector, does="ask for an OpenTelemetry collector"),
        on.rolled_out("deployment/servecert-collector", namespace),
    ]


def _cluster_autoscaler(on: _On, version: dict[str, str], spec: Eks) -> list[Command]:
    return [
        on.chart(
            *("cluster-autoscaler", "kube-system", "https://kubernetes.github.io/autoscaler", "cluster-autoscaler"),
            version["cluster-autoscaler"],
            f"autoDiscovery.clusterName={spec.name}",
            f"awsRegion={spec.region}",
        )
    ]


_COMPONENTS = {
    "runtimes": _runtimes,
    "gpu-operator": _gpu_operator,
    "prometheus": _prometheus,
    "opentelemetry": _opentelemetry,
}


def _namespace(name: str, labels: dict[str, str] | None = None) -> Object:
    metadata: Object = {"name": name}
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def node_port(install: Install) -> Object:
    """A Service that opens the ingress' pods on a port of every node: for clusters without load balancers."""
    if install.mode == "Standard":
        namespace, target = ("kserve", 80) if install.layer == "istio" else ("envoy-gateway-system", 10080)
        key = "gateway.networking.k8s.io/gateway-name" if install.layer == "istio" else _ENVOY_GATEWAY
        selector = {key: GATEWAY}
    elif install.layer == "istio":
        namespace, target, selector = "istio-system", 80, {"istio": "ingressgateway"}
    else:
        namespace, target, selector = "knative-serving", 8080, {"app": "3scale-kourier-gateway"}
    port = {"name": "http2", "port": 80, "targetPort": target, "nodePort": INGRESS_NODE_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "servecert-ingress", "namespace": namespace},
        "spec": {"type": "NodePort", "selector": selector, "ports": [port]},
    }


_ENVOY_GATEWAY = "gateway.envoyproxy.io/owning-gateway-name"
