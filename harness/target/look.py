"""What is wrong with a target that gave no usable answer, asked from the outside in: the first thing that is wrong.

Who listens, and with TLS or without; a gateway or a login page before the server; whether a server of the protocol is
there and ready; whether it has the model, and that is ready. What is left then is the request itself.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc as grpc_api
import httpx

from harness.base.errors import NotServedError, ProtocolError, RefusedError, ServecertError, UnreachableError
from harness.base.shown import visible
from harness.target.protocol.grpc_client import GrpcClient, GrpcStatusError
from harness.target.protocol.messages import MESSAGES, SERVICE
from harness.target.protocol.rest import RestAnswer, RestClient

LOOK_S = 5.0
"""So long each question is waited for."""
MOST_NAMES = 20
WORDS = 300
PASSING = (429, 502, 503, 504)
"""What a proxy or a server says that another try may not get."""
ABSENT = (404, 405, 501)
"""What a server says of a path that it does not have."""


def words_of(answer: RestAnswer) -> str:
    return f"'{visible(answer.content[: 2 * WORDS], WORDS)}'" if answer.content else "an empty body"


def is_html(answer: RestAnswer) -> bool:
    start = answer.content[:200].lstrip().lower()
    return answer.content_type == "text/html" or start.startswith((b"<!doctype html", b"<html"))


def stands_before(answer: RestAnswer, url: str) -> NotServedError | None:
    """Where an answer is none of the server's: a redirect, a refusal of who asks, a page for people."""
    status = answer.status
    if 300 <= status < 400:
        location = answer.headers.get("location")
        to = f"to {visible(location, WORDS)}" if location else "without a Location"
        return NotServedError(
            f"{url}: expected an answer of the model, got a redirect ({status}) {to}: a login page, or another address"
            " of the service; name the address that answers itself, past the login"
        )
    if status in (401, 403):
        return NotServedError(
            f"{url}: expected an answer of the model, got {status} ({words_of(answer)}): it asks who we are, and"
            " servecert sends no credentials; name an address inside of the gateway, or let this machine in"
        )
    if status == 400 and b"HTTPS" in answer.content[:2000]:
        return NotServedError(f"{url}: the port speaks TLS ({words_of(answer)}); try https:// in the URL")
    if is_html(answer):
        title = re.search(rb"<title[^>]*>([^<]*)", answer.content[:20_000], re.IGNORECASE)
        name = f" titled '{visible(title[1].strip(), 80)}'" if title else ""
        return NotServedError(
            f"{url}: expected JSON, got a web page{name} with status {status}: a login page, a proxy, or another"
            " server; is the address right?"
        )
    return None


def silent(error: UnreachableError, rest: RestClient) -> UnreachableError:
    """Why no answer came, in the words of somebody who looks for it."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        if isinstance(cause, UnreachableError):
            error = cause
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(item) for item in causes)
    url = rest.base_url
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        reason = next((found[1] for found in re.finditer(r"verify failed: ([^()]*)", text)), "").strip()
        return UnreachableError(
            f"{url}: its certificate is not trusted ({reason or 'verification failed'}); name the authority that signed"
            " it with --ca FILE, and the name that it is for with --host"
        )
    if any(mark in text for mark in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "record layer failure")):
        return UnreachableError(f"{url}: the port does not speak TLS; try http:// in the URL")
    if any(mark in text for mark in ("Name or service not known", "getaddrinfo", "name resolution", "No address")):
        return UnreachableError(f"{url}: the name of its host is not known here; is it spelled right?")
    if any(isinstance(item, httpx.ConnectTimeout) for item in causes):
        return UnreachableError(f"{url}: no connection could be opened in time; is a firewall between?")
    if any(isinstance(item, httpx.ConnectError) for item in causes):
        refused = "nobody listens there" if "attempts failed" in text or "refused" in text else f"{causes[-1]}"
        return UnreachableError(f"{error}: {refused}; is the server up, and is the port right?")
    if any(isinstance(item, httpx.RemoteProtocolError) for item in causes):
        return UnreachableError(
            f"{error}; somebody listens there and gave no HTTP answer: it speaks another protocol, or TLS (then try"
            " https://), or it closed the connection; is the port that of HTTP?"
        )
    return UnreachableError(f"{error}; is the server up, and is the address right? Try: curl {url}/v2/health/live")


async def what_is_wrong(
    failure: ServecertError | None, rest: RestClient, grpc: GrpcClient | None = None, *, over_grpc: bool = False
) -> ServecertError | None:
    """The first thing that is wrong apart from the request that failed; None where nothing is. ``failure`` None: the
    model's metadata say nothing, and nothing was sent yet."""
    if isinstance(failure, NotServedError):
        return failure
    try:
        if over_grpc and grpc is not None:
            return await _over_grpc(grpc, failure)
        if isinstance(failure, ProtocolError) and not isinstance(failure, RefusedError):
            return None  # it was answered 200, by what cannot be read
        return await _over_rest(rest, failure.status if isinstance(failure, RefusedError) else 404)
    except UnreachableError as error:
        # What answered a moment ago is there: then the request is what is wrong.
        return silent(error, rest) if isinstance(failure, UnreachableError) else None


