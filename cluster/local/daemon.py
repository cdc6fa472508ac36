"""The embedded cluster's process: API server, controllers, kubelet and gateway on one event loop.

``python -m cluster.local.daemon --directory DIR``. Writes ``kubeconfig`` (mode 0600) and then ``cluster.json`` into the
directory, and ends on SIGTERM, or when the process that holds the other end of ``--parent-fd`` ends.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import trustme
import uvicorn
import uvloop
import yaml

from cluster.local.api.resources import BY_KIND
from cluster.local.api.server import VERSION, ApiServer
from cluster.local.api.store import Store
from cluster.local.controllers.inferenceservice import Controller
from cluster.local.ingress.gateway import Gateway
from cluster.local.ingress.routes import RouteTable
from cluster.local.kubelet.devices import GPU
from cluster.local.kubelet.pods import NODE, Kubelet
from cluster.local.kubelet.storage import Storage
from cluster.processes import boot_id, start_ticks
from harness.base.files import write_atomic
from harness.base.gpus import Gpu, gpus
from harness.kubernetes.kpa_settings import CONFIG_MAP, DEFAULTS, NAMESPACE
from runtimes.catalog import find_runtime, runtime_specs

HOST = "127.0.0.1"


class _Server(uvicorn.Server):
    """Signals belong to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _kubeconfig(port: int, ca: bytes, token: str) -> str:
    name = "servecert-local"
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {
                    "name": name,
                    "cluster": {
                        "server": f"https://{HOST}:{port}",
                        "certificate-authority-data": base64.b64encode(ca).decode(),
                    },
                }
            ],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        },
        sort_keys=False,
    )


def seed(store: Store, found: list[Gpu]) -> None:
    """What a fresh cluster with KServe has: namespaces, service accounts, a node with the GPUs that were found, the
    autoscaler's configuration, a runtime for each folder."""
    for name in ("default", "kube-system", "kserve", "knative-serving"):
        store.create(
            BY_KIND["Namespace"],
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "status": {"phase": "Active"},
            },
        )
        store.create(BY_KIND["ServiceAccount"], {"metadata": {"name": "default", "namespace": name}})
    machine = this_machine(found)
    node = store.create(BY_KIND["Node"], machine)
    store.update(BY_KIND["Node"], {**node, "status": machine["status"]}, subresource="status")
    store.create(
        BY_KIND["ConfigMap"], {"metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE}, "data": dict(DEFAULTS)}
    )
    for name in runtime_specs():
        runtime = find_runtime(name)
        if not runtime.runs_here:
            continue
        store.create(
            BY_KIND["ClusterServingRuntime"], runtime.serving_runtime(f"servecert-{name}", "ClusterServingRuntime")
        )


def this_machine(found: list[Gpu]) -> dict[str, Any]:
    """The only node. It is for looking at: of what pods request, GPUs alone are counted."""
    room = {"cpu": str(os.cpu_count()), "memory": f"{psutil.virtual_memory().total // 1024}Ki", "pods": "110"}
    labels = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}
    if found:
        room[GPU] = str(len(found))
        # As GPU feature discovery writes them.
        labels |= {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.count": str(len(found))}
        labels |= {"nvidia.com/gpu.product": re.sub(r"[^A-Za-z0-9.-]+", "-", found[0].name)}
        labels |= {"nvidia.com/gpu.memory": str(found[0].memory_bytes >> 20)}
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now}
    return {
        "metadata": {"name": NODE, "labels": labels},
        "status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": HOST}, {"type": "Hostname", "address": NODE}],
            "nodeInfo": {
                "architecture": platform.machine(),
                "bootID": boot_id(),
                "containerRuntimeVersion": "processes://1",
                "kernelVersion": platform.release(),
                "kubeProxyVersion": VERSION["gitVersion"],
                "kubeletVersion": VERSION["gitVersion"],
                "machineID": NODE,
                "operatingSystem": "linux",
                "osImage": platform.platform(),
                "systemUUID": NODE,
            },
        },
    }


async def serve(arguments: argparse.Namespace) -> int:
    directory = Path(arguments.directory)
    token = secrets.token_urlsafe(32)
    store = Store()
    found = gpus()
    seed(store, found)
    mirrors = json.loads(arguments.mirrors)
    storage = Storage(directory / "volumes", mirrors)
    kubelet = Kubelet(store, directory / "pods", storage, [gpu.uuid for gpu in found])
    routes = RouteTable(arguments.domain)
    kubelet.drained = routes.drained
    controller = Controller(store, kubelet, routes)
    gateway = Gateway(routes)
    api = ApiServer(store, kubelet, token, bookmark_s=arguments.bookmark_seconds)

    ca = trustme.CA()
    certificate = ca.issue_cert(HOST, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    try:
        listener = socket.create_server((HOST, arguments.api_port), backlog=256)
        ingress_port = await gateway.start(HOST, arguments.ingress_port)
    except OSError as error:
        print(f"cannot listen on {HOST}: {error.strerror}", file=sys.stderr)
        return 3
    api_port = listener.getsockname()[1]
    config = uvicorn.Config(
        api,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=60,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    config.load()
    config.ssl = context
    server = _Server(config)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    if arguments.parent_fd >= 0:
        loop.add_reader(arguments.parent_fd, stop.set)

    kubelet.start()
    controller.start()
    reconciling = asyncio.create_task(controller.run())
    hpa = asyncio.create_task(controller.standard.autoscale(arguments.hpa_period))
    scaling = asyncio.create_task(controller.knative.autoscaling.run())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.002)
    write_atomic(directory / "kubeconfig", _kubeconfig(api_port, ca.cert_pem.bytes(), token), mode=0o600)
    state = {
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "api": f"https://{HOST}:{api_port}",
        "ingress": f"{HOST}:{ingress_port}",
        "kubeconfig": str(directory / "kubeconfig"),
        "domain": arguments.domain,
    }
    write_atomic(directory / "cluster.json", json.dumps(state, indent=2) + "\n", mode=0o600)
    await stop.wait()
    if arguments.parent_fd >= 0:
        loop.remove_reader(arguments.parent_fd)
    api.closing.set()
    controller.stop()
    reconciling.cancel()
    scaling.cancel()
    hpa.cancel()
    await kubelet.stop()
    await gateway.stop()
    server.should_exit = True
    await asyncio.gather(serving, reconciling, scaling, hpa, return_exceptions=True)
    (directory / "cluster.json").unlink(missing_ok=True)
    (directory / "kubeconfig").unlink(missing_ok=True)
    if arguments.ephemeral:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="servecert-cluster")
    parser.add_argument("--directory", required=True)
    parser.add_argument("--api-port", type=int, default=0)
    parser.add_argument("--ingress-port", type=int, default=0)
    parser.add_argument("--domain", default="example.com")
    parser.add_argument("--parent-fd", type=int, default=-1)
    parser.add_argument("--ephemeral", action="store_true", help="remove the directory at the end")
    parser.add_argument("--bookmark-seconds", type=float, default=10.0)
    parser.add_argument("--hpa-period", type=float, default=15.0, help="seconds between two of its decisions")
    parser.add_argument("--mirrors", default="{}", help="JSON object of URI prefixes to local directories")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.umask(0o077)
    return uvloop.run(serve(arguments))


if __name__ == "__main__":
    sys.exit(main())
