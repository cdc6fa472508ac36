"""Where requests enter a cluster: Istio, Kourier or a Gateway, behind a load balancer, a node's port or a forwarded
one.

What the cluster says of itself decides: Knative's ``config-network`` names the ingress class, KServe's
``inferenceservice-config`` names the gateway. Sources: Knative's and KServe's ConfigMaps, Gateway API v1
status.addresses, Service status.loadBalancer.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.model import Reach
from cluster.reach.forwarding import Forwarding
from harness.base.errors import ClusterError
from harness.base.tls import Tls
from harness.kubernetes.kube import Kube

Object = dict[str, Any]
ADDRESS_S = 300.0
"""A cloud's load balancer takes minutes to get its address."""
_HTTP, _HTTPS = ("http2", "http", "http-80", "h2c"), ("https", "https-443")
KSERVE_NAMESPACES = ("kserve", "opendatahub", "redhat-ods-applications")


@dataclass
class Ingress:
    """``address`` is HOST:PORT, and ``inside`` the same for pods of the cluster, empty where it is not known; a
    forwarded port is open until ``close``."""

    address: str
    found: str
    inside: str = ""
    forwarding: Forwarding | None = None

    def close(self) -> None:
        if self.forwarding is not None:
            self.forwarding.close()


@dataclass
class Reachable:
    """What a real cluster's class shares: its ingress is looked for when it is first asked for, and closed at the
    end."""

    _ingress: Ingress | None = field(default=None, init=False)
    _looking: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    """Services are brought up at once, and each asks."""

    def _open_ingress(self) -> Ingress:
        raise NotImplementedError

    def _reach(self) -> Reach:
        raise NotImplementedError

    def _opened(self) -> Ingress:
        with self._looking:
            if self._ingress is None:
                self._ingress = self._open_ingress()
            return self._ingress

    @property
    def ingress(self) -> str:
        return self._opened().address

    @property
    def inside(self) -> str:
        return self._opened().inside

    @property
    def ingress_says(self) -> str:
        """What kubectl says of a forwarded port; empty without one."""
        forwarding = self._ingress.forwarding if self._ingress else None
        return f"kubectl port-forward: {forwarding.said}" if forwarding and forwarding.said else ""

    @property
    def tls(self) -> Tls | None:
        reach = self._reach()
        return Tls(reach.ca) if reach.tls else None

    def _close_ingress(self) -> None:
        if self._ingress is not None:
            self._ingress.close()
            self._ingress = None


def open_ingress(
    kubeconfig: Path, reach: Reach, own: str = "", inside: str = "", context: str | None = None
) -> Ingress:
    """``own`` is where the provider itself put it, ``inside`` the same for pods. Raises ClusterError that says what was
    looked for."""
    if reach.address is not None:
        return Ingress(reach.address, "as given", _inside(reach))
    if own and reach.kind in ("auto", "node-port") and reach.service is None:
        return Ingress(own, "the provider's own mapping", inside)
    kube = Kube(kubeconfig, context)
    namespace, name = _service(kube, reach)
    service = kube.get("v1", "services", name, namespace)
    if service is None:
        raise ClusterError(f"the ingress' Service {namespace}/{name} does not exist; give cluster.reach.service")
    port = service_port(service, tls=reach.tls)
    ways: dict[str, Callable[[], Ingress | None]] = {
        "load-balancer": lambda: _load_balancer(kube, service, port, wait=reach.kind == "load-balancer"),
        "node-port": lambda: _node_port(kube, service, port),
        "port-forward": lambda: _forwarded(Forwarding(kubeconfig, context, namespace, f"service/{name}", port["port"])),
    }
    for way in ways if reach.kind == "auto" else [reach.kind]:
        if (found := ways[way]()) is not None:
            found.inside = f"{name}.{namespace}.svc.cluster.local:{port['port']}"
            return found
    raise ClusterError(
        f"the ingress' Service {namespace}/{name}, a {service['spec'].get('type')}, cannot be reached by {reach.kind};"
        " give cluster.reach: {kind: address, address: HOST:PORT}"
    )


def _forwarded(forwarding: Forwarding) -> Ingress:
    return Ingress(
        forwarding.address, f"forwarded to {forwarding.target} in {forwarding.namespace}", forwarding=forwarding
    )


def _inside(reach: Reach) -> str:
    """Where pods find an ingress whose address was given, if its Service was too."""
    namespace, separator, name = (reach.service or "").partition("/")
    number = (reach.address or "").rpartition(":")[2]
    return f"{name}.{namespace}.svc.cluster.local:{number}" if separator else ""