async def _ask(rest: RestClient, path: str, method: str = "GET") -> RestAnswer:
    return await rest.request(method, path, {} if method == "POST" else None, timeout_s=LOOK_S)


def _said_no(answer: RestAnswer) -> bool:
    """A health endpoint that is there and does not say yes."""
    if answer.status in ABSENT:
        return False
    try:
        body = answer.object() if answer.content else {}
    except ProtocolError:
        body = {}
    return answer.status != 200 or body.get("ready", body.get("live", True)) is False


async def _over_rest(rest: RestClient, refused: int) -> ServecertError | None:
    """``refused`` is the status of the request that failed, 404 where none was sent."""
    url = rest.base_url
    model = await _ask(rest, rest.model_path)
    if (before := stands_before(model, url)) is not None:
        return before
    live, ready, server, of_model = await asyncio.gather(
        *(_ask(rest, path) for path in ("/v2/health/live", "/v2/health/ready", "/v2", f"{rest.model_path}/ready"))
    )
    if not any(answer.status == 200 for answer in (model, live, ready, server, of_model)):
        if ready.status in PASSING or live.status in PASSING:
            return _not_ready(url, ready if ready.status in PASSING else live)
        if refused not in ABSENT:
            return None  # who refuses it knows the path of inference, and perhaps no other
        return NotServedError(
            f"{url}: expected a server of the Open Inference Protocol (v2), and none of its paths is answered 200;"
            f" GET /v2 was answered {server.status} with {words_of(server)}; is the address that of the model server,"
            " with the path that the gateway wants?"
        )
    if server.status == 200 and not _is_object(server) and model.status == 200 and not _is_object(model):
        return NotServedError(f"{url}: expected JSON at {rest.model_path}, got {words_of(model)}; is it a v2 server?")
    if model.status == 200:
        if _said_no(of_model):
            return _model_not_ready(rest, of_model, None)
        return _not_ready(url, ready) if _said_no(ready) else None
    known = await _models(rest)
    mine = next((item for item in known or [] if item.get("name") == rest.model), None)
    if mine is not None or of_model.status == 200:
        # The index and the model's own word beat the server's readiness, which other models may spoil.
        return _model_not_ready(rest, of_model, mine) if _said_no(of_model) or of_model.status == 404 else None
    if _said_no(ready) and not known:
        return _not_ready(url, ready)
    return no_such_model(rest, model, [str(item.get("name")) for item in known] if known is not None else None)


def _is_object(answer: RestAnswer) -> bool:
    try:
        answer.object()
    except ProtocolError:
        return False
    return True


def _not_ready(url: str, answer: RestAnswer) -> NotServedError:
    return NotServedError(
        f"{url}: the server is not ready: GET /v2/health/ready was answered {answer.status} with {words_of(answer)};"
        " wait until it is, and look at its log where it stays so"
    )


def _model_not_ready(rest: RestClient, answer: RestAnswer, listed: dict[str, Any] | None) -> NotServedError:
    state = ""
    if listed is not None:
        told = ", ".join(visible(str(listed[key]), WORDS) for key in ("state", "reason") if listed.get(key))
        state = f"; the server's repository says: {told}" if told else ""
    return NotServedError(
        f"{rest.base_url}: the model {rest.model!r} is not ready: GET {rest.model_path}/ready was answered"
        f" {answer.status} with {words_of(answer)}{state}; wait until it is, or load it"
    )


