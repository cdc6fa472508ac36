"""Load on the OpenAI chat API: streamed answers, with time to first token and the gaps between tokens.

Source: OpenAI API reference, Chat Completions, streaming; KServe serves it below ``/openai``.
"""

from __future__ import annotations

import asyncio
import math
import time

from harness.base.errors import MeasurementError, NotServedError, ProtocolError, UnreachableError, UsageError
from harness.load.job import Request
from harness.target.endpoint import Endpoint
from harness.target.look import PASSING, no_such_model, silent, stands_before, words_of
from harness.target.protocol.openai import read_stream
from harness.target.protocol.rest import RestAnswer, RestClient, json_body
from scenarios.suites.shared.stage.requests import Encoded

PREFIXES = ("/openai", "")
PROMPT = "Name the planets of the solar system, one a line."
MAX_TOKENS = 32
TRIES, PAUSE_S = 3, 0.3
"""A request that is refused for now (429, 503) is asked again."""


async def encode(endpoint: Endpoint, rest: RestClient, budget_s: float = math.inf) -> list[Encoded]:
    """The request in the payload file, or a short prompt; asked alone, so that a wrong address or model is found before
    the stage: the first one, and the others for ``budget_s`` at most. Raises what is wrong first."""
    prefix, models = await _prefix(rest)
    bodies = endpoint.chat or ({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS},)
    encoded = []
    deadline = math.inf
    for number, chat in enumerate(bodies):
        if not isinstance(chat.get("messages"), list):
            raise UsageError("--payload: expected a chat completion request, with a list 'messages'")
        model = chat.get("model", endpoint.model)
        body = json_body({"temperature": 0, **chat, "model": model, "stream": True})
        request = Request(f"{prefix}/v1/chat/completions", {"Content-Type": "application/json"}, f"body-{number}.bin")
        encoded.append(Encoded(request, body))
        if time.monotonic() < deadline:
            read_stream((await _ask(rest, request, body, str(model), models)).content)
        if not number:
            deadline = time.monotonic() + budget_s
    return encoded


async def _ask(rest: RestClient, request: Request, body: bytes, model: str, models: RestAnswer) -> RestAnswer:
    for left in reversed(range(TRIES)):
        answer = await rest.request("POST", request.target, body, request.headers)
        if answer.status == 200:
            return answer
        if not left or answer.status not in PASSING:
            break
        await asyncio.sleep(PAUSE_S)
    if (before := stands_before(answer, rest.base_url)) is not None:
        raise before
    names = _names(models)
    if names is not None and model not in names:
        raise no_such_model(rest, answer, names, model)
    raise MeasurementError(
        f"before the load, one chat request alone was answered {answer.status} with {words_of(answer)}; the model is"
        " there: give a request that it takes with --payload FILE, or see the server's log"
    )


def _names(models: RestAnswer) -> list[str] | None:
    try:
        return [str(item["id"]) for item in models.object()["data"]]
    except (ProtocolError, KeyError, TypeError):
        return None


async def _prefix(rest: RestClient) -> tuple[str, RestAnswer]:
    """Where the API is, and the list of its models."""
    answers = []
    for prefix in PREFIXES:
        try:
            answer = await rest.get(f"{prefix}/v1/models")
        except UnreachableError as error:
            raise silent(error, rest) from error
        if (before := stands_before(answer, rest.base_url)) is not None and answer.status != 404:
            raise before
        if answer.status == 200:
            return prefix, answer
        answers.append(answer)
    if waiting := next((answer for answer in answers if answer.status in PASSING), None):
        raise NotServedError(
            f"{rest.base_url}: the server is not ready: /v1/models was answered {waiting.status} with"
            f" {words_of(waiting)}; wait until it is, and look at its log where it stays so"
        )
    said = " and ".join(f"{answer.status} with {words_of(answer)}" for answer in answers)
    raise NotServedError(
        f"{rest.base_url} answers neither /openai/v1/models nor /v1/models (but {said}): no OpenAI API is served there"
    )
