"""Objects of the embedded cluster: optimistic concurrency, watches with history, owner references, finalizers.

Semantics: Kubernetes API concepts (resource versions, watch, 410 Gone), Garbage collection, Finalizers.
Everything runs on one event loop; no method awaits, so each is atomic.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.local.api.resources import BY_KEY, BY_KIND, Object, ResourceType
from cluster.local.api.selectors import matches_labels

HISTORY = 4096


class ApiError(Exception):
    """A ``metav1.Status`` failure."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        self.code = code
        self.reason = reason
        self.details = details or {}
        super().__init__(message)

    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def not_found(resource: ResourceType, name: str) -> ApiError:
    return ApiError(
        404,
        "NotFound",
        f'{resource.key} "{name}" not found',
        {"name": name, "group": resource.group, "kind": resource.plural},
    )


def conflict(resource: ResourceType, name: str, why: str) -> ApiError:
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource.key} "{name}": {why}',
        {"name": name, "group": resource.group, "kind": resource.plural},
    )


def gone(version: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {version}")


@dataclass(frozen=True)
class Change:
    type: str
    """ADDED, MODIFIED or DELETED."""
    resource: ResourceType
    object: Object
    previous: Object | None
    version: int


Listener = Callable[[Change], None]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Objects handed out and taken in are copies: nobody changes what is stored but through these methods."""

    def __init__(self, history: int = HISTORY) -> None:
        self.version = 1
        self._objects: dict[str, dict[tuple[str, str], Object]] = {key: {} for key in BY_KEY}
        self._history: deque[Change] = deque(maxlen=history)
        self._listeners: list[Listener] = []
        self._dropped = 0
        """The newest version that the history no longer holds."""

    # Reading

    def get(self, resource: ResourceType, namespace: str, name: str) -> Object:
        """Raises ApiError 404."""
        found = self._objects[resource.key].get((namespace, name))
        if found is None:
            raise not_found(resource, name)
        return copy.deepcopy(found)

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        found = self._objects[BY_KIND[kind].key].get((namespace, name))
        return copy.deepcopy(found) if found is not None else None

    def list(self, resource: ResourceType, namespace: str = "", labels: dict[str, str] | None = None) -> list[Object]:
        """In order of namespace and name; an empty namespace is all of them."""
        return [
            copy.deepcopy(item)
            for (space, _), item in sorted(self._objects[resource.key].items())
            if (not namespace or space == namespace) and (not labels or matches_labels(item, labels))
        ]

    # Writing

    def create(self, resource: ResourceType, item: Object) -> Object:
        """Raises ApiError 404 for a missing or terminating namespace, 409 where the name is taken."""
        item = copy.deepcopy(item)
        metadata = item.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        name = metadata.get("name", "")
        namespace = metadata.get("namespace", "") if resource.namespaced else ""
        if resource.namespaced:
            space = self._objects["namespaces"].get(("", namespace))
            if space is None:
                raise not_found(BY_KEY["namespaces"], namespace)
            if "deletionTimestamp" in space["metadata"] and resource.kind != "Event":
                raise ApiError(
                    403,
                    "Forbidden",
                    f"unable to create new content in namespace {namespace} because it is being terminated",
                )
        if (namespace, name) in self._objects[resource.key]:
            raise ApiError(
                409,
                "AlreadyExists",
                f'{resource.key} "{name}" already exists',
                {"name": name, "group": resource.group, "kind": resource.plural},
            )
        item["apiVersion"], item["kind"] = resource.api_version, resource.kind
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
        for field in ("resourceVersion", "deletionTimestamp", "selfLink"):
            metadata.pop(field, None)
        if resource.namespaced:
            metadata["namespace"] = namespace
        else:
            metadata.pop("namespace", None)
        if resource.status and resource.kind not in ("Namespace",):
            item.pop("status", None)
        if resource.kind == "Pod":
            item["status"] = {"phase": "Pending"}
        return self._commit("ADDED", resource, item, None)

    def update(self, resource: ResourceType, item: Object, *, subresource: str = "") -> Object:
        """Replaces an object. A ``resourceVersion`` in ``item`` must be the current one (409 otherwise).

        ``subresource="status"`` takes only the status; otherwise the status is left alone where it is a subresource,
        and a changed spec raises ``metadata.generation``.
        """
        metadata = item.get("metadata", {})
        namespace = metadata.get("namespace", "") if resource.namespaced else ""
        name = metadata.get("name", "")
        old = self._objects[resource.key].get((namespace, name))
        if old is None:
            raise not_found(resource, name)
        wanted = metadata.get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            raise conflict(
                resource,
                name,
                "the object has been modified; please apply your changes to the latest version and try again",
            )
        if metadata.get("uid") and metadata["uid"] != old["metadata"]["uid"]:
            raise conflict(resource, name, f"the UID in the precondition ({metadata['uid']}) is not the object's")
        if subresource == "status":
            new = copy.deepcopy(old)
            new["status"] = copy.deepcopy(item.get("status", {}))
        else:
            new = copy.deepcopy(item)
            if resource.status:
                new.pop("status", None)
                if "status" in old:
                    new["status"] = copy.deepcopy(old["status"])
            new["apiVersion"], new["kind"] = resource.api_version, resource.kind
            for field in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
                new["metadata"].pop(field, None)
                if field in old["metadata"]:
                    new["metadata"][field] = old["metadata"][field]
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        comparable = {**new, "metadata": {**new["metadata"], "resourceVersion": old["metadata"]["resourceVersion"]}}
        if comparable == old:
            return copy.deepcopy(old)
        stored = self._commit("MODIFIED", resource, new, old)
        released = "deletionTimestamp" in stored["metadata"] and not stored["metadata"].get("finalizers")
        if released and resource.kind not in ("Pod", "Namespace"):
            self.remove(resource, namespace, name)
        return stored

    def delete(
        self, resource: ResourceType, namespace: str, name: str, *, grace_s: int | None = None, uid: str | None = None
    ) -> Object:
        """Starts deletion. Gone at once unless finalizers or a graceful end (Pod, Namespace) hold it back.

        A Pod that is running is marked with ``deletionTimestamp``; its kubelet removes it when the process has ended.
        """
        old = self.get(resource, namespace, name)
        if uid and uid != old["metadata"]["uid"]:
            raise conflict(resource, name, f"the UID in the precondition ({uid}) is not the object's")
        held = bool(old["metadata"].get("finalizers")) or resource.kind in ("Pod", "Namespace")
        if not held:
            self.remove(resource, namespace, name)
            return old
        if "deletionTimestamp" in old["metadata"] and (resource.kind != "Pod" or grace_s is None):
            return old
        new = copy.deepcopy(old)
        new["metadata"].setdefault("deletionTimestamp", now())
        if resource.kind == "Pod":
            default = old.get("spec", {}).get("terminationGracePeriodSeconds", 30)
            new["metadata"]["deletionGracePeriodSeconds"] = default if grace_s is None else grace_s
        if resource.kind == "Namespace":
            new["status"] = {"phase": "Terminating"}
        return self._commit("MODIFIED", resource, new, old)

    def remove(self, resource: ResourceType, namespace: str, name: str) -> None:
        """Takes the object away for good and deletes what it owned (background propagation)."""
        old = self._objects[resource.key].pop((namespace, name), None)
        if old is None:
            return
        self.version += 1
        last = copy.deepcopy(old)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._announce(Change("DELETED", resource, last, old, self.version))
        owner = old["metadata"]["uid"]
        for kind in BY_KEY.values():
            for item in self.list(kind):
                owners = item["metadata"].get("ownerReferences", [])
                if any(reference.get("uid") == owner for reference in owners):
                    others = [reference for reference in owners if reference.get("uid") != owner]
                    if others:
                        item["metadata"]["ownerReferences"] = others
                        self.update(kind, item)
                    else:
                        self.delete(kind, item["metadata"].get("namespace", ""), item["metadata"]["name"])

    def _commit(self, change: str, resource: ResourceType, item: Object, old: Object | None) -> Object:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        namespace = item["metadata"].get("namespace", "") if resource.namespaced else ""
        self._objects[resource.key][(namespace, item["metadata"]["name"])] = item
        self._announce(Change(change, resource, copy.deepcopy(item), old, self.version))
        return copy.deepcopy(item)

    # Watching

    def _announce(self, change: Change) -> None:
        if len(self._history) == self._history.maxlen:
            self._dropped = self._history[0].version
        self._history.append(change)
        for listener in list(self._listeners):
            listener(change)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls ``listener`` on each change, in order; the answer ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def since(self, version: int) -> Iterable[Change]:
        """Changes after ``version``. Raises ApiError 410 when the history no longer reaches back that far."""
        if version < self._dropped:
            raise gone(version)
        return [change for change in self._history if change.version > version]


class Watch:
    """A queue of changes of one resource type from a version on; a slow reader is cut off instead of growing it."""

    def __init__(self, store: Store, resource: ResourceType, version: int, limit: int = 10_000) -> None:
        self._queue: asyncio.Queue[Change | None] = asyncio.Queue(limit)
        self._resource = resource
        self.backlog = [change for change in store.since(version) if change.resource is resource]
        self._end = store.subscribe(self._take)

    def _take(self, change: Change) -> None:
        if change.resource is not self._resource:
            return
        try:
            self._queue.put_nowait(change)
        except asyncio.QueueFull:
            self._queue.get_nowait()
            self._queue.put_nowait(None)

    async def next(self, timeout_s: float) -> Change | None:
        """Raises TimeoutError when nothing changed in time; None says that the watch was cut off."""
        async with asyncio.timeout(timeout_s):
            return await self._queue.get()

    def close(self) -> None:
        self._end()


def owner_reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


class Recorder:
    """Kubernetes events about objects; the same event again counts up instead of filling the store."""

    def __init__(self, store: Store, component: str) -> None:
        self._store = store
        self._component = component

    def event(self, about: Object, reason: str, message: str, kind: str = "Normal") -> None:
        resource = BY_KEY["events"]
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        for item in self._store.list(resource, namespace):
            if (
                item["involvedObject"].get("uid") == metadata["uid"]
                and item["reason"] == reason
                and item["message"] == message
            ):
                item["count"] += 1
                item["lastTimestamp"] = now()
                self._store.update(resource, item)
                return
        stamp = now()
        event: dict[str, Any] = {
            "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "kind": about["kind"],
                "apiVersion": about["apiVersion"],
                "name": metadata["name"],
                "namespace": namespace,
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "source": {"component": self._component, "host": "servecert-local"},
            "reportingComponent": self._component,
            "reportingInstance": "servecert-local",
            "action": reason,
        }
        try:
            self._store.create(resource, event)
        except ApiError as error:
            if error.code != 404:  # the namespace went away: nobody is left to read the event
                raise
