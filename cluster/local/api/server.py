"""The Kubernetes API of the embedded cluster, as one ASGI application over a Store.

Sources: Kubernetes API concepts, API conventions, and the discovery and OpenAPI endpoints that kubectl and the official
clients call. Every request needs the bearer token.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

import yaml
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cluster.local.api import openapi, openapi_protobuf, patches, protobuf_bodies
from cluster.local.api.admission import refused_runtime
from cluster.local.api.podmarks import PORTS_ANNOTATION, local_port
from cluster.local.api.resources import BY_KEY, BY_KIND, RESOURCES, Object, ResourceType, table
from cluster.local.api.selectors import field_selector, label_selector
from cluster.local.api.store import ApiError, Change, Store, Watch, conflict

if TYPE_CHECKING:
    import httpx

VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0+servecert",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2025-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux/amd64",
}
MAX_BODY_BYTES = 3 << 20
BOOKMARK_S = 10.0
PROXY_S = 10.0
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


class Node(Protocol):
    """The node that pods run on: what ``pods/log`` and ``nodes/proxy`` read from."""

    name: str

    def stats(self) -> Object:
        """The kubelet's ``/stats/summary``."""
        ...

    def read(
        self, namespace: str, pod: str, container: str, *, previous: bool, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True)
class Target:
    """What a URL names."""

    resource: ResourceType
    namespace: str
    name: str
    subresource: str


def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for resource in RESOURCES:
        if resource.group and resource.version not in groups.setdefault(resource.group, []):
            groups[resource.group].append(resource.version)
    return groups


def _api_group(name: str, versions: list[str]) -> Object:
    described = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    # The first InferenceService version is what kubectl should prefer.
    return {"name": name, "versions": described, "preferredVersion": described[0]}


def _resource_list(group_version: str, resources: list[ResourceType]) -> Object:
    listed: list[Object] = []
    for resource in resources:
        common = {"namespaced": resource.namespaced, "kind": resource.kind}
        listed.append(
            {
                "name": resource.plural,
                "singularName": resource.singular,
                "verbs": VERBS,
                "shortNames": list(resource.short_names),
                "categories": list(resource.categories),
                **common,
            }
        )
        if resource.status:
            listed.append(
                {"name": f"{resource.plural}/status", "singularName": "", "verbs": ["get", "patch", "update"], **common}
            )
        if resource.kind == "Pod":
            listed.append({"name": "pods/log", "singularName": "", "verbs": ["get"], **common})
            proxied = {**common, "kind": "PodProxyOptions"}
            listed.append({"name": "pods/proxy", "singularName": "", "verbs": ["create", "get"], **proxied})
        if resource.kind == "Node":
            proxied = {**common, "kind": "NodeProxyOptions"}
            listed.append({"name": "nodes/proxy", "singularName": "", "verbs": ["get"], **proxied})
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}


