"""OpenAPI v2 and v3 of the embedded API, and the strict field validation that they promise.

Core types come from the models of the ``kubernetes`` client, so the schemas are those of the real API; KServe's are
written here from its CRDs (config/crd). Building them takes a moment and is left to the first request that asks.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from cluster.local.api.resources import RESOURCES, Object, ResourceType
from harness.kubernetes.predictors import FRAMEWORKS

# Both spellings of the client's generators: list[X] and dict(str, X), List[X] and Dict[str, X].
_LIST = re.compile(r"[lL]ist\[(.+)\]")
_DICT = re.compile(r"(?:dict\(|Dict\[)[^,]+, (.+)[\])]")
_SCALARS: dict[str, Object] = {
    "str": {"type": "string"},
    "bytes": {"type": "string", "format": "byte"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "datetime": {"type": "string", "format": "date-time"},
    "object": {"x-kubernetes-preserve-unknown-fields": True},
}
_QUANTITY: Object = {"x-kubernetes-int-or-string": True}
_PREFIX = "io.k8s.api."
_CORE_KINDS = (
    "V1Namespace",
    "V1Pod",
    "V1Service",
    "V1Secret",
    "V1ConfigMap",
    "V1ServiceAccount",
    "V1Deployment",
    "V2HorizontalPodAutoscaler",
    "V1Node",
    "V1ResourceQuota",
    "V1PersistentVolumeClaim",
    "V1StorageClass",
)
_FREE: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


@functools.cache
def definitions() -> dict[str, Object]:
    """Every schema by name, with ``$ref`` as a bare definition name."""
    from kubernetes import client

    schemas: dict[str, Object] = {}

    def field(type_name: str) -> Object:
        if match := _LIST.fullmatch(type_name):
            return {"type": "array", "items": field(match[1])}
        if match := _DICT.fullmatch(type_name):
            return {"type": "object", "additionalProperties": field(match[1])}
        if type_name in _SCALARS:
            return dict(_SCALARS[type_name])
        add(type_name)
        return {"$ref": _PREFIX + type_name}

    def add(type_name: str) -> None:
        name = _PREFIX + type_name
        if name in schemas:
            return
        model = getattr(client, type_name)
        schemas[name] = {"type": "object"}
        schemas[name]["properties"] = {
            model.attribute_map[attribute]: field(kind) for attribute, kind in model.openapi_types.items()
        }

    for kind in _CORE_KINDS:
        add(kind)
    add("CoreV1Event")
    # Quantities and ports are numbers or strings; the client's models call them plain objects or strings.
    for name, key in (("V1ResourceRequirements", "limits"), ("V1ResourceRequirements", "requests")):
        schemas[_PREFIX + name]["properties"][key] = {"type": "object", "additionalProperties": dict(_QUANTITY)}
    schemas.update(_kserve(schemas))
    return schemas


def _kserve(schemas: dict[str, Object]) -> dict[str, Object]:
    pod = schemas[_PREFIX + "V1PodSpec"]["properties"]
    container = schemas[_PREFIX + "V1Container"]["properties"]
    integer, string, boolean = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
    strings = {"type": "object", "additionalProperties": string}
    model_format = {"type": "object", "properties": {"name": string, "version": string}}
    framework: Object = {
        "type": "object",
        "properties": {
            **container,
            "storageUri": string,
            "storageUris": {"type": "array", "items": _FREE},
            "storage": _FREE,
            "runtimeVersion": string,
            "protocolVersion": string,
        },
    }
    model: Object = {
        "type": "object",
        "properties": {
            **framework["properties"],
            "modelFormat": model_format,
            "runtime": string,
            "args": {"type": "array", "items": string},
        },
    }
    extension: Object = {
        "minReplicas": integer,
        "maxReplicas": integer,
        "scaleTarget": integer,
        "scaleMetric": string,
        "scaleMetricType": string,
        "autoScaling": _FREE,
        "containerConcurrency": integer,
        "timeout": integer,
        "canaryTrafficPercent": integer,
        "logger": _FREE,
        "batcher": _FREE,
        "labels": strings,
        "annotations": strings,
        "deploymentStrategy": _FREE,
        "workerSpec": _FREE,
    }
    predictor: Object = {
        "type": "object",
        "properties": {**pod, **extension, "name": string, "model": model, **dict.fromkeys(FRAMEWORKS, framework)},
    }
    component = {"type": "object", "properties": {**pod, **extension, "art": _FREE}}
    runtime_spec: Object = {
        "type": "object",
        "properties": {
            **pod,
            "supportedModelFormats": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": string,
                        "version": string,
                        "autoSelect": boolean,
                        "priority": integer,
                    },
                },
            },
            "multiModel": boolean,
            "disabled": boolean,
            "protocolVersions": {"type": "array", "items": string},
            "annotations": strings,
            "labels": strings,
            "builtInAdapter": _FREE,
            "storageHelper": _FREE,
            "workerSpec": _FREE,
            "grpcEndpoint": string,
            "grpcDataEndpoint": string,
            "httpDataEndpoint": string,
            "replicas": integer,
        },
    }
    meta = {"apiVersion": string, "kind": string, "metadata": {"$ref": _PREFIX + "V1ObjectMeta"}}
    canary = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "trafficPercent": integer,
                "predictor": {"type": "object", "properties": predictor["properties"]},
            },
        },
    }
    isvc_spec = {
        "type": "object",
        "properties": {"predictor": predictor, "transformer": component, "explainer": component, "canary": canary},
    }
    name = "io.kserve.serving."
    return {
        name + "v1beta1.InferenceService": {
            "type": "object",
            "properties": {**meta, "spec": isvc_spec, "status": _FREE},
        },
        name + "v1alpha1.ServingRuntime": {
            "type": "object",
            "properties": {**meta, "spec": runtime_spec, "status": _FREE},
        },
        name + "v1alpha1.ClusterServingRuntime": {
            "type": "object",
            "properties": {**meta, "spec": runtime_spec, "status": _FREE},
        },
        "dev.knative.serving.v1.Revision": {"type": "object", "properties": {**meta, "spec": _FREE, "status": _FREE}},
    }


def definition_name(resource: ResourceType) -> str:
    if resource.group == "serving.kserve.io":
        return f"io.kserve.serving.{resource.version}.{resource.kind}"
    if resource.group == "serving.knative.dev":
        return f"dev.knative.serving.v1.{resource.kind}"
    return _PREFIX + ("CoreV1Event" if resource.kind == "Event" else f"{resource.version.upper()}{resource.kind}")


def unknown_fields(resource: ResourceType, item: Object) -> list[str]:
    """Paths of fields that the schema does not know, in the form ``spec.predictr``."""
    return _unknown(item, {"$ref": definition_name(resource)}, "")


def _resolve(schema: Object) -> Object:
    return definitions()[schema["$ref"]] if "$ref" in schema else schema


def _unknown(value: Any, schema: Object, where: str) -> list[str]:
    schema = _resolve(schema)
    if schema.get("x-kubernetes-preserve-unknown-fields") or value is None:
        return []
    if isinstance(value, list) and "items" in schema:
        return [
            path for index, item in enumerate(value) for path in _unknown(item, schema["items"], f"{where}[{index}]")
        ]
    if isinstance(value, dict):
        if "additionalProperties" in schema:
            return [
                path
                for key, item in value.items()
                for path in _unknown(item, schema["additionalProperties"], f"{where}.{key}")
            ]
        known = schema.get("properties")
        if known is None:
            return []
        found: list[str] = []
        for key, item in value.items():
            path = f"{where}.{key}" if where else key
            found += _unknown(item, known[key], path) if key in known else [path]
        return found
    return []


def type_errors(resource: ResourceType, item: Object) -> list[str]:
    """Fields whose JSON type is not the schema's, as the API server words them."""
    return _wrong(item, {"$ref": definition_name(resource)}, "")


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def _wrong(value: Any, schema: Object, where: str) -> list[str]:
    schema = _resolve(schema)
    if value is None or "x-kubernetes-int-or-string" in schema:
        return []
    kind = schema.get("type")
    if kind is not None:
        fits = isinstance(value, _TYPES[kind]) and not (isinstance(value, bool) and kind in ("integer", "number"))
        if not fits:
            return [
                f'{where}: Invalid value: "{type(value).__name__}": {where} in body must be of type {kind}: {value!r}'
            ]
    if isinstance(value, list) and "items" in schema:
        return [text for i, item in enumerate(value) for text in _wrong(item, schema["items"], f"{where}[{i}]")]
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        return [
            text
            for key, item in value.items()
            if (inner := known.get(key, other)) is not None
            for text in _wrong(item, inner, f"{where}.{key}" if where else key)
        ]
    return []


