"""InferenceServices on any cluster, through the ``kubernetes`` client: deploy, wait, explain, collect, delete."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness.base.errors import ClusterError, DeployError
from harness.kubernetes.apierrors import PASSING, explain
from harness.kubernetes.client import api_client, authorized
from harness.kubernetes.events import Happened, last_stamp, likely_offset_s, times
from harness.kubernetes.podwatch import EventWatch, PodWatch
from harness.results.records import TimelineEvent

Object = dict[str, Any]
GROUP = "serving.kserve.io"
POLL_S = 0.2
RESOLVE_S = 15.0
"""How long a registry may fail to say what a tag is: Knative asks again, and now and then it helps."""
LOG_LINES = 40
PROXY_S = 15.0
CONFLICTS = 5
RETRY_S = 1.0
_PLURALS = {"InferenceService": "inferenceservices", "ServingRuntime": "servingruntimes"}
_HOPELESS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError")
CRASHES = 2
"""A container that failed this often is not waited for any longer."""


class _ConflictError(ClusterError):
    pass


class Used(NamedTuple):
    """What a kubelet says of a pod: processor seconds since its start, bytes of its working set, and when it looked, in
    seconds of the node's clock."""

    cpu_s: float
    memory_bytes: int
    at_s: float


class KServe:
    """One cluster and one namespace. Blocking calls run in threads; all errors of the API become ClusterError."""

    def __init__(self, kubeconfig: Path, namespace: str, patience_s: float = 0.0) -> None:
        """``patience_s`` is for how long a call is repeated while the API does not answer, or answers that it cannot
        now. Raises UsageError for a kubeconfig that cannot be read."""
        from kubernetes import client

        self.namespace = namespace
        self.patience_s = patience_s
        api = api_client(kubeconfig)
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self._client = client
        self._before: dict[str, int] = {}
        """How often each event had happened when the timeline began, by its uid."""

    async def _call(self, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """``_request_timeout`` bounds each call. 404 raises LookupError. Repeating is safe: a creation that had
        succeeded after all is a conflict, which ``apply`` expects."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return await asyncio.to_thread(function, *arguments, _request_timeout=30, **options)
            except self._client.ApiException as error:
                if error.status == 404:
                    raise LookupError(what) from error
                if error.status == 409:
                    raise _ConflictError(f"{what}: {explain(error.status, error.reason, str(error.body))}") from error
                if error.status not in PASSING or time.monotonic() > deadline:
                    raise ClusterError(f"{what}: {explain(error.status, error.reason, str(error.body))}") from error
            except ValueError as error:  # of the client's models
                raise ClusterError(f"{what}: the API's answer cannot be read: {error}") from error
            except Exception as error:  # urllib3 raises many kinds
                if time.monotonic() > deadline:
                    for_s = f" for {self.patience_s:g} s" if self.patience_s else ""
                    raise ClusterError(f"{what}: the Kubernetes API does not answer{for_s}: {error}") from error
            await asyncio.sleep(RETRY_S)

    async def ensure_namespace(self) -> bool:
        """Whether it was created just now."""
        try:
            await self._call(f"namespace {self.namespace}", self._core.read_namespace, self.namespace)
        except LookupError:
            body = {"metadata": {"name": self.namespace, "labels": {"app.kubernetes.io/managed-by": "servecert"}}}
            await self._call(f"namespace {self.namespace}", self._core.create_namespace, body)
            return True
        return False

    async def apply(self, manifest: Object) -> None:
        """Creates the object, or replaces its spec; somebody who does the same at that moment is no error."""
        plural = _PLURALS[manifest["kind"]]
        name = manifest["metadata"]["name"]
        version = manifest["apiVersion"].rpartition("/")[2]
        where = (GROUP, version, self.namespace, plural)
        what = f"{manifest['kind']} {self.namespace}/{name}"
        for attempt in range(CONFLICTS):
            try:
                live = await self._call(what, self._custom.get_namespaced_custom_object, *where, name)
            except LookupError:
                try:
                    await self._call(what, self._custom.create_namespaced_custom_object, *where, manifest)
                    return
                except LookupError as error:
                    raise ClusterError(
                        f"{what}: the cluster does not know {GROUP}; is KServe installed on it?"
                    ) from error
                except _ConflictError:
                    if attempt == CONFLICTS - 1:
                        raise
                    continue
            metadata = {**manifest["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}
            body = {**manifest, "metadata": metadata}
            try:
                await self._call(what, self._custom.replace_namespaced_custom_object, *where, name, body)
                return
            except _ConflictError:
                if attempt == CONFLICTS - 1:
                    raise

    async def get(self, name: str) -> Object:
        """Raises LookupError."""
        where = (GROUP, "v1beta1", self.namespace, "inferenceservices")
        what = f"InferenceService {self.namespace}/{name}"
        found: Object = await self._call(what, self._custom.get_namespaced_custom_object, *where, name)
        return found

    async def patch(self, name: str, body: Object) -> None:
        """A merge patch. Raises ClusterError; LookupError when there is no such service."""
        where = (GROUP, "v1beta1", self.namespace, "inferenceservices")
        what = f"InferenceService {self.namespace}/{name}"
        await self._call(what, self._custom.patch_namespaced_custom_object, *where, name, body)

    async def revisions(self, name: str) -> list[Object]:
        """Knative's revisions of the predictor, oldest first; none where the cluster has no Knative."""
        where = ("serving.knative.dev", "v1", self.namespace, "revisions")
        selector = f"serving.knative.dev/configuration={name}-predictor"
        try:
            listed = await self._call(
                f"revisions of {name}", self._custom.list_namespaced_custom_object, *where, label_selector=selector
            )
        except LookupError:
            return []
        return sorted(listed["items"], key=lambda item: str(item["metadata"]["name"]))

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        """Its data. Raises LookupError, or ClusterError where it may not be read."""
        what = f"ConfigMap {namespace}/{name}"
        found = await self._call(what, self._core.read_namespaced_config_map, name, namespace)
        return dict(found.data or {})

    async def ask_pod(self, name: str, port: int, path: str, body: Object | None = None) -> str:
        """The text of a pod's answer, through the API server's proxy; a POST where there is a body. Raises LookupError
        where the pod or the path does not exist, ClusterError for anything but success."""
        what = f"{path} of pod {name}, port {port}"
        return await self._through(what, f"namespaces/{self.namespace}/pods/{name}:{port}/proxy{path}", body)

    async def usage(self, name: str) -> dict[str, Used]:
        """Of each pod of a service, by its name: what the kubelets of its nodes saw when they last looked. Raises
        ClusterError where they do not say (that takes the right to get nodes/proxy)."""
        pods = {pod["metadata"]["uid"]: pod for pod in await self.pods(name)}
        found = {}
        for node in dict.fromkeys(pod["spec"].get("nodeName") for pod in pods.values()):
            if not node:
                continue
            what = f"/stats/summary of node {node}"
            try:
                summary = json.loads(await self._through(what, f"nodes/{node}/proxy/stats/summary"))
                for item in summary["pods"]:
                    if (pod := pods.get(item["podRef"]["uid"])) is not None:
                        cpu = item["cpu"]
                        found[pod["metadata"]["name"]] = Used(
                            cpu["usageCoreNanoSeconds"] / 1e9,
                            int(item["memory"]["workingSetBytes"]),
                            datetime.fromisoformat(cpu["time"]).timestamp(),
                        )
            except LookupError as error:
                raise ClusterError(f"{what}: not found, or without {error}") from error
            except (ValueError, TypeError) as error:
                raise ClusterError(f"{what}: not a summary of pods: {error}") from error
        if not found:
            raise ClusterError(f"no kubelet says what the pods of {name} use")
        return found

    async def _through(self, what: str, path: str, body: Object | None = None) -> str:
        """The text of what answers behind the API server's proxies; a POST where there is a body. Raises as ``ask_pod``
        does."""
        client = self._core.api_client
        # The generated calls for proxies take no body; the connection pool beneath them does.
        pool, method = client.rest_client.pool_manager, "GET" if body is None else "POST"
        try:
            answer = await asyncio.to_thread(
                pool.request,
                method,
                f"{client.configuration.host}/api/v1/{path}",
                headers=authorized(client),
                body=None if body is None else json.dumps(body).encode(),
                timeout=PROXY_S,
                retries=False,
            )
        except Exception as error:  # urllib3 raises many kinds
            raise ClusterError(f"{what}: the Kubernetes API does not answer: {error}") from error
        text = bytes(answer.data).decode(errors="replace")
        if answer.status == 404:
            raise LookupError(what)
        if answer.status != 200:
            raise ClusterError(f"{what}: answered {answer.status}: {text[:300]}")
        return text

    async def delete_pod(self, name: str) -> None:
        """Raises LookupError when it is gone already."""
        await self._call(f"pod {name}", self._core.delete_namespaced_pod, name, self.namespace)

    async def version(self) -> str:
        """What the API server says that it is."""
        return str((await self._call("version", self._client.VersionApi(self._core.api_client).get_code)).git_version)

    async def clock_offset_s(self) -> tuple[float, float]:
        """Between which bounds the cluster's clock is ahead of this machine's: from the Date header of an answer, which
        is cut to a second, and the time that the answer took."""
        before = datetime.now(UTC).timestamp()
        _, _, headers = await self._call(
            "version", self._client.VersionApi(self._core.api_client).get_code_with_http_info
        )
        after = datetime.now(UTC).timestamp()
        if not headers.get("date"):
            raise ClusterError("the API server's answers have no Date header, so its clock is not known")
        stamp = parsedate_to_datetime(headers["date"]).timestamp()
        return stamp - after, stamp + 1 - before

    def watch_pods(self, name: str) -> PodWatch:
        """An asynchronous context manager that follows the pods of a service."""
        selector = f"serving.kserve.io/inferenceservice={name}"
        return PodWatch(self._core, self.namespace, selector, self.patience_s)

    def watch_events(self) -> EventWatch:
        """An asynchronous context manager that follows the events about pods."""
        return EventWatch(self._core, self.namespace, self.patience_s)

    async def happened(self, reason: str) -> dict[str, Happened]:
        """The events of a reason by their uids, with how often each has happened: an event that happens again counts
        up, and the list of events does not grow."""
        return {
            item["metadata"]["uid"]: Happened(
                times(item), str(item["involvedObject"].get("name", "")), str(item.get("message") or "")
            )
            for item in await self._events()
            if item.get("reason") == reason
        }

    async def pods(self, name: str) -> list[Object]:
        selector = f"serving.kserve.io/inferenceservice={name}"
        listed = await self._call(
            f"pods of {name}", self._core.list_namespaced_pod, self.namespace, label_selector=selector
        )
        items: list[Object] = self._core.api_client.sanitize_for_serialization(listed.items)
        return items

    async def pod_log(self, pod: str, container: str, *, previous: bool = False, lines: int | None = None) -> str:
        """Empty where there is none."""
        options: Object = {"container": container, "previous": previous}
        if lines is not None:
            options["tail_lines"] = lines
        try:
            text = await self._call(f"log of {pod}", self._core.read_namespaced_pod_log, pod, self.namespace, **options)
        except (LookupError, ClusterError):
            return ""
        return str(text or "")  # a container that was never started has none

    async def wait_ready(self, name: str, within_s: float, progress: Callable[[str], None]) -> Object:
        """Raises DeployError with the reason and the last log lines: at once where waiting is of no use."""
        deadline = time.monotonic() + within_s
        shown, unresolved_since = "", 0.0
        while True:
            try:
                isvc = await self.get(name)
            except LookupError as error:
                raise DeployError(
                    f"InferenceService {self.namespace}/{name} was deleted while it was waited for"
                ) from error
            if is_isvc_ready(isvc):
                return isvc
            pods = await self.pods(name)
            text = describe_state(isvc, pods)
            if text != shown:
                shown = text
                progress(text)
            why = hopeless(isvc, pods)
            if unresolved := unresolved_image(isvc):
                unresolved_since = unresolved_since or time.monotonic()
                if time.monotonic() - unresolved_since > RESOLVE_S:
                    why = unresolved
            else:
                unresolved_since = 0.0
            if why:
                warning = await self.last_warning(name)
                raise DeployError(
                    f"InferenceService {self.namespace}/{name}: {why}{'' if why in warning else warning}",
                    await self.last_log(pods),
                )
            if time.monotonic() > deadline:
                raise DeployError(
                    f"InferenceService {self.namespace}/{name} was not ready within {within_s:g} s ({text});"
                    f" raise ready_within if it only needs longer{await self.last_warning(name)}",
                    await self.last_log(pods),
                )
            await asyncio.sleep(POLL_S)

    async def last_warning(self, name: str) -> str:
        """The newest warning among the events of a service's objects, with the object; empty where there is none."""
        try:
            listed = await self._call("events", self._core.list_namespaced_event, self.namespace)
        except (LookupError, ClusterError):
            return ""
        items: list[Object] = self._core.api_client.sanitize_for_serialization(listed.items)
        theirs = [
            item
            for item in items
            if item.get("type") == "Warning" and str(item["involvedObject"].get("name", "")).startswith(name)
        ]
        if not theirs:
            return ""
        newest = max(theirs, key=lambda item: last_stamp(item) or "")
        about = newest["involvedObject"]
        what = f"{newest.get('reason')}: {newest.get('message')}"
        return f"; last warning: {about.get('kind')} {self.namespace}/{about.get('name')}: {what}"

    async def node(self, name: str) -> Object | None:
        """None where it does not exist, or may not be read."""
        try:
            found = await self._call(f"node {name}", self._core.read_node, name)
        except (LookupError, ClusterError):
            return None
        result: Object = self._core.api_client.sanitize_for_serialization(found)
        return result

    async def lost_nodes(self, since: datetime) -> list[str]:
        """What is to be said of nodes that stopped being ready after ``since``, those that came back included;
        none where nodes may not be read."""
        try:
            listed = await self._call("nodes", self._core.list_node)
        except (LookupError, ClusterError):
            return []
        found, then = [], since.replace(microsecond=0)  # Kubernetes' timestamps are cut to the second
        for node in self._core.api_client.sanitize_for_serialization(listed.items):
            name, born = node["metadata"]["name"], node["metadata"].get("creationTimestamp")
            for item in (node.get("status") or {}).get("conditions") or []:
                stamp = item.get("lastTransitionTime")
                if item["type"] != "Ready" or not stamp or datetime.fromisoformat(stamp) < then:
                    continue
                if item["status"] != "True":
                    found.append(f"node {name} was lost ({item.get('reason', 'not ready')})")
                elif born and datetime.fromisoformat(born) < then:  # a new one becomes ready as well
                    found.append(f"node {name} was lost, and is back since {stamp}")
        return found

    async def last_log(self, pods: list[Object]) -> str:
        """The newest words of the container that is in trouble, of the run before where the present one has none."""
        for pod in pods:
            container, crashed = _troubled(pod)
            for previous in (False, True) if not crashed else (True, False):
                text = await self.pod_log(pod["metadata"]["name"], container, previous=previous, lines=LOG_LINES)
                if text.strip():
                    return text.strip()
        return ""

    async def delete(self, name: str, within_s: float = 60.0) -> None:
        """Returns when the service and its pods are gone. Raises ClusterError when they do not go."""
        where = (GROUP, "v1beta1", self.namespace, "inferenceservices")
        try:
            await self._call(f"deleting {name}", self._custom.delete_namespaced_custom_object, *where, name)
        except LookupError:
            return
        deadline = time.monotonic() + within_s
        while await self.pods(name):
            if time.monotonic() > deadline:
                raise ClusterError(f"the pods of {self.namespace}/{name} were not gone within {within_s:g} s")
            await asyncio.sleep(POLL_S)

    async def _events(self) -> list[Object]:
        listed = await self._call("events", self._core.list_namespaced_event, self.namespace)
        items: list[Object] = self._core.api_client.sanitize_for_serialization(listed.items)
        return items

    async def begin_timeline(self) -> None:
        """What the namespace's events tell of up to now is not of this run: they stay for an hour, and services of
        earlier runs had the same names."""
        self._before = {item["metadata"]["uid"]: times(item) for item in await self._events()}

    async def timeline(self) -> list[TimelineEvent]:
        """The namespace's Kubernetes events since it began, in order; on this machine's clock as far as the cluster's
        is known."""
        items = await self._events()
        ahead_s = 0.0
        with contextlib.suppress(ClusterError, LookupError):
            ahead_s = likely_offset_s(await self.clock_offset_s())
        here, wall = time.monotonic(), datetime.now(UTC)
        found = []
        for item in items:
            before = self._before.get(item["metadata"]["uid"], 0)
            count = times(item) - before
            if count <= 0:
                continue
            first = item.get("eventTime") or item.get("firstTimestamp")
            stamp = (last_stamp(item) if before else first) or item["metadata"]["creationTimestamp"]
            moment = datetime.fromisoformat(stamp)
            about = item["involvedObject"]
            often = f" (×{count})" if count > 1 else ""
            found.append(
                TimelineEvent(
                    source="kubernetes",
                    object=f"{about.get('kind', '').lower()}/{about.get('name', '')}",
                    what=item.get("reason") or "",
                    detail=(item.get("message") or "") + often,
                    monotonic_s=here - (wall - moment).total_seconds() - ahead_s,
                    wall=moment.isoformat(timespec="milliseconds"),
                )
            )
        return sorted(found, key=lambda event: event.monotonic_s)


# Reading statuses: pure


def traffic_of(isvc: Object) -> dict[str, int]:
    """Percent by revision, as the status has it."""
    predictor = ((isvc.get("status") or {}).get("components") or {}).get("predictor") or {}
    shares: dict[str, int] = {}
    for target in predictor.get("traffic") or []:
        shares[target["revisionName"]] = shares.get(target["revisionName"], 0) + (target.get("percent") or 0)
    return shares


def is_pod_running(pod: Object) -> bool:
    """Whether a process of one of its containers, initial ones apart, is there."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any("running" in (item.get("state") or {}) for item in statuses)


def is_pod_ready(pod: Object) -> bool:
    """Ready, and not on its way out."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")


