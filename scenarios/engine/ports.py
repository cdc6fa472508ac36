"""Which port of a service a step asks. A real cluster's ingress routes to one of them: HTTP, or gRPC where the service
exposes that."""

from __future__ import annotations

from typing import Literal

from runtimes.catalog import find_runtime
from scenarios.model.scenario import CompareStep, ConformanceStep, Service, Step

Port = Literal["http", "grpc"]


def beside(step: Step, service: Service) -> Port | None:
    """The port that a step asks beside the one that is routed to; None where that one is enough, or is all there is."""
    if service.runtime is None or step.suite not in ("conformance", "parity"):
        return None
    if service.expose == "grpc":
        return "http"
    wants = step.suite == "parity" or (isinstance(step, ConformanceStep) and "grpc" in step.profiles)
    return "grpc" if wants and "grpc" in find_runtime(service.runtime).spec.ports else None


def at_ingress(step: Step) -> set[tuple[str, Port]]:
    """Services and the ports of theirs that a step asks through the ingress, whatever else it asks."""
    if step.suite in ("conformance", "parity"):
        return set()
    protocol = str(getattr(step, "protocol", "rest"))
    asked = {(step.service, protocol)}
    if isinstance(step, CompareStep):
        asked |= {(item.service or step.service, item.protocol or protocol) for item in step.against}
    if step.suite not in ("load", "capacity", "compare"):
        asked.add((step.service, "rest"))  # beside their load, these ask single requests over HTTP
    return {(service, "grpc" if protocol.startswith("grpc") else "http") for service, protocol in asked}
