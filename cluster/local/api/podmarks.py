"""What is written on a pod for others to read: labels, annotations, and the ports of this machine that stand for its
own."""

from __future__ import annotations

from cluster.local.api.resources import BY_KIND, Object
from runtimes.catalog import runtime_of_image

PODS = BY_KIND["Pod"]
PORTS_ANNOTATION = "local.servecert.io/ports"
STORAGE_ANNOTATION = "internal.serving.kserve.io/storage-initializer-sourceuri"
MODEL_LABEL = "serving.kserve.io/inferenceservice"


def local_port(container: Object, ports: dict[str, int], port: object) -> int:
    """Where a port of the container, by its number or name, is on this machine; what nobody knows is the HTTP port."""
    numbers = {item.get("name", ""): item["containerPort"] for item in container.get("ports", [])}
    runtime = runtime_of_image(container.get("image", ""))
    by_number = {number: ports[name] for name, number in (runtime.spec.ports if runtime else {}).items()}
    by_number |= {number: ports["grpc"] for name, number in numbers.items() if name == "h2c" and "grpc" in ports}
    number = numbers.get(port, port) if isinstance(port, str) else port
    found = by_number.get(number)  # type: ignore[arg-type]
    return found if found is not None else ports["http"]