def is_isvc_ready(isvc: Object) -> bool:
    status = isvc.get("status") or {}
    current = status.get("observedGeneration", 0) >= isvc["metadata"].get("generation", 0)
    return current and any(
        item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions") or []
    )


def _statuses(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def describe_state(isvc: Object, pods: list[Object]) -> str:
    """One line for people who wait."""
    waits = []
    for pod in pods:
        if why := unschedulable(pod):
            waits.append(f"unschedulable: {why}")
        for item in _statuses(pod):
            state = item.get("state") or {}
            if reason := (state.get("waiting") or {}).get("reason"):
                waits.append(reason)
            elif state.get("running") and not item.get("ready"):
                waits.append("loading" if item["name"] != "storage-initializer" else "downloading the model")
    model = (isvc.get("status") or {}).get("modelStatus") or {}
    return ", ".join(dict.fromkeys(waits)) or model.get("transitionStatus") or "no pod yet"


def unschedulable(pod: Object) -> str:
    """What the scheduler says of a pod that it has no node for; empty for others."""
    for item in (pod.get("status") or {}).get("conditions") or []:
        if item["type"] == "PodScheduled" and item["status"] == "False":
            return str(item.get("message") or item.get("reason") or "no node fits")
    return ""


def hopeless(isvc: Object, pods: list[Object]) -> str | None:
    """Why waiting longer is of no use; None where it may be."""
    model = (isvc.get("status") or {}).get("modelStatus") or {}
    failure = model.get("lastFailureInfo") or {}
    if model.get("transitionStatus") == "InvalidSpec":
        return f"{failure.get('reason', 'InvalidSpec')}: {failure.get('message', '')}"
    for message in _complaints(isvc):
        if "denied the request" in message:  # an admission webhook, which will say so again
            return message
    for pod in pods:
        for item in _statuses(pod):
            waiting = (item.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _HOPELESS:
                return f"{waiting['reason']}: {waiting.get('message', '')}"
            if waiting.get("reason") == "CrashLoopBackOff" and item.get("restartCount", 0) >= CRASHES:
                last = (item.get("lastState") or {}).get("terminated") or {}
                if item["name"] == "storage-initializer":
                    return f"the model could not be downloaded: {last.get('message') or waiting.get('message', '')}"
                return f"container {item['name']} crashes at start: exit code {last.get('exitCode', 'unknown')}"
    return None


def unresolved_image(isvc: Object) -> str:
    """What Knative says where it cannot turn an image's tag into a digest; empty where it can."""
    return next((message for message in _complaints(isvc) if "Unable to fetch image" in message), "")


def _complaints(isvc: Object) -> list[str]:
    conditions = (isvc.get("status") or {}).get("conditions") or []
    return [str(item.get("message") or "") for item in conditions if item.get("status") == "False"]


def _troubled(pod: Object) -> tuple[str, bool]:
    """The container to ask for its log, and whether it has crashed."""
    for item in _statuses(pod):
        ended = (item.get("state") or {}).get("terminated") or {}
        if not item.get("ready") and ended.get("exitCode") != 0:
            return item["name"], item.get("restartCount", 0) > 0 and "running" not in (item.get("state") or {})
    containers = pod["spec"]["containers"]
    return containers[0]["name"], False
