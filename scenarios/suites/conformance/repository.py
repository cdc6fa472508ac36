"""repository: the model repository extension, over REST and gRPC. These checks unload the model for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from harness.base.errors import ServecertError
from harness.target.protocol.grpc_client import GrpcStatusError
from harness.target.protocol.messages import MESSAGES
from harness.target.protocol.rest import RestAnswer
from scenarios.suites.conformance.checks import MUST, SHOULD, CheckFailed, Skip, expect
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


async def index(target: Target, **fields: Any) -> list[Any]:
    answer = await target.rest.request("POST", "/v2/repository/index", fields)
    expect(answer.status, "status").equals(200)
    listed = answer.json()
    expect(listed, "index").is_a(list, "a list of models")
    found: list[Any] = listed
    return found


async def load(target: Target) -> RestAnswer:
    return await target.rest.request("POST", path(target, "load"), {}, timeout_s=LOAD_S)


async def is_ready(target: Target) -> bool:
    return (await target.rest.get(f"{target.rest.model_path}/ready")).status == 200


async def bring_back(target: Target) -> None:
    """Loads the model after an unload; where that is refused, nothing else is tried with it."""
    status = 0
    with contextlib.suppress(ServecertError):
        status = (await load(target)).status
    if status != 200:
        target.lost = f"load after an unload is answered {status or 'not at all'}: the model did not come back"
    else:
        await eventually(lambda: is_ready(target), LOAD_S)


@contextlib.asynccontextmanager
async def unloaded(target: Target) -> AsyncIterator[RestAnswer]:
    """The model is loaded again afterwards, whatever happens; one that could not be is not unloaded. Raises Skip."""
    if target.lost:
        raise Skip(target.lost)
    first: RestAnswer = await target.once("repository.load", lambda: load(target))
    if first.status != 200:
        raise Skip(f"load is answered {first.status}, so that a model that was unloaded would not come back")
    await eventually(lambda: is_ready(target), LOAD_S)
    answer = await target.rest.request("POST", path(target, "unload"), {})
    try:
        yield answer
    finally:
        await bring_back(target)


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
        names = [item.get("name") for item in await index(target, ready=True)]
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
    if target.lost:
        raise Skip(target.lost)
    expect((await load(target)).status, "status").equals(200)
    expect(await eventually(lambda: is_ready(target), LOAD_S), f"ready within {LOAD_S:g} s").is_true("ready")


@check("repository.load.brings_back", level=MUST, source=REPOSITORY.load, needs=[repository, payload], timeout_s=200)
async def brings_back(target: Target) -> None:
    """Load brings an unloaded model back, with the answers that it gave before."""
    if target.lost:
        raise CheckFailed("a model that comes back", target.lost)
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
    if target.lost:
        raise Skip(target.lost)
    client = target.grpc_client()
    ask = MESSAGES["RepositoryModelLoadRequest"](model_name=target.model)
    try:
        await client.call("RepositoryModelLoad", ask, timeout_s=LOAD_S)
    except GrpcStatusError as error:
        raise CheckFailed("OK for the load of a loaded model", str(error)) from error
    loaded = False
    try:
        await client.call("RepositoryModelUnload", MESSAGES["RepositoryModelUnloadRequest"](model_name=target.model))
        gone = await eventually(lambda: _not_ready(target), UNLOAD_S)
        expect(gone, f"not ready within {UNLOAD_S:g} s of RepositoryModelUnload").is_true("not ready")
        await client.call("RepositoryModelLoad", ask, timeout_s=LOAD_S)
        back = await eventually(lambda: is_ready(target), LOAD_S)
        expect(back, f"ready within {LOAD_S:g} s of RepositoryModelLoad").is_true("ready")
        loaded = True
    finally:
        if not loaded:  # whatever the server says of it: one that calls an unloaded model ready would keep it unloaded
            await bring_back(target)


@check("repository.grpc.load_unknown", level=MUST, source=REPOSITORY.grpc, needs=[repository, grpc])
async def grpc_load_unknown(target: Target) -> None:
    """RepositoryModelLoad of an unknown model is refused."""
    await refused(target, "RepositoryModelLoad", MESSAGES["RepositoryModelLoadRequest"](model_name=NO_MODEL))


@check("repository.grpc.unload_unknown", level=MUST, source=REPOSITORY.grpc, needs=[repository, grpc])
async def grpc_unload_unknown(target: Target) -> None:
    """RepositoryModelUnload of an unknown model is refused."""
    await refused(target, "RepositoryModelUnload", MESSAGES["RepositoryModelUnloadRequest"](model_name=NO_MODEL))
