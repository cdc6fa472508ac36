"""Which port of a service a step asks. A real cluster's ingress routes to one of them: HTTP, or gRPC where the service
exposes that."""

from __future__ import annotations

from runtimes.catalog import find_runtime
from scenarios.model.services import Service
from scenarios.model.steps import Port, Step


def beside(step: Step, service: Service) -> Port | None:
    """The port that a step asks beside the one that is routed to; None where that one is enough, or is all there is."""
    if service.runtime is None or step.through_ingress:
        return None
    if service.expose == "grpc":
        return "http"
    return "grpc" if step.asks_grpc() and "grpc" in find_runtime(service.runtime).spec.ports else None


def at_ingress(step: Step) -> set[tuple[str, Port]]:
    """Services and the ports of theirs that a step asks through the ingress, whatever else it asks."""
    if not step.through_ingress:
        return set()
    asked = step.asked() | ({(step.service, "rest")} if step.single_requests else set())
    return {(service, "grpc" if protocol.startswith("grpc") else "http") for service, protocol in asked}