def _references(schema: Any, prefix: str) -> Any:
    if isinstance(schema, dict):
        return {key: prefix + value if key == "$ref" else _references(value, prefix) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_references(item, prefix) for item in schema]
    return schema


def _definitions_for(prefix: str) -> Object:
    result = _references(definitions(), prefix)
    for resource in RESOURCES:
        result[definition_name(resource)]["x-kubernetes-group-version-kind"] = [
            {"group": resource.group, "version": resource.version, "kind": resource.kind}
        ]
    return dict(result)


def _paths(resources: list[ResourceType], *, v3: bool) -> Object:
    paths: Object = {}
    for resource in resources:
        base = f"/apis/{resource.group}/{resource.version}" if resource.group else "/api/v1"
        scope = f"{base}/namespaces/{{namespace}}" if resource.namespaced else base
        gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        name = definition_name(resource)

        def operation(
            action: str, group_version_kind: Object = gvk, schema: str = name, kind: str = resource.kind
        ) -> Object:
            ok: Object = {"description": "OK"}
            if v3:
                ok["content"] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
            else:
                ok["schema"] = {"$ref": f"#/definitions/{schema}"}
            parameters = [
                {"name": query, "in": "query", **({"schema": {"type": "string"}} if v3 else {"type": "string"})}
                for query in ("dryRun", "fieldManager", "fieldValidation")
            ]
            if action in ("get", "list"):
                parameters = []
            return {
                "operationId": f"{action}{kind}",
                "parameters": parameters,
                "responses": {"200": ok},
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": group_version_kind,
            }

        paths[f"{scope}/{resource.plural}"] = {"get": operation("list"), "post": operation("post")}
        paths[f"{scope}/{resource.plural}/{{name}}"] = {
            verb: operation(verb) for verb in ("get", "put", "patch", "delete")
        }
    return paths


@functools.cache
def openapi_v2() -> Object:
    return {
        "swagger": "2.0",
        "info": {"title": "servecert embedded cluster", "version": "v1.32.0"},
        "paths": _paths(list(RESOURCES), v3=False),
        "definitions": _definitions_for("#/definitions/"),
    }


@functools.cache
def openapi_v3(group: str, version: str) -> Object:
    return {
        "openapi": "3.0.0",
        "info": {"title": "servecert embedded cluster", "version": "v1.32.0"},
        "paths": _paths([r for r in RESOURCES if (r.group, r.version) == (group, version)], v3=True),
        "components": {"schemas": _definitions_for("#/components/schemas/")},
    }
