"""repository: the model repository extension, over REST and gRPC. These checks unload the model for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from harness.checks import MUST, SHOULD, expect
from harness.errors import ServecertError
from harness.protocol.messages import MESSAGES
from harness.protocol.rest import RestAnswer
from scenarios.suites.conformance.grpc_checks import NO_MODEL, refused
from scenarios.suites.conformance.sources import REPOSITORY, check
from scenarios.suites.conformance.target import (
    Target,
    advertised,
    body_of,
    data_of,
    eventually,
    grpc,
    payload,
)

repository = advertised("repository", "model_repository")
LOAD_S = 60.0
"""How long a load may take; real models take their time."""
UNLOAD_S = 10.0
"""How long a model may stay ready after its unload was answered."""


def path(target: Target, what: str) -> str:
    return f"/v2/repository/models/{quote(target.model, safe='')}/{what}"


async def index(target: Target) -> list[Any]:
    answer = await target.rest.request("POST", "/v2/repository/index", {})
    expect(answer.status, "status").equals(200)
    listed = answer.json()
    expect(listed, "index").is_a(list, "a list of models")
    found: list[Any] = listed
    return found


async def load(target: Target) -> RestAnswer:
    return await target.rest.request("POST", path(target, "load"), {}, timeout_s=LOAD_S)


async def is_ready(target: Target) -> bool:
    return (await target.rest.get(f"{target.rest.model_path}/ready")).status == 200


@contextlib.asynccontextmanager
async def unloaded(target: Target) -> AsyncIterator[RestAnswer]:
    """The model is loaded again afterwards, whatever happens."""
    answer = await target.rest.request("POST", path(target, "unload"), {})
    try:
        yield answer
    finally:
        with contextlib.suppress(ServecertError):
            await load(target)
        await eventually(lambda: is_ready(target), LOAD_S)


@check("repository.index.lists_model", level=MUST, source=REPOSITORY.index, needs=[repository])
async def lists_model(target: Target) -> None:
    """The index lists the model that is served."""
    names = [item.get("name") for item in await index(target)]
    expect(target.model in names, f"{target.model} in {names}").is_true("the model's name among them")


@check("repository.index.fields", level=MUST, source=REPOSITORY.index, needs=[repository])
async def fields(target: Target) -> None:
    """Each entry of the index has a name, and version, state and reason are strings where they are given."""
    for item in await index(target):
        expect(item.get("name"), "name").is_text()
        for key in ("version", "state", "reason"):
            if key in item:
                expect(item[key], f"{key} of {item['name']}").is_a(str, "a string")


@check("repository.index.state", level=SHOULD, source=REPOSITORY.index, needs=[repository])
async def state(target: Target) -> None:
    """The state of a model that is served is READY."""
    states = [item.get("state") for item in await index(target) if item.get("name") == target.model]
    expect("READY" in states, f"READY among {states}").is_true("READY")


@check("repository.index.ready_filter", level=SHOULD, source=REPOSITORY.index, needs=[repository], timeout_s=150)
async def ready_filter(target: Target) -> None:
    """With "ready": true the index leaves out a model that was unloaded."""
    async with unloaded(target):
        answer = await target.rest.request("POST", "/v2/repository/index", {"ready": True})
        names = [item.get("name") for item in answer.json()]
        expect(target.model in names, f"{target.model} in {names}").equals(False)


@check("repository.unload.status", level=MUST, source=REPOSITORY.unload, needs=[repository], timeout_s=150)
async def unload_status(target: Target) -> None:
    """Unload of a loaded model is answered 200."""
    async with unloaded(target) as answer:
        expect(answer.status, "status").equals(200)


@check("repository.unload.not_ready", level=MUST, source=REPOSITORY.unload, needs=[repository], timeout_s=150)
async def unload_not_ready(target: Target) -> None:
    """A model that was unloaded is not ready."""
    async with unloaded(target):
        gone = await eventually(lambda: _not_ready(target), UNLOAD_S)
        expect(gone, f"not ready within {UNLOAD_S:g} s").is_true("not ready")


async def _not_ready(target: Target) -> bool:
    return not await is_ready(target)


@check(
    "repository.unload.not_inferring", level=MUST, source=REPOSITORY.unload, needs=[repository, payload], timeout_s=150
)
async def unload_not_inferring(target: Target) -> None:
    """A model that was unloaded answers no inference."""
    async with unloaded(target):
        await eventually(lambda: _not_ready(target), UNLOAD_S)
        answer = await target.rest.infer_raw(target.body())
        expect(answer.status, "status").satisfies(lambda status: status >= 400, "4xx or 503")


@check("repository.unload.unknown", level=MUST, source=REPOSITORY.unload, needs=[repository])
async def unload_unknown(target: Target) -> None:
    """Unload of an unknown model is refused with 4xx."""
    answer = await target.rest.request("POST", f"/v2/repository/models/{NO_MODEL}/unload", {})
    expect(answer.status, "status").satisfies(lambda status: 400 <= status < 500, "4xx")


@check("repository.load.unknown", level=MUST, source=REPOSITORY.load, needs=[repository])
async def load_unknown(target: Target) -> None:
    """Load of an unknown model is refused with 4xx."""
    answer = await target.rest.request("POST", f"/v2/repository/models/{NO_MODEL}/load", {})
    expect(answer.status, "status").satisfies(lambda status: 400 <= status < 500, "4xx")


@check("repository.load.unknown_error", level=MUST, source=REPOSITORY.load, needs=[repository])
async def load_unknown_error(target: Target) -> None:
    """The refusal of a load has a body with a non-empty string "error"."""
    answer = await target.rest.request("POST", f"/v2/repository/models/{NO_MODEL}/load", {})
    expect(answer.object().get("error"), "error").is_text()


@check("repository.load.loaded", level=MUST, source=REPOSITORY.load, needs=[repository], timeout_s=150)
async def load_loaded(target: Target) -> None:
    """Load of a loaded model is answered 200, and it is ready afterwards."""
    expect((await load(target)).status, "status").equals(200)
    expect(await eventually(lambda: is_ready(target), LOAD_S), f"ready within {LOAD_S:g} s").is_true("ready")


@check("repository.load.brings_back", level=MUST, source=REPOSITORY.load, needs=[repository, payload], timeout_s=200)
async def brings_back(target: Target) -> None:
    """Load brings an unloaded model back, with the answers that it gave before."""
    before = data_of(body_of(await target.rest.infer_raw(target.body()))["outputs"])
    async with unloaded(target):
        expect((await load(target)).status, "status").equals(200)
        expect(await eventually(lambda: is_ready(target), LOAD_S), f"ready within {LOAD_S:g} s").is_true("ready")
        after = data_of(body_of(await target.rest.infer_raw(target.body()))["outputs"])
    expect(after, "outputs after the load").equals(before)


# The same over gRPC


@check("repository.grpc.index", level=MUST, source=REPOSITORY.grpc, needs=[repository, grpc])
async def grpc_index(target: Target) -> None:
    """RepositoryIndex lists the models that REST lists."""
    answer = await target.grpc_client().call("RepositoryIndex", MESSAGES["RepositoryIndexRequest"]())
    expect(sorted(item.name for item in answer.models), "names").equals(
        sorted(item.get("name") for item in await index(target))
    )


@check("repository.grpc.unload_and_load", level=MUST, source=REPOSITORY.grpc, needs=[repository, grpc], timeout_s=200)
async def grpc_unload_and_load(target: Target) -> None:
    """RepositoryModelUnload makes a model not ready, RepositoryModelLoad ready again."""
    client = target.grpc_client()
    try:
        await client.call("RepositoryModelUnload", MESSAGES["RepositoryModelUnloadRequest"](model_name=target.model))
        gone = await eventually(lambda: _not_ready(target), UNLOAD_S)
        expect(gone, f"not ready within {UNLOAD_S:g} s of RepositoryModelUnload").is_true("not ready")
        await client.call(
            "RepositoryModelLoad", MESSAGES["RepositoryModelLoadRequest"](model_name=target.model), timeout_s=LOAD_S
        )
        back = await eventually(lambda: is_ready(target), LOAD_S)
        expect(back, f"ready within {LOAD_S:g} s of RepositoryModelLoad").is_true("ready")
    finally:
        if not await is_ready(target):
            await load(target)
            await eventually(lambda: is_ready(target), LOAD_S)


@check("repository.grpc.load_unknown", level=MUST, source=REPOSITORY.grpc, needs=[repository, grpc])
async def grpc_load_unknown(target: Target) -> None:
    """RepositoryModelLoad of an unknown model is refused."""
    await refused(target, "RepositoryModelLoad", MESSAGES["RepositoryModelLoadRequest"](model_name=NO_MODEL))


@check("repository.grpc.unload_unknown", level=MUST, source=REPOSITORY.grpc, needs=[repository, grpc])
async def grpc_unload_unknown(target: Target) -> None:
    """RepositoryModelUnload of an unknown model is refused."""
    await refused(target, "RepositoryModelUnload", MESSAGES["RepositoryModelUnloadRequest"](model_name=NO_MODEL))
