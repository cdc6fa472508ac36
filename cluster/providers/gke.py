"""Google Kubernetes Engine, by gcloud. Source: gcloud reference, container clusters and node-pools.

GPU drivers, the device plugin, MIG and time-slicing are GKE's own: there is no GPU Operator on it.
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.commands import Command
from cluster.model import Gke, GpuNodes, Nodes
from cluster.naming import LABEL, pairs

GONE = r"(?i)code=404|not ?found"


def create(spec: Gke, directory: Path, labels: dict[str, str]) -> list[Command]:
    where = ("--project", spec.project, "--location", spec.location, "--quiet")
    network = (("--network", spec.network) if spec.network else ()) + (
        ("--subnetwork", spec.subnetwork) if spec.subnetwork else ()
    )
    version = ("--cluster-version", spec.kubernetes) if spec.kubernetes else ()
    commands = [
        Command(
            (
                *(
                    "gcloud",
                    "container",
                    "clusters",
                    "create",
                    spec.name,
                    *where,
                    *version,
                    *network,
                    "--enable-ip-alias",
                ),
                *("--workload-pool", f"{spec.project}.svc.id.goog", "--labels", pairs(labels), *_pool(spec.nodes)),
            ),
            "create the GKE cluster",
            timeout_s=3600,
        )
    ]
    if spec.gpu:
        version = ("--node-version", spec.kubernetes) if spec.kubernetes else ()
        commands.append(
            Command(
                (
                    *("gcloud", "container", "node-pools", "create", "gpu", "--cluster", spec.name, *where, *version),
                    *("--accelerator", accelerator(spec.gpu), *_pool(spec.gpu)),
                ),
                "create the pool of GPU nodes",
                timeout_s=3600,
            )
        )
    commands.append(
        Command(
            ("gcloud", "container", "clusters", "get-credentials", spec.name, *where),
            "write the kubeconfig",
            environment={"KUBECONFIG": str(directory / "kubeconfig")},
            timeout_s=300,
            attempts=3,
        )
    )
    return commands


def accelerator(pool: GpuNodes) -> str:
    """The value of ``--accelerator``."""
    parts = {"type": pool.accelerator or "", "count": str(pool.per_node)}
    parts["gpu-driver-version"] = "latest"
    if pool.mig:
        parts["gpu-partition-size"] = pool.mig
    if pool.shared_by > 1:
        parts |= {"gpu-sharing-strategy": "time-sharing", "max-shared-clients-per-gpu": str(pool.shared_by)}
    return pairs(parts)


def _pool(pool: Nodes) -> tuple[str, ...]:
    options = ["--machine-type", pool.type, "--disk-size", str(pool.disk_gb), "--num-nodes", str(pool.min)]
    options += ["--enable-autoscaling", "--min-nodes", str(pool.min), "--max-nodes", str(pool.max)]
    if pool.spot:
        options.append("--spot")
    if pool.zones:
        options += ["--node-locations", ",".join(pool.zones)]
    if pool.labels:
        options += ["--node-labels", pairs(pool.labels)]
    if pool.taints:
        options += ["--node-taints", ",".join(pool.taints)]
    return tuple(options)


def delete(spec: Gke, directory: Path) -> list[Command]:
    where = ("--project", spec.project, "--location", spec.location, "--quiet")
    return [
        Command(
            ("gcloud", "container", "clusters", "delete", spec.name, *where),
            "delete the GKE cluster",
            timeout_s=3600,
            tolerate=GONE,
            attempts=3,
        )
    ]


def listing(spec: Gke) -> Command:
    return Command(
        (
            *("gcloud", "container", "clusters", "list", "--project", spec.project, "--format", "json"),
            *("--filter", f"resourceLabels.{LABEL}:*"),
        ),
        "list GKE clusters",
        timeout_s=120,
        attempts=2,
    )


def listed(spec: Gke, output: str) -> list[str]:
    """Names of the clusters that carry our label."""
    return [str(item["name"]) for item in json.loads(output or "[]")]
