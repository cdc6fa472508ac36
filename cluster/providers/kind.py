"""kind: Kubernetes in containers of this machine. Source: kind's configuration format v1alpha4 and its command line.

The ingress' NodePorts are mapped to 127.0.0.1, so that no load balancer is needed; images can be copied into the nodes,
so that no registry is needed.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster.commands import Command
from cluster.install import INGRESS_NODE_PORT
from cluster.model import Kind
from cluster.naming import LABEL

GONE = r"(?i)not found|no kind clusters found|unknown cluster"


def config(spec: Kind) -> str:
    """kind's configuration file."""
    control = {
        "role": "control-plane",
        "extraPortMappings": [
            {
                "containerPort": INGRESS_NODE_PORT,
                "hostPort": spec.http_port,
                "listenAddress": "127.0.0.1",
                "protocol": "TCP",
            }
        ],
    }
    data = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": {"apiServerAddress": "127.0.0.1"},
        "nodes": [control, *({"role": "worker", "labels": {LABEL: spec.name}} for _ in range(spec.workers))],
    }
    return yaml.safe_dump(data, sort_keys=False)


def create(spec: Kind, directory: Path, labels: dict[str, str]) -> list[Command]:
    kubeconfig = str(directory / "kubeconfig")
    name = cluster_name(spec)
    commands = [
        Command(
            (
                *("kind", "create", "cluster", "--name", name, "--image", spec.image, "--kubeconfig", kubeconfig),
                *("--wait", "5m", "--config", "-"),
            ),
            "create the kind cluster",
            stdin=config(spec),
            timeout_s=900,
        )
    ]
    for image in spec.load_images:
        how = "image-archive" if image.endswith((".tar", ".tar.gz", ".tgz")) else "docker-image"
        commands.append(Command(("kind", "load", how, image, "--name", name), f"copy {image} into the nodes"))
    return commands


def delete(spec: Kind, directory: Path) -> list[Command]:
    arguments = ("--name", cluster_name(spec), "--kubeconfig", str(directory / "kubeconfig"))
    return [Command(("kind", "delete", "cluster", *arguments), "delete the kind cluster", tolerate=GONE, attempts=2)]


def cluster_name(spec: Kind) -> str:
    """Prefixed, so that only what was made here is ever found and deleted."""
    return f"servecert-{spec.name}"


def listing(spec: Kind) -> Command:
    return Command(("kind", "get", "clusters"), "list kind clusters", timeout_s=60)


def listed(spec: Kind, output: str) -> list[str]:
    """Names, as in the scenario, of the clusters that were made here."""
    return [line.removeprefix("servecert-") for line in output.split() if line.startswith("servecert-")]
