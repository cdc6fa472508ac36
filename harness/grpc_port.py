"""The gRPC port of a service on a real cluster, where the ingress routes to its HTTP port alone.

For what is answered, not for how fast: the way leads through the API server to one pod.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from cluster.ingress import forward
from harness.deployed import Deployed
from harness.endpoint import Endpoint
from harness.errors import ClusterError


@contextlib.asynccontextmanager
async def with_grpc(kubeconfig: Path, deployed: Deployed, port: int) -> AsyncIterator[Endpoint]:
    """The service with a gRPC address, ``kubectl port-forward`` to a ready pod's ``port``, until the body ends. Raises
    ClusterError where that cannot be had."""
    pods = await deployed.ready_pods()
    if not pods:
        raise ClusterError(f"{deployed.name}: no pod is ready whose gRPC port could be reached")
    metadata = pods[0]["metadata"]
    opening = asyncio.to_thread(forward, kubeconfig, None, metadata["namespace"], f"pod/{metadata['name']}", port)
    opened = await opening
    try:
        yield replace(deployed.endpoint, grpc_address=opened.address, grpc_tls=False)
    finally:
        await asyncio.to_thread(opened.close)
