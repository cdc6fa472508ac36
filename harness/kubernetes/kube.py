"""Reading a cluster through the ``kubernetes`` client, whatever the kind of object: for finding ingresses, preflight
and waits.

Objects that do not exist, and kinds that the cluster does not know, are None or an empty list; everything else that
goes wrong is a ClusterError that says what to do.
"""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from harness.base.errors import ClusterError
from harness.kubernetes.apierrors import explain
from harness.kubernetes.client import api_client, authorized

Object = dict[str, Any]
TIMEOUT_S = 30
ATTEMPTS = 2


class Kube:
    def __init__(self, kubeconfig: Path, context: str | None = None) -> None:
        """Raises UsageError for a kubeconfig that cannot be read or has no such context."""
        self._api = api_client(kubeconfig, context)
        self.host = str(self._api.configuration.host)

    def call(self, method: str, path: str, body: Object | None = None) -> Any:
        """The decoded answer. Raises LookupError for 404 and ClusterError for everything else that is not success."""
        headers = {**authorized(self._api), "Accept": "application/json"}
        sent = None if body is None else jsonlib.dumps(body).encode()
        # The generated calls differ among the client's versions; the connection pool beneath them does not.
        pool = self._api.rest_client.pool_manager
        try:
            answer = pool.request(
                method, self.host + path, headers=headers, body=sent, timeout=TIMEOUT_S, retries=ATTEMPTS
            )
        except Exception as error:  # urllib3 raises many kinds, and credential plugins theirs
            raise ClusterError(f"the Kubernetes API at {self.host} does not answer: {error}") from error
        text = bytes(answer.data).decode(errors="replace")
        if answer.status == 404:
            raise LookupError(path)
        if not 200 <= answer.status < 300:
            raise ClusterError(f"{method} {path}: {explain(answer.status, answer.reason or '', text)}")
        try:
            return jsonlib.loads(text)
        except ValueError as error:
            raise ClusterError(
                f"{method} {path}: expected JSON, got {text[:200]!r}; is this a Kubernetes API?"
            ) from error

    def get(self, version: str, plural: str, name: str, namespace: str = "") -> Object | None:
        try:
            found: Object = self.call("GET", f"{collection(version, plural, namespace)}/{name}")
        except LookupError:
            return None
        return found

    def list(self, version: str, plural: str, namespace: str = "", selector: str = "") -> list[Object]:
        query = f"?{urlencode({'labelSelector': selector})}" if selector else ""
        try:
            found: list[Object] = self.call("GET", collection(version, plural, namespace) + query).get("items") or []
        except LookupError:
            return []
        return found

    def serves(self, version: str, plural: str) -> bool:
        """Whether the API has this resource: what a CustomResourceDefinition adds, seen by anyone who may read
        discovery."""
        prefix = "/api/" if "/" not in version else "/apis/"
        try:
            found = self.call("GET", prefix + version)
        except LookupError:
            return False
        return any(item.get("name") == plural for item in found.get("resources") or [])

    def may(self, verb: str, group: str, resource: str, namespace: str = "") -> bool | None:
        """What the API says of the caller's own rights; None where it does not say."""
        attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        try:
            answer = self.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
        except LookupError:
            return None
        return bool((answer.get("status") or {}).get("allowed"))

    def version(self) -> str:
        return str(self.call("GET", "/version").get("gitVersion"))


def collection(version: str, plural: str, namespace: str = "") -> str:
    """Path of a kind of objects: of one namespace, or of the whole cluster."""
    prefix = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    return f"{prefix}/namespaces/{namespace}/{plural}" if namespace else f"{prefix}/{plural}"
