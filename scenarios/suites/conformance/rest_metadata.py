"""rest.health, rest.server_metadata, rest.model_metadata, rest.model_ready."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable

from harness.target.protocol.rest import RestAnswer
from harness.target.protocol.tensors import DTYPES
from scenarios.suites.conformance.checks import MUST, SHOULD, Skip, expect
from scenarios.suites.conformance.sources import HTTP, OIP_REST, Operations, check
from scenarios.suites.conformance.target import Target, body_of, gather, metadata, payload, versions

UNKNOWN_MODEL = "/v2/models/no-such-model-7d1f"
UNKNOWN_VERSION = "no-such-version-7d1f"


# rest.health


@check("rest.health.live", level=MUST, source=OIP_REST.health)
async def live(target: Target) -> None:
    """GET /v2/health/live answers 200 while the server runs."""
    expect((await target.rest.get("/v2/health/live")).status, "status").equals(200)


@check("rest.health.ready", level=MUST, source=OIP_REST.health)
async def ready(target: Target) -> None:
    """GET /v2/health/ready answers 200 when all models are ready."""
    expect((await target.rest.get("/v2/health/ready")).status, "status").equals(200)


@check("rest.health.live_body", level=SHOULD, source=OIP_REST.health)
async def live_body(target: Target) -> None:
    """The body of /v2/health/live, where there is one, is an object with a boolean "live"."""
    answer = await target.rest.get("/v2/health/live")
    if not answer.content.strip():
        raise Skip("the answer has no body")
    expect(answer.object().get("live"), "live").is_a(bool, "a boolean")


@check("rest.health.ready_body", level=SHOULD, source=OIP_REST.health)
async def ready_body(target: Target) -> None:
    """The body of /v2/health/ready, where there is one, is an object with a boolean "live" (the specification's
    text) or "ready" (what servers say)."""
    answer = await target.rest.get("/v2/health/ready")
    if not answer.content.strip():
        raise Skip("the answer has no body")
    body = answer.object()
    expect(body.get("ready", body.get("live")), "ready").is_a(bool, "a boolean")


@check("rest.health.get_only", level=SHOULD, source=HTTP.methods)
async def get_only(target: Target) -> None:
    """POST to /v2/health/live is refused with 4xx."""
    answer = await target.rest.request("POST", "/v2/health/live", {})
    expect(answer.status, "status").satisfies(lambda status: 400 <= status < 500, "4xx")


@check("rest.health.prompt", level=SHOULD, source=Operations.probes)
async def prompt(target: Target) -> None:
    """An idle server answers /v2/health/live within 100 ms (median of 5); a probe waits 1 s by default."""
    times = [(await target.rest.get("/v2/health/live")).elapsed_s for _ in range(5)]
    expect(statistics.median(times), "seconds").is_below(0.1)


@check("rest.health.under_load", level=SHOULD, source=Operations.probes, needs=[payload])
async def under_load(target: Target) -> None:
    """/v2/health/live answers 200 while 16 inferences are in flight."""

    async def ask(index: int) -> int:
        if index == 16:
            return (await target.rest.get("/v2/health/live")).status
        return (await target.rest.infer_raw(target.body())).status

    statuses = await gather(17, ask)
    expect(statuses[16], "status of the probe").equals(200)


# rest.server_metadata


@check("rest.server_metadata.status", level=MUST, source=OIP_REST.server_metadata)
async def server_status(target: Target) -> None:
    """GET /v2 answers 200."""
    expect((await target.rest.get("/v2")).status, "status").equals(200)


@check("rest.server_metadata.name", level=MUST, source=OIP_REST.server_metadata)
async def server_name(target: Target) -> None:
    """Server metadata have a non-empty string "name"."""
    expect(body_of(await target.rest.get("/v2")).get("name"), "name").is_text()


@check("rest.server_metadata.version", level=MUST, source=OIP_REST.server_metadata)
async def server_version(target: Target) -> None:
    """Server metadata have a non-empty string "version"."""
    expect(body_of(await target.rest.get("/v2")).get("version"), "version").is_text()


@check("rest.server_metadata.extensions", level=MUST, source=OIP_REST.server_metadata)
async def server_extensions(target: Target) -> None:
    """Server metadata have a list of strings "extensions"."""
    extensions = body_of(await target.rest.get("/v2")).get("extensions")
    expect(extensions, "extensions").satisfies(
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of strings"
    )


@check("rest.server_metadata.content_type", level=SHOULD, source=HTTP.json)
async def server_content_type(target: Target) -> None:
    """Server metadata come as application/json."""
    expect((await target.rest.get("/v2")).content_type, "content type").equals("application/json")


@check("rest.server_metadata.extensions_answer", level=SHOULD, source=OIP_REST.server_metadata)
async def extensions_answer(target: Target) -> None:
    """Each extension that the metadata list answers its simplest question."""
    silent = []
    for name in target.extensions:
        question = next((ask for known, ask in EXTENSIONS.items() if name.startswith(known)), None)
        if question is not None and (answer := await question(target)) is not None and answer.status != 200:
            silent.append(f"{name}: status {answer.status}")
    if not any(name.startswith(known) for name in target.extensions for known in EXTENSIONS):
        raise Skip("the metadata list no extension with a question to ask")
    expect(silent, "extensions that do not answer").equals([])


async def _ask_binary(target: Target) -> RestAnswer | None:
    if not target.has_payload:
        return None
    return await target.rest.infer_binary_raw(target.example())


async def _ask_index(target: Target) -> RestAnswer:
    return await target.rest.request("POST", "/v2/repository/index", {})


async def _ask_statistics(target: Target) -> RestAnswer:
    return await target.rest.get(f"{target.rest.model_path}/stats")


EXTENSIONS: dict[str, Callable[[Target], Awaitable[RestAnswer | None]]] = {
    "binary_tensor_data": _ask_binary,
    "model_repository": _ask_index,
    "statistics": _ask_statistics,
}


# rest.model_metadata


@check("rest.model_metadata.status", level=MUST, source=OIP_REST.model_metadata)
async def model_status(target: Target) -> None:
    """GET /v2/models/<model> answers 200 for a model that is ready."""
    expect((await target.rest.get(target.rest.model_path)).status, "status").equals(200)


@check("rest.model_metadata.name", level=MUST, source=OIP_REST.model_metadata)
async def model_name(target: Target) -> None:
    """Model metadata's "name" is the name in the path."""
    expect(body_of(await target.rest.get(target.rest.model_path)).get("name"), "name").equals(target.model)


