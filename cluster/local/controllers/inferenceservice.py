"""The controller of InferenceServices: takes one change after the other, and hands it to the deployment mode's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from cluster.local.api.podmarks import MODEL_LABEL, PODS
from cluster.local.api.resources import BY_KIND, Object
from cluster.local.api.store import ApiError, Change, Recorder, Store
from cluster.local.controllers.knative import REVISION, Knative
from cluster.local.controllers.podtemplate import InvalidSpec, build_template, is_standard
from cluster.local.controllers.standard import DEPLOYMENT, Standard
from cluster.local.ingress.routes import RouteTable
from cluster.local.kubelet.pods import Kubelet

ISVC = BY_KIND["InferenceService"]
RUNTIMES = (BY_KIND["ServingRuntime"], BY_KIND["ClusterServingRuntime"])
_log = logging.getLogger("servecert.cluster")


class Controller:
    def __init__(self, store: Store, kubelet: Kubelet, routes: RouteTable) -> None:
        self.store = store
        self.recorder = Recorder(store, "v1beta1Controllers")
        self.knative = Knative(store, kubelet, routes, self.recorder, self._scale_changed)
        self.standard = Standard(store, kubelet, routes, self.recorder, self.template_of)
        self._pending: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._queued: set[tuple[str, str]] = set()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self.store.subscribe(self._changed)
        self.knative.autoscaling.start()

    def stop(self) -> None:
        self.knative.autoscaling.stop()
        if self._unsubscribe:
            self._unsubscribe()

    def _scale_changed(self, namespace: str, revision: str) -> None:
        found = self.store.find("Revision", namespace, revision)
        if found is not None and (name := (found["metadata"].get("labels") or {}).get(MODEL_LABEL)):
            self._enqueue(namespace, name)

    def _changed(self, change: Change) -> None:
        metadata = change.object["metadata"]
        if change.resource is ISVC:
            self._enqueue(metadata["namespace"], metadata["name"])
        elif change.resource in (PODS, REVISION, DEPLOYMENT) and (
            name := (metadata.get("labels") or {}).get(MODEL_LABEL)
        ):
            self._enqueue(metadata["namespace"], name)
        elif change.resource in RUNTIMES:
            for isvc in self.store.list(ISVC):
                self._enqueue(isvc["metadata"]["namespace"], isvc["metadata"]["name"])
        elif change.resource.kind == "Namespace" and "deletionTimestamp" in metadata and change.type == "MODIFIED":
            asyncio.get_running_loop().create_task(self._end_namespace(metadata["name"]))

    def _enqueue(self, namespace: str, name: str) -> None:
        if (namespace, name) not in self._queued:
            self._queued.add((namespace, name))
            self._pending.put_nowait((namespace, name))

    async def run(self) -> None:
        while True:
            key = await self._pending.get()
            self._queued.discard(key)
            try:
                self._reconcile(*key)
            except ApiError as error:
                if error.code not in (404, 409):  # gone or changed meanwhile: a later change brings us back
                    _log.exception("reconciling %s/%s", *key)
            except Exception:
                _log.exception("reconciling %s/%s", *key)

    async def _end_namespace(self, name: str) -> None:
        for resource in BY_KIND.values():
            if resource.namespaced and resource is not PODS:
                for item in self.store.list(resource, name):
                    with contextlib.suppress(ApiError):
                        self.store.delete(resource, name, item["metadata"]["name"])
        for pod in self.store.list(PODS, name):
            with contextlib.suppress(ApiError):
                self.store.delete(PODS, name, pod["metadata"]["name"])
        while self.store.list(PODS, name):
            await asyncio.sleep(0.05)
        for item in self.store.list(BY_KIND["Event"], name):
            self.store.remove(BY_KIND["Event"], name, item["metadata"]["name"])
        self.store.remove(BY_KIND["Namespace"], "", name)

    # Reconciling
    def template_of(self, isvc: Object) -> Object:
        """Raises InvalidSpec."""
        namespaced = self.store.list(RUNTIMES[0], isvc["metadata"]["namespace"])
        return build_template(isvc, namespaced, self.store.list(RUNTIMES[1]))

    def _reconcile(self, namespace: str, name: str) -> None:
        isvc = self.store.find("InferenceService", namespace, name)
        if isvc is None or "deletionTimestamp" in isvc["metadata"]:
            self.knative.forget(namespace, name)
            self.standard.forget(namespace, name)
            return
        template: Object | None = None
        invalid: InvalidSpec | None = None
        try:
            template = self.template_of(isvc)
        except InvalidSpec as error:
            invalid = error
        mode = self.standard if is_standard(isvc) else self.knative
        mode.reconcile(isvc, template, invalid)