class ApiServer:
    """``bookmark_s`` is how often a quiet watch says where it stands."""

    def __init__(self, store: Store, node: Node, token: str, *, bookmark_s: float = BOOKMARK_S) -> None:
        self.store = store
        self.node = node
        self.bookmark_s = bookmark_s
        self.closing = asyncio.Event()
        self._token = token
        self._pods: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ApiError as error:
            response = JSONResponse(error.status(), error.code)
        except ClientDisconnect:
            return
        with contextlib.suppress(ClientDisconnect):
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        parts = [part for part in request.url.path.split("/") if part]
        if answer := self._discovery(request, parts):
            return answer
        match parts:
            case ["api", "v1", "namespaces", namespace, "pods", pod, "proxy", *rest]:
                return await self._proxy(request, namespace, pod, "/" + "/".join(rest))
            case ["api", "v1", "nodes", self.node.name, "proxy", "stats", "summary"] if request.method == "GET":
                return JSONResponse(await asyncio.to_thread(self.node.stats))
            case ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] if request.method == "POST":
                return await self._review(request)
        target = self._target(parts)
        query = dict(parse_qsl(request.url.query, keep_blank_values=True))
        if target.subresource == "log":
            return self._log(target, query)
        if target.subresource not in ("", "status") or (target.subresource == "status" and not target.resource.status):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        method = request.method
        if method == "GET":
            if target.name:
                return self._render_one(
                    request, target.resource, self.store.get(target.resource, target.namespace, target.name)
                )
            if query.get("watch") in ("true", "1"):
                return self._watch(request, target, query)
            return self._list(request, target, query)
        body = await self._body(request)
        if method == "POST" and not target.name:
            return self._create(request, target, query, body)
        if method == "PUT" and target.name:
            return self._update(request, target, query, body)
        if method == "PATCH" and target.name:
            return self._patch(request, target, query, body)
        if method == "DELETE":
            return self._delete(request, target, query, body)
        raise ApiError(405, "MethodNotAllowed", f"{method} is not supported on {request.url.path}")

    # Discovery

    def _discovery(self, request: Request, parts: list[str]) -> Response | None:
        match parts:
            case ["version"]:
                return JSONResponse(VERSION)
            case ["healthz" | "livez" | "readyz", *_]:
                return PlainTextResponse("ok")
            case ["api"]:
                return JSONResponse({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
            case ["api", "v1"]:
                return JSONResponse(_resource_list("v1", [r for r in RESOURCES if not r.group]))
            case ["apis"]:
                groups = [_api_group(name, versions) for name, versions in _groups().items()]
                return JSONResponse({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            case ["apis", group] if group in _groups():
                described = _api_group(group, _groups()[group])
                return JSONResponse({"kind": "APIGroup", "apiVersion": "v1", **described})
            case ["apis", group, version] if version in _groups().get(group, []):
                resources = [r for r in RESOURCES if (r.group, r.version) == (group, version)]
                return JSONResponse(_resource_list(f"{group}/{version}", resources))
            case ["openapi", "v2"]:
                return self._openapi_v2(request)
            case ["openapi", "v3"]:
                paths = {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}}
                for group, versions in _groups().items():
                    for version in versions:
                        name = f"apis/{group}/{version}"
                        paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}"}
                return JSONResponse({"paths": paths})
            case ["openapi", "v3", "api", "v1"]:
                return JSONResponse(openapi.openapi_v3("", "v1"))
            case ["openapi", "v3", "apis", group, version] if version in _groups().get(group, []):
                return JSONResponse(openapi.openapi_v3(group, version))
        return None

    def _openapi_v2(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        if "proto-openapi" in accept and "application/json" not in accept:
            document = openapi_protobuf.document(openapi.openapi_v2())
            return Response(document, media_type=openapi_protobuf.CONTENT_TYPE)
        return JSONResponse(openapi.openapi_v2())

    async def _review(self, request: Request) -> Response:
        """Whoever has the token may do everything. Source: authorization.k8s.io/v1."""
        body = await self._body(request) or {}
        return JSONResponse({**body, "status": {"allowed": True, "reason": "the token allows everything"}}, 201)

    def _target(self, parts: list[str]) -> Target:
        if parts[:2] == ["api", "v1"]:
            group, version, rest = "", "v1", parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = (*rest, "", "", "")[:3]
        resource = BY_KEY.get(f"{plural}.{group}" if group else plural)
        if resource is None or resource.version != version or len(rest) > 3:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if resource.namespaced and name and not namespace:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return Target(resource, namespace if resource.namespaced else "", name, subresource)

    async def _read(self, request: Request) -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise ApiError(413, "RequestEntityTooLarge", f"limit is {MAX_BODY_BYTES} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _body(self, request: Request) -> Any:
        body = await self._read(request)
        if not body:
            return None
        kind = request.headers.get("content-type", "application/json").partition(";")[0]
        if "protobuf" in kind:
            try:
                return protobuf_bodies.decode(body)
            except LookupError as error:
                raise ApiError(
                    415, "UnsupportedMediaType", f"cannot read {error.args[0]}; send JSON or YAML"
                ) from error
            except ValueError as error:
                raise ApiError(400, "BadRequest", str(error)) from error
        try:
            return yaml.safe_load(body) if "yaml" in kind else json.loads(body)
        except (ValueError, yaml.YAMLError) as error:
            raise ApiError(400, "BadRequest", f"the body is neither JSON nor YAML as announced: {error}") from error

    # Reading

    def _render_one(self, request: Request, resource: ResourceType, item: Object, code: int = 200) -> Response:
        if _wants_table(request):
            metadata = {"resourceVersion": item["metadata"]["resourceVersion"]}
            return JSONResponse(table(resource, [item], metadata, include=_include(request)), code)
        return JSONResponse(item, code)

    def _filter(self, target: Target, query: dict[str, str]) -> Callable[[Object], bool]:
        try:
            by_label = label_selector(query.get("labelSelector", ""))
            by_field = field_selector(query.get("fieldSelector", ""))
        except ValueError as error:
            raise ApiError(400, "BadRequest", str(error)) from error

        def wanted(item: Object) -> bool:
            if target.namespace and item["metadata"].get("namespace") != target.namespace:
                return False
            return by_label(item) and by_field(item)

        return wanted

    def _list(self, request: Request, target: Target, query: dict[str, str]) -> Response:
        wanted = self._filter(target, query)
        items = [item for item in self.store.list(target.resource, target.namespace) if wanted(item)]
        metadata: Object = {"resourceVersion": str(self.store.version)}
        if limit := int(query.get("limit") or 0):
            start = int(query.get("continue") or 0)
            if start + limit < len(items):
                metadata["continue"] = str(start + limit)
                metadata["remainingItemCount"] = len(items) - start - limit
            items = items[start : start + limit]
        if _wants_table(request):
            return JSONResponse(table(target.resource, items, metadata, include=_include(request)))
        return JSONResponse(
            {
                "kind": f"{target.resource.kind}List",
                "apiVersion": target.resource.api_version,
                "metadata": metadata,
                "items": items,
            }
        )

    def _watch(self, request: Request, target: Target, query: dict[str, str]) -> Response:
        if query.get("sendInitialEvents"):
            raise ApiError(422, "Invalid", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch")
        wanted = self._filter(target, query)
        asked = query.get("resourceVersion") or "0"
        if not asked.isdigit():
            raise ApiError(400, "BadRequest", f"resourceVersion must be a number, got {asked!r}")
        version = int(asked)
        initial: list[Object] = []
        if version == 0:
            initial = [item for item in self.store.list(target.resource, target.namespace) if wanted(item)]
            version = self.store.version
        try:
            watch = Watch(self.store, target.resource, version)
        except ApiError as error:
            # A watch that cannot start says so inside the stream, as the API does, with the status 200.
            return StreamingResponse(
                iter([_line({"type": "ERROR", "object": error.status()})]), media_type="application/json"
            )
        timeout_s = float(query.get("timeoutSeconds") or 1800)
        as_table = _wants_table(request)
        include = _include(request)
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")

        def render(kind: str, item: Object) -> bytes:
            if as_table:
                metadata = {"resourceVersion": item["metadata"]["resourceVersion"]}
                item = table(target.resource, [item], metadata, include=include)
            return _line({"type": kind, "object": item})

        def describe(change: Change) -> bytes | None:
            """An object that starts or stops matching the selector is added or deleted for this watcher."""
            matches = wanted(change.object)
            matched = change.previous is not None and wanted(change.previous)
            if change.type == "DELETED":
                return render("DELETED", change.object) if matched else None
            if matches:
                return render("MODIFIED" if matched else "ADDED", change.object)
            return render("DELETED", change.object) if matched else None

        def bookmark() -> bytes:
            return _line(
                {
                    "type": "BOOKMARK",
                    "object": {
                        "kind": target.resource.kind,
                        "apiVersion": target.resource.api_version,
                        "metadata": {"resourceVersion": str(self.store.version), "creationTimestamp": None},
                    },
                }
            )

        async def stream() -> AsyncIterator[bytes]:
            deadline = time.monotonic() + timeout_s
            try:
                for item in initial:
                    yield render("ADDED", item)
                for change in watch.backlog:
                    if line := describe(change):
                        yield line
                closing = asyncio.ensure_future(self.closing.wait())
                try:
                    while (left := deadline - time.monotonic()) > 0 and not closing.done():
                        change_or_end = asyncio.ensure_future(watch.next(min(left, self.bookmark_s)))
                        await asyncio.wait({change_or_end, closing}, return_when=asyncio.FIRST_COMPLETED)
                        if not change_or_end.done():
                            change_or_end.cancel()
                            return
                        try:
                            found = change_or_end.result()
                        except TimeoutError:
                            if bookmarks:
                                yield bookmark()
                            continue
                        if found is None:
                            return
                        if line := describe(found):
                            yield line
                finally:
                    closing.cancel()
            finally:
                watch.close()

        return StreamingResponse(stream(), media_type="application/json")

    async def _proxy(self, request: Request, namespace: str, pod: str, path: str) -> Response:
        """A request to a pod's port, ``NAME[:PORT]``, as ``pods/proxy`` passes it on."""
        if request.method not in ("GET", "POST"):
            raise ApiError(405, "MethodNotAllowed", f"{request.method} is not passed on to pods here; GET and POST are")
        sent = await self._read(request)
        name, _, wanted = pod.partition(":")
        found = self.store.get(BY_KIND["Pod"], namespace, name)
        ports = json.loads((found["metadata"].get("annotations") or {}).get(PORTS_ANNOTATION, "{}"))
        if not ports:
            raise ApiError(503, "ServiceUnavailable", f"pod {name} does not run")
        port = local_port(found["spec"]["containers"][0], ports, int(wanted) if wanted.isdigit() else wanted or "http")
        url = f"http://{found['status']['podIP']}:{port}{path}"
        import httpx  # takes a while, which a cluster that passes nothing on need not wait for

        if self._pods is None:
            self._pods = httpx.AsyncClient(timeout=PROXY_S, trust_env=False)
        try:
            answer = await self._pods.request(
                request.method,
                url,
                params=dict(request.query_params),
                content=sent,
                headers={"content-type": request.headers.get("content-type", "application/json")},
            )
        except httpx.HTTPError as error:
            raise ApiError(503, "ServiceUnavailable", f"error trying to reach pod {name}: {error}") from error
        kind = answer.headers.get("content-type", "text/plain")
        return Response(answer.content, answer.status_code, {"content-type": kind})

    def _log(self, target: Target, query: dict[str, str]) -> Response:
        pod = self.store.get(target.resource, target.namespace, target.name)
        names = [c["name"] for key in ("containers", "initContainers") for c in pod["spec"].get(key, [])]
        container = query.get("container") or names[0]
        if container not in names:
            raise ApiError(400, "BadRequest", f"container {container} is not valid for pod {target.name}")
        tail = query.get("tailLines")
        stream = self.node.read(
            target.namespace,
            target.name,
            container,
            previous=query.get("previous") == "true",
            follow=query.get("follow") == "true",
            tail_lines=int(tail) if tail else None,
        )
        return StreamingResponse(stream, media_type="text/plain")

    # Writing

    def _admit(self, target: Target, item: Any, query: dict[str, str], *, strict_default: str = "Warn") -> None:
        """Raises ApiError 422 for wrong types, 400 for unknown fields where strict validation is asked for, and 403 for
        what KServe's webhook refuses."""
        resource = target.resource
        if not isinstance(item, dict):
            raise ApiError(400, "BadRequest", f"expected a {resource.kind} object, got {type(item).__name__}")
        for key, expected in (("apiVersion", resource.api_version), ("kind", resource.kind)):
            if item.get(key, expected) != expected:
                raise ApiError(400, "BadRequest", f"{key} {item[key]!r} does not match the URL's {expected!r}")
        if wrong := openapi.type_errors(resource, item):
            name = item.get("metadata", {}).get("name", "") if isinstance(item.get("metadata"), dict) else ""
            raise ApiError(422, "Invalid", f'{resource.kind} "{name}" is invalid: {"; ".join(wrong)}')
        if query.get("fieldValidation", strict_default) == "Strict" and (
            unknown := openapi.unknown_fields(resource, item)
        ):
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise ApiError(400, "BadRequest", f"strict decoding error: {listed}")
        if resource.kind == "InferenceService":
            spec = item.get("spec") or {}
            if not spec.get("predictor"):
                raise ApiError(422, "Invalid", "spec.predictor: Required value")
        if resource.kind in ("ServingRuntime", "ClusterServingRuntime"):
            others = self.store.list(resource, target.namespace)
            named = {**item, "metadata": {"name": target.name, **(item.get("metadata") or {})}, "kind": resource.kind}
            if why := refused_runtime(named, others):
                raise ApiError(403, "Forbidden", why)

    def _create(self, request: Request, target: Target, query: dict[str, str], body: Any) -> Response:
        self._admit(target, body, query)
        metadata = body.setdefault("metadata", {})
        if target.resource.namespaced:
            if metadata.get("namespace", target.namespace) != target.namespace:
                raise ApiError(
                    400, "BadRequest", "the namespace of the object does not match the namespace of the request"
                )
            metadata["namespace"] = target.namespace
        if not metadata.get("name") and not metadata.get("generateName"):
            raise ApiError(
                422, "Invalid", f"{target.resource.kind} is invalid: metadata.name: Required value: name is required"
            )
        _default(target.resource, body)
        if query.get("dryRun"):
            return self._render_one(request, target.resource, _dry(body, self.store.version), 201)
        return self._render_one(request, target.resource, self.store.create(target.resource, body), 201)

    def _update(self, request: Request, target: Target, query: dict[str, str], body: Any) -> Response:
        self._admit(target, body, query)
        metadata = body.setdefault("metadata", {})
        if metadata.get("name", target.name) != target.name:
            raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
        metadata["name"] = target.name
        if target.resource.namespaced:
            metadata["namespace"] = target.namespace
        if query.get("dryRun"):
            return self._render_one(request, target.resource, _dry(body, self.store.version))
        stored = self.store.update(target.resource, body, subresource=target.subresource)
        return self._render_one(request, target.resource, stored)

    def _patch(self, request: Request, target: Target, query: dict[str, str], body: Any) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0]
        resource = target.resource
        live: Object | None
        try:
            live = self.store.get(resource, target.namespace, target.name)
        except ApiError:
            if kind != patches.APPLY_PATCH:
                raise
            live = None
        if kind == patches.JSON_PATCH:
            new = patches.json_patch(live or {}, body)
        elif kind == patches.MERGE_PATCH:
            new = patches.merge_patch(live, body)
        elif kind == patches.STRATEGIC_PATCH:
            if resource.group:
                raise ApiError(
                    415, "UnsupportedMediaType", f"{resource.kind} is a custom resource: {kind} is not supported"
                )
            new = patches.strategic_merge(live, body)
        elif kind == patches.APPLY_PATCH:
            self._admit(target, body, query)
            manager = query.get("fieldManager") or "unknown"
            new = patches.apply(live, body, manager, force=query.get("force") == "true")
        else:
            raise ApiError(415, "UnsupportedMediaType", f"{kind!r} is not a patch format")
        asked = body.get("metadata", {}).get("resourceVersion") if isinstance(body, dict) else None
        if live is not None and asked and asked != live["metadata"]["resourceVersion"]:
            raise conflict(resource, target.name, "the object has been modified")
        self._admit(target, new, query)
        new["metadata"]["name"] = target.name
        if resource.namespaced:
            new["metadata"]["namespace"] = target.namespace
        if query.get("dryRun"):
            return self._render_one(request, resource, _dry(new, self.store.version))
        if live is None:
            _default(resource, new)
            return self._render_one(request, resource, self.store.create(resource, new), 201)
        return self._render_one(request, resource, self.store.update(resource, new, subresource=target.subresource))

    def _delete(self, request: Request, target: Target, query: dict[str, str], body: Any) -> Response:
        options = body if isinstance(body, dict) else {}
        grace = options.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        grace_s = None if grace is None else int(grace)
        if query.get("dryRun") or options.get("dryRun"):
            return JSONResponse({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
        if target.name:
            uid = (options.get("preconditions") or {}).get("uid")
            item = self.store.delete(target.resource, target.namespace, target.name, grace_s=grace_s, uid=uid)
            if "deletionTimestamp" in item["metadata"]:
                return JSONResponse(item)
            details = {
                "name": target.name,
                "group": target.resource.group,
                "kind": target.resource.plural,
                "uid": item["metadata"]["uid"],
            }
            return JSONResponse(
                {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
            )
        wanted = self._filter(target, query)
        items = [item for item in self.store.list(target.resource, target.namespace) if wanted(item)]
        for item in items:
            metadata = item["metadata"]
            self.store.delete(target.resource, metadata.get("namespace", ""), metadata["name"], grace_s=grace_s)
        return self._list(request, target, query)


def _line(event: Object) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def _wants_table(request: Request) -> bool:
    return "as=Table" in request.headers.get("accept", "").partition(",")[0]


def _include(request: Request) -> str:
    return request.query_params.get("includeObject") or "Metadata"


def _dry(item: Object, version: int) -> Object:
    item["metadata"].setdefault("resourceVersion", str(version))
    return item


def _default(resource: ResourceType, item: Object) -> None:
    if resource.kind == "Namespace":
        item.setdefault("spec", {"finalizers": ["kubernetes"]})
        item["status"] = {"phase": "Active"}
        item["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = item["metadata"].get("name", "")
    if resource.kind == "Secret" and "stringData" in item:
        data = item.setdefault("data", {})
        for key, value in item.pop("stringData").items():
            data[key] = base64.b64encode(str(value).encode()).decode()
    if resource.kind == "Secret":
        item.setdefault("type", "Opaque")
    if resource.kind == "Pod":
        spec = item.setdefault("spec", {})
        spec.setdefault("restartPolicy", "Always")
        spec.setdefault("terminationGracePeriodSeconds", 30)