@check("rest.model_metadata.platform", level=MUST, source=OIP_REST.model_metadata)
async def model_platform(target: Target) -> None:
    """Model metadata have a string "platform"."""
    expect(body_of(await target.rest.get(target.rest.model_path)).get("platform"), "platform").is_a(str, "a string")


@check("rest.model_metadata.versions", level=MUST, source=OIP_REST.model_metadata)
async def model_versions(target: Target) -> None:
    """ "versions", where present, is a list of strings and never null."""
    body = body_of(await target.rest.get(target.rest.model_path))
    if "versions" not in body:
        raise Skip("the metadata have no versions")
    expect(body["versions"], "versions").satisfies(
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of strings"
    )


@check("rest.model_metadata.tensors", level=SHOULD, source=OIP_REST.model_metadata)
async def model_tensors(target: Target) -> None:
    """ "inputs" and "outputs" are lists that are not empty."""
    body = body_of(await target.rest.get(target.rest.model_path))
    for key in ("inputs", "outputs"):
        expect(body.get(key), key).satisfies(
            lambda value: isinstance(value, list) and bool(value), "a list that is not empty"
        )


@check("rest.model_metadata.tensor_fields", level=MUST, source=OIP_REST.model_metadata, needs=[metadata])
async def tensor_fields(target: Target) -> None:
    """Each tensor of the metadata has a name, a datatype and a shape."""
    body = body_of(await target.rest.get(target.rest.model_path))
    for item in [*body.get("inputs", []), *body.get("outputs", [])]:
        expect(item.get("name"), "name").is_text()
        expect(item.get("datatype"), f"datatype of {item['name']}").is_text()
        expect(item.get("shape"), f"shape of {item['name']}").is_a(list, "a list")


@check("rest.model_metadata.datatypes", level=MUST, source=OIP_REST.datatypes, needs=[metadata])
async def tensor_datatypes(target: Target) -> None:
    """Datatypes are those of the protocol's table."""
    for spec in [*target.inputs, *target.outputs]:
        expect(spec.datatype, f"datatype of {spec.name}").is_one_of(DTYPES)