def no_such_model(rest: RestClient, answer: RestAnswer, names: list[str] | None, model: str = "") -> NotServedError:
    if names is None:
        there = f"it says {words_of(answer)}"
    elif names:
        listed = sorted(dict.fromkeys(names))
        shown = ", ".join(visible(name, 80) for name in listed[:MOST_NAMES])
        there = f"it has {shown}" + (f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else "")
    else:
        there = "it has none"
    return NotServedError(
        f"{rest.base_url}: the server has no model {(model or rest.model)!r} (status {answer.status}): {there};"
        " name one of them with --model"
    )


async def _models(rest: RestClient) -> list[dict[str, Any]] | None:
    """Of the repository extension, or of KServe's list; None where the server tells neither."""
    try:
        answer = await _ask(rest, "/v2/repository/index", "POST")
        body = answer.json() if answer.status == 200 else None
        if isinstance(body, dict):
            body = body.get("models")
        if body is None:
            listed = await _ask(rest, "/v2/models")
            body = listed.object().get("models") if listed.status == 200 else None
    except (ProtocolError, UnreachableError):
        return None
    if not isinstance(body, list):
        return None
    return [item if isinstance(item, dict) else {"name": str(item)} for item in body]


async def _over_grpc(grpc: GrpcClient, failure: ServecertError | None) -> ServecertError | None:
    where = f"gRPC at {grpc.address}"

    async def call(method: str, **fields: Any) -> Any:
        return await grpc.call(method, MESSAGES[f"{method}Request"](**fields), timeout_s=LOOK_S)

    lives = True
    try:
        await call("ServerLive")
    except GrpcStatusError as error:
        if (wrong := refusal(error, grpc)) is not None:
            return wrong
        lives = False
    if isinstance(failure, GrpcStatusError) and failure.code is grpc_api.StatusCode.UNIMPLEMENTED and not lives:
        return NotServedError(
            f"{where}: the server does not serve {SERVICE} ({visible(failure.details, WORDS)}); is it a server of the"
            " Open Inference Protocol, and is --grpc the port of its gRPC?"
        )
    try:
        if (await call("ModelReady", name=grpc.model)).ready:
            return None
        said = "ModelReady says no"
    except GrpcStatusError as error:
        if error.code is grpc_api.StatusCode.UNIMPLEMENTED:
            return None
        said = f"ModelReady says {visible(str(error), WORDS)}"
    try:
        names = [item.name for item in (await call("RepositoryIndex")).models]
    except GrpcStatusError:
        names = [grpc.model]
    if grpc.model not in names:
        there = ", ".join(visible(name, 80) for name in sorted(set(names))[:MOST_NAMES]) or "none"
        return NotServedError(f"{where}: the server has no model {grpc.model!r}: it has {there}; name one with --model")
    return NotServedError(f"{where}: the model {grpc.model!r} is not ready: {said}; is the name right, is it loaded?")


def refusal(error: GrpcStatusError, grpc: GrpcClient) -> ServecertError | None:
    """What a status says of the way to the server; None where it is the server's own answer."""
    code, said = error.code, visible(error.details, WORDS)
    where = f"gRPC at {grpc.address}"
    if code is grpc_api.StatusCode.UNAVAILABLE:
        if "http1" in said.lower() or "http/1" in said.lower():
            hint = "what listens there speaks HTTP/1.1; is it the REST port?"
        else:
            hint = "nobody answers there; is --grpc right, and does the server speak TLS (grpcs) or not?"
        return UnreachableError(f"{where}: {said or 'unavailable'}; {hint}")
    if code is grpc_api.StatusCode.DEADLINE_EXCEEDED:
        return UnreachableError(f"{where}: no answer within {LOOK_S:g} s; is the address right?")
    if code in (grpc_api.StatusCode.UNAUTHENTICATED, grpc_api.StatusCode.PERMISSION_DENIED):
        return NotServedError(f"{where}: {code.name}: {said}; servecert sends no credentials: name an address inside")
    return None
