"""Azure Kubernetes Service, by az. Source: Azure CLI reference, az aks and az group.

Everything lies in a resource group of its own, which is what is deleted.
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.commands import Command
from cluster.model import Aks, GpuNodes, Nodes
from cluster.naming import LABEL

GONE = r"(?i)ResourceGroupNotFound|could not be found"


def group(spec: Aks) -> str:
    return f"servecert-{spec.name}"


def _account(spec: Aks) -> tuple[str, ...]:
    return ("--subscription", spec.subscription) if spec.subscription else ()


def create(spec: Aks, directory: Path, labels: dict[str, str]) -> list[Command]:
    tags = tuple(f"{key}={value}" for key, value in labels.items())
    where = ("--resource-group", group(spec), *_account(spec))
    version = ("--kubernetes-version", spec.kubernetes) if spec.kubernetes else ()
    commands = [
        Command(
            (
                *("az", "group", "create", "--name", group(spec), "--location", spec.location, *_account(spec)),
                *("--output", "none", "--tags", *tags),
            ),
            "create the resource group",
            timeout_s=300,
        ),
        Command(
            (
                *("az", "aks", "create", "--name", spec.name, *where, *version, "--no-ssh-key", "--yes"),
                *(
                    "--enable-oidc-issuer",
                    "--enable-workload-identity",
                    "--output",
                    "none",
                    *_pool(spec.nodes, first=True),
                ),
                *("--tags", *tags),
            ),
            "create the AKS cluster",
            timeout_s=3600,
        ),
    ]
    if spec.gpu:
        commands.append(
            Command(
                (
                    *("az", "aks", "nodepool", "add", "--cluster-name", spec.name, "--name", "gpu", *where),
                    # The driver comes with the GPU Operator, as does the device plugin.
                    *("--gpu-driver", "none", "--output", "none", *_pool(spec.gpu), "--tags", *tags),
                ),
                "create the pool of GPU nodes",
                timeout_s=3600,
            )
        )
    commands.append(
        Command(
            (
                *("az", "aks", "get-credentials", "--name", spec.name, *where),
                *("--file", str(directory / "kubeconfig"), "--overwrite-existing"),
            ),
            "write the kubeconfig",
            timeout_s=300,
            attempts=3,
        )
    )
    return commands


def _pool(pool: Nodes, *, first: bool = False) -> tuple[str, ...]:
    options = ["--node-vm-size", pool.type, "--node-osdisk-size", str(pool.disk_gb), "--node-count", str(pool.min)]
    if pool.max > pool.min:
        options += ["--enable-cluster-autoscaler", "--min-count", str(pool.min), "--max-count", str(pool.max)]
    if pool.spot and not first:
        options += ["--priority", "Spot", "--eviction-policy", "Delete", "--spot-max-price", "-1"]
    if pool.zones:
        options += ["--zones", *pool.zones]
    labels = dict(pool.labels)
    if isinstance(pool, GpuNodes) and pool.mig:
        labels["nvidia.com/mig.config"] = f"all-{pool.mig}"
    if labels:
        options += ["--nodepool-labels" if first else "--labels", *(f"{key}={value}" for key, value in labels.items())]
    if pool.taints:
        options += ["--nodepool-taints" if first else "--node-taints", ",".join(pool.taints)]
    return tuple(options)


def delete(spec: Aks, directory: Path) -> list[Command]:
    return [
        Command(
            ("az", "group", "delete", "--name", group(spec), "--yes", *_account(spec)),
            "delete the resource group with all that is in it",
            timeout_s=3600,
            tolerate=GONE,
            attempts=3,
        )
    ]


def listing(spec: Aks) -> Command:
    return Command(
        ("az", "group", "list", "--tag", LABEL, "--output", "json", *_account(spec)),
        "list resource groups",
        timeout_s=120,
        attempts=2,
    )


def listed(spec: Aks, output: str) -> list[str]:
    """Names, as in the scenario, of the clusters whose resource groups carry our tag."""
    return [str(item["name"]).removeprefix("servecert-") for item in json.loads(output or "[]")]
