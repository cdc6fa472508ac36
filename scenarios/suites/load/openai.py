"""Load on the OpenAI chat API: streamed answers, with time to first token and the gaps between tokens.

Source: OpenAI API reference, Chat Completions, streaming; KServe serves it below ``/openai``.
"""

from __future__ import annotations

from harness.endpoint import Endpoint
from harness.errors import MeasurementError, UsageError
from harness.load.job import Request
from harness.protocol.openai import read_stream
from harness.protocol.rest import RestClient, json_body
from scenarios.suites.load.requests import Encoded

PREFIXES = ("/openai", "")
PROMPT = "Name the planets of the solar system, one a line."
MAX_TOKENS = 32


async def encode(endpoint: Endpoint, rest: RestClient) -> list[Encoded]:
    """The request in the payload file, or a short prompt; asked once alone, so that a wrong address or model is found
    before the stage. Raises MeasurementError."""
    prefix = await _prefix(rest)
    bodies = endpoint.chat or ({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS},)
    encoded = []
    for number, chat in enumerate(bodies):
        if not isinstance(chat.get("messages"), list):
            raise UsageError("--payload: expected a chat completion request, with a list 'messages'")
        body = json_body({"temperature": 0, **chat, "model": chat.get("model", endpoint.model), "stream": True})
        request = Request(f"{prefix}/v1/chat/completions", {"Content-Type": "application/json"}, f"body-{number}.bin")
        answer = await rest.request("POST", request.target, body, request.headers)
        if answer.status != 200:
            raise MeasurementError(
                f"a single chat request before the load was answered {answer.status}: {answer.content[:300]!r}"
            )
        read_stream(answer.content)
        encoded.append(Encoded(request, body))
    return encoded


async def _prefix(rest: RestClient) -> str:
    for prefix in PREFIXES:
        if (await rest.get(f"{prefix}/v1/models")).status == 200:
            return prefix
    raise MeasurementError(
        f"{rest.base_url} answers neither /openai/v1/models nor /v1/models: no OpenAI API is served there"
    )
