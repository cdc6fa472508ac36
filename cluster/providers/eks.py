"""Amazon Elastic Kubernetes Service, by eksctl. Source: eksctl's ClusterConfig schema (eksctl.io/v1alpha5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from cluster.commands import Command
from cluster.model import Eks, GpuNodes, Nodes
from cluster.naming import LABEL

GONE = r"(?i)no cluster found|does not exist|ResourceNotFoundException"


def config(spec: Eks, labels: dict[str, str]) -> str:
    """eksctl's configuration file."""
    metadata: dict[str, Any] = {"name": spec.name, "region": spec.region, "tags": dict(labels)}
    if spec.kubernetes:
        metadata["version"] = ".".join(spec.kubernetes.split(".")[:2])
    data: dict[str, Any] = {
        "apiVersion": "eksctl.io/v1alpha5",
        "kind": "ClusterConfig",
        "metadata": metadata,
        "iam": {"withOIDC": True},
        "managedNodeGroups": [_group(name, pool, labels) for name, pool in spec.pools().items()],
    }
    return yaml.safe_dump(data, sort_keys=False)


def _group(name: str, pool: Nodes, tags: dict[str, str]) -> dict[str, Any]:
    group: dict[str, Any] = {
        "name": name,
        "instanceTypes": [pool.type],
        "amiFamily": "AmazonLinux2023",  # with a GPU type eksctl takes the image that has NVIDIA's driver
        "minSize": pool.min,
        "maxSize": pool.max,
        "desiredCapacity": pool.min,
        "volumeSize": pool.disk_gb,
        "labels": pool.labels,
        "tags": dict(tags),
        # Without these the cluster autoscaler cannot grow a group that has no node.
        "propagateASGTags": True,
        "iam": {"withAddonPolicies": {"autoScaler": True, "ebs": True}},
    }
    if pool.spot:
        group["spot"] = True
    if pool.zones:
        group["availabilityZones"] = pool.zones
    if pool.taints:
        group["taints"] = [_taint(text) for text in pool.taints]
    if isinstance(pool, GpuNodes) and pool.mig:
        group["labels"] = {**pool.labels, "nvidia.com/mig.config": f"all-{pool.mig}"}
    return group


def _taint(text: str) -> dict[str, str]:
    left, _, effect = text.rpartition(":")
    key, _, value = left.partition("=")
    return {"key": key, "value": value, "effect": effect}


def _account(spec: Eks) -> dict[str, str]:
    return {"AWS_PROFILE": spec.profile} if spec.profile else {}


def create(spec: Eks, directory: Path, labels: dict[str, str]) -> list[Command]:
    # The device plugin comes with the GPU Operator, which also cuts and shares GPUs.
    plugin = ("--install-nvidia-plugin=false",) if spec.gpu else ()
    return [
        Command(
            (
                *("eksctl", "create", "cluster", "--config-file", "-", "--kubeconfig", str(directory / "kubeconfig")),
                *("--timeout", "60m", *plugin),
            ),
            "create the EKS cluster and its node groups",
            stdin=config(spec, labels),
            environment=_account(spec),
            timeout_s=2 * 3600,
        )
    ]


def delete(spec: Eks, directory: Path) -> list[Command]:
    return [
        Command(
            (
                *("eksctl", "delete", "cluster", "--name", spec.name, "--region", spec.region),
                *("--wait", "--disable-nodegroup-eviction"),
            ),
            "delete the EKS cluster",
            environment=_account(spec),
            timeout_s=3600,
            tolerate=GONE,
            attempts=3,
        )
    ]


def listing(spec: Eks) -> Command:
    return Command(
        (
            *("aws", "resourcegroupstaggingapi", "get-resources", "--region", spec.region, "--output", "json"),
            *("--resource-type-filters", "eks:cluster", "--tag-filters", f"Key={LABEL}"),
        ),
        "list EKS clusters",
        environment=_account(spec),
        timeout_s=120,
        attempts=2,
    )


def listed(spec: Eks, output: str) -> list[str]:
    """Names of the clusters that carry our tag, from their ARNs (arn:aws:eks:REGION:ACCOUNT:cluster/NAME)."""
    found = json.loads(output or "{}").get("ResourceTagMappingList", [])
    return [str(item["ResourceARN"]).rpartition("/")[2] for item in found]