def _service(kube: Kube, reach: Reach) -> tuple[str, str]:
    if reach.service is not None:
        namespace, _, name = reach.service.partition("/")
        return namespace, name
    tried: list[str] = []
    for namespace, name in candidates(kube):
        if kube.get("v1", "services", name, namespace) is not None:
            return namespace, name
        tried.append(f"{namespace}/{name}")
    raise ClusterError(
        f"no ingress was found: looked for the Services {', '.join(tried)}; give cluster.reach.service or"
        " cluster.reach: {kind: address, address: HOST:PORT}"
    )


def candidates(kube: Kube) -> Iterator[tuple[str, str]]:
    """Services that may be the ingress, most likely first: namespace and name."""
    network = kube.get("v1", "configmaps", "config-network", "knative-serving")
    settings = kserve_ingress(kube)
    gateway = str(settings.get("kserveIngressGateway") or "kserve/kserve-ingress-gateway")
    uses_gateway = bool(settings.get("enableGatewayApi"))
    istio = ("istio-system", "istio-ingressgateway")
    kourier = [("kourier-system", "kourier"), ("knative-serving", "kourier")]
    if uses_gateway or network is None:
        yield from gateway_services(kube, gateway)
    if network is not None:
        chosen = str(
            (network.get("data") or {}).get("ingress-class") or (network.get("data") or {}).get("ingress.class")
        )
        yield from kourier if "kourier" in chosen else [istio]
    yield istio
    yield from kourier
    yield from gateway_services(kube, gateway)


def kserve_ingress(kube: Kube) -> Object:
    """The ``ingress`` part of KServe's configuration; empty where it cannot be read."""
    for namespace in KSERVE_NAMESPACES:
        found = kube.get("v1", "configmaps", "inferenceservice-config", namespace)
        if found is not None:
            with contextlib.suppress(ValueError):
                parsed = json.loads((found.get("data") or {}).get("ingress") or "{}")
                return parsed if isinstance(parsed, dict) else {}
    return {}


def gateway_services(kube: Kube, wanted: str) -> Iterator[tuple[str, str]]:
    """The Services that carry a Gateway's traffic: those of Envoy Gateway by their labels, those of Istio by name."""
    namespace, _, name = wanted.rpartition("/")
    selector = f"gateway.envoyproxy.io/owning-gateway-name={name}"
    for service in kube.list("v1", "services", selector=selector):
        yield service["metadata"]["namespace"], service["metadata"]["name"]
    for service in kube.list("v1", "services", selector=f"gateway.networking.k8s.io/gateway-name={name}"):
        yield service["metadata"]["namespace"], service["metadata"]["name"]
    yield namespace or "kserve", f"{name}-istio"


def service_port(service: Object, *, tls: bool) -> Object:
    """The port for requests. Raises ClusterError."""
    ports: list[Object] = service["spec"].get("ports") or []
    names, number = (_HTTPS, 443) if tls else (_HTTP, 80)
    for port in ports:
        if port["port"] == number:
            return port
    for port in ports:
        if port.get("name") in names:
            return port
    metadata = service["metadata"]
    has = ", ".join(f"{port.get('name', '')} {port['port']}" for port in ports)
    raise ClusterError(
        f"Service {metadata['namespace']}/{metadata['name']} has no port {number}; it has {has or 'none'}"
    )


def _load_balancer(kube: Kube, service: Object, port: Object, *, wait: bool) -> Ingress | None:
    if service["spec"].get("type") != "LoadBalancer":
        return None
    metadata = service["metadata"]
    deadline = time.monotonic() + ADDRESS_S
    while True:
        for entry in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []:
            if host := entry.get("ip") or entry.get("hostname"):
                return Ingress(f"{host}:{port['port']}", f"load balancer of {metadata['namespace']}/{metadata['name']}")
        if not wait:
            return None
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the load balancer of Service {metadata['namespace']}/{metadata['name']} got no address within"
                f" {ADDRESS_S:g} s; its events say why: kubectl describe service -n {metadata['namespace']}"
                f" {metadata['name']}. Without load balancers use cluster.reach: {{kind: port-forward}}"
            )
        time.sleep(1.0)
        service = kube.get("v1", "services", metadata["name"], metadata["namespace"]) or service


def _node_port(kube: Kube, service: Object, port: Object) -> Ingress | None:
    if service["spec"].get("type") not in ("NodePort", "LoadBalancer") or not port.get("nodePort"):
        return None
    # Internal addresses are no use from elsewhere, and whether this is elsewhere cannot be known: external ones only.
    for node in kube.list("v1", "nodes"):
        for address in (node.get("status") or {}).get("addresses") or []:
            if address["type"] == "ExternalIP":
                name = node["metadata"]["name"]
                return Ingress(f"{address['address']}:{port['nodePort']}", f"port {port['nodePort']} of node {name}")
    return None