@check("rest.model_metadata.shapes", level=MUST, source=OIP_REST.model_metadata, needs=[metadata])
async def tensor_shapes(target: Target) -> None:
    """Shapes are integers, -1 for a variable dimension and no other negative number."""
    body = body_of(await target.rest.get(target.rest.model_path))
    for item in [*body.get("inputs", []), *body.get("outputs", [])]:
        for size in item["shape"]:
            expect(size, f"dimension of {item['name']}").satisfies(
                lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= -1,
                "an integer, -1 where variable",
            )


@check("rest.model_metadata.with_version", level=MUST, source=OIP_REST.model_metadata, needs=[versions])
async def with_version(target: Target) -> None:
    """With a listed version in the path: 200 and the same tensors."""
    plain = body_of(await target.rest.get(target.rest.model_path))
    versioned = body_of(await target.rest.get(f"{target.rest.model_path}/versions/{target.versions[-1]}"))
    for key in ("inputs", "outputs"):
        expect(versioned.get(key), key).equals(plain.get(key))


@check("rest.model_metadata.unknown_model", level=MUST, source=OIP_REST.model_metadata_error)
async def unknown_model(target: Target) -> None:
    """Metadata of an unknown model are refused with 4xx."""
    answer = await target.rest.get(UNKNOWN_MODEL)
    expect(answer.status, "status").satisfies(lambda status: 400 <= status < 500, "4xx")


@check("rest.model_metadata.unknown_model_404", level=SHOULD, source=HTTP.semantics)
async def unknown_model_404(target: Target) -> None:
    """Metadata of an unknown model are refused with 404."""
    expect((await target.rest.get(UNKNOWN_MODEL)).status, "status").equals(404)


@check("rest.model_metadata.unknown_model_error", level=MUST, source=OIP_REST.model_metadata_error)
async def unknown_model_error(target: Target) -> None:
    """The refusal has a body with a non-empty string "error"."""
    answer = await target.rest.get(UNKNOWN_MODEL)
    expect(answer.object().get("error"), "error").is_text()


@check("rest.model_metadata.unknown_version", level=MUST, source=OIP_REST.model_metadata_error)
async def unknown_version(target: Target) -> None:
    """Metadata of an unknown version are refused with 4xx."""
    answer = await target.rest.get(f"{target.rest.model_path}/versions/{UNKNOWN_VERSION}")
    expect(answer.status, "status").satisfies(lambda status: 400 <= status < 500, "4xx")


# rest.model_ready


@check("rest.model_ready.status", level=MUST, source=OIP_REST.model_ready)
async def model_ready(target: Target) -> None:
    """GET /v2/models/<model>/ready answers 200 when the model is ready."""
    expect((await target.rest.get(f"{target.rest.model_path}/ready")).status, "status").equals(200)


@check("rest.model_ready.body", level=SHOULD, source=OIP_REST.model_ready)
async def model_ready_body(target: Target) -> None:
    """The body has the model's "name" and a boolean "ready"."""
    answer = await target.rest.get(f"{target.rest.model_path}/ready")
    if not answer.content.strip():
        raise Skip("the answer has no body")
    body = answer.object()
    expect(body.get("name"), "name").equals(target.model)
    expect(body.get("ready"), "ready").equals(True)


@check("rest.model_ready.with_version", level=MUST, source=OIP_REST.model_ready, needs=[versions])
async def model_ready_version(target: Target) -> None:
    """With a listed version in the path: 200."""
    path = f"{target.rest.model_path}/versions/{target.versions[-1]}/ready"
    expect((await target.rest.get(path)).status, "status").equals(200)


@check("rest.model_ready.unknown_model", level=MUST, source=OIP_REST.model_ready)
async def model_ready_unknown(target: Target) -> None:
    """Readiness of an unknown model is refused with 4xx."""
    answer = await target.rest.get(f"{UNKNOWN_MODEL}/ready")
    expect(answer.status, "status").satisfies(lambda status: 400 <= status < 500, "4xx")


@check("rest.model_ready.unknown_model_404", level=SHOULD, source=HTTP.semantics)
async def model_ready_unknown_404(target: Target) -> None:
    """Readiness of an unknown model is refused with 404."""
    expect((await target.rest.get(f"{UNKNOWN_MODEL}/ready")).status, "status").equals(404)
