"""openai: the OpenAI API, where ``/openai/v1/models`` (KServe's place for it) or ``/v1/models`` answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from harness.base.errors import ProtocolError
from harness.target.protocol.rest import RestAnswer
from scenarios.suites.conformance.checks import MUST, SHOULD, CheckFailed, Skip, expect
from scenarios.suites.conformance.sources import OPENAI, check
from scenarios.suites.conformance.target import Target, body_of

PREFIXES = ("/openai/v1", "/v1")
PROMPT = "Name three rivers."
STREAMS = 8
MAX_TOKENS = 6


async def base(target: Target) -> str:
    """Where the API is served. Raises Skip."""

    async def ask() -> str:
        for prefix in PREFIXES:
            if (await target.rest.get(f"{prefix}/models")).status == 200:
                return prefix
        return ""

    prefix: str = await target.once("openai.base", ask)
    if not prefix:
        raise Skip("neither /openai/v1/models nor /v1/models is served here")
    return prefix


def chat_body(target: Target, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": target.model, "messages": messages, "temperature": 0, "max_tokens": 64, **fields}


def completion_body(target: Target, **fields: Any) -> dict[str, Any]:
    return {"model": target.model, "prompt": PROMPT, "temperature": 0, "max_tokens": 64, **fields}


async def post(target: Target, place: str, body: Any) -> RestAnswer:
    return await target.rest.request("POST", f"{await base(target)}/{place}", body, timeout_s=60)


async def chat(target: Target, **fields: Any) -> dict[str, Any]:
    return body_of(await post(target, "chat/completions", chat_body(target, **fields)))


async def complete(target: Target, **fields: Any) -> dict[str, Any]:
    return body_of(await post(target, "completions", completion_body(target, **fields)))


async def plain_chat(target: Target) -> dict[str, Any]:
    """One chat completion, shared by the checks that only look at it."""
    body: dict[str, Any] = await target.once("openai.chat", lambda: chat(target))
    return body


async def plain_completion(target: Target) -> dict[str, Any]:
    body: dict[str, Any] = await target.once("openai.completion", lambda: complete(target))
    return body


def choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise CheckFailed('a list "choices" that is not empty', repr(choices))
    first: dict[str, Any] = choices[0]
    return first


def text_of(body: dict[str, Any]) -> str:
    found = choice(body)
    text = (found.get("message") or {}).get("content") if "message" in found else found.get("text")
    if not isinstance(text, str):
        raise CheckFailed("text in the first choice", repr(found)[:300])
    return text


def check_schema(body: dict[str, Any], kind: str) -> None:
    """What chat completions and completions have in common."""
    expect(body.get("id"), "id").is_text()
    expect(body.get("object"), "object").equals(kind)
    expect(body.get("created"), "created").is_a(int, "a time in seconds")
    expect(choice(body).get("index"), "index").equals(0)
    expect(text_of(body), "text").is_text()
    expect(choice(body).get("finish_reason"), "finish_reason").is_one_of(["stop", "length"])


def check_usage(body: dict[str, Any]) -> None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        raise CheckFailed('an object "usage"', repr(usage))
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        expect(usage.get(name), name).is_a(int, "an integer")
    expect(usage["total_tokens"], "total_tokens").equals(usage["prompt_tokens"] + usage["completion_tokens"])
    expect(usage["completion_tokens"], "completion_tokens").satisfies(lambda count: count > 0, "above 0")


def check_limit(body: dict[str, Any]) -> None:
    finish = choice(body).get("finish_reason")
    expect(body["usage"]["completion_tokens"], "completion_tokens").satisfies(
        lambda count: count <= MAX_TOKENS, f"at most {MAX_TOKENS}"
    )
    wanted = ["length"] if body["usage"]["completion_tokens"] == MAX_TOKENS else ["stop"]
    if finish == "stop" and wanted == ["length"]:
        wanted = ["length", "stop"]  # the answer may have ended right there
    expect(finish, "finish_reason").is_one_of(wanted)


# openai.models


@check("openai.models.lists_model", level=MUST, source=OPENAI.models)
async def lists_model(target: Target) -> None:
    """The list of models has the model's id."""
    body = body_of(await target.rest.get(f"{await base(target)}/models"))
    names = [item.get("id") for item in body.get("data") or []]
    expect(target.model in names, f"{target.model} in {names}").is_true("the model's id among them")


@check("openai.models.schema", level=MUST, source=OPENAI.models)
async def models_schema(target: Target) -> None:
    """The list is an object "list", its entries have an id and are of object "model"."""
    body = body_of(await target.rest.get(f"{await base(target)}/models"))
    expect(body.get("object"), "object").equals("list")
    for item in body.get("data") or []:
        expect(item.get("id"), "id").is_text()
        expect(item.get("object"), "object").equals("model")


# openai.chat


@check("openai.chat.schema", level=MUST, source=OPENAI.chat)
async def chat_schema(target: Target) -> None:
    """A chat completion has an id, the object "chat.completion", a time, and choices with index, message and reason."""
    body = await plain_chat(target)
    check_schema(body, "chat.completion")
    expect((choice(body).get("message") or {}).get("role"), "role").equals("assistant")


@check("openai.chat.model", level=MUST, source=OPENAI.chat)
async def chat_model(target: Target) -> None:
    """ "model" of the answer is the model that was asked."""
    expect((await plain_chat(target)).get("model"), "model").equals(target.model)


@check("openai.chat.usage", level=MUST, source=OPENAI.chat)
async def chat_usage(target: Target) -> None:
    """ "usage" adds up: total_tokens is prompt_tokens and completion_tokens."""
    check_usage(await plain_chat(target))


@check("openai.chat.max_tokens", level=MUST, source=OPENAI.chat)
async def chat_max_tokens(target: Target) -> None:
    """With max_tokens the answer has no more tokens, and says "length" where that cut it off."""
    check_limit(await chat(target, max_tokens=MAX_TOKENS))


@check("openai.chat.stop", level=MUST, source=OPENAI.chat)
async def chat_stop(target: Target) -> None:
    """With a stop sequence the text ends before it, with the reason "stop"."""
    text = text_of(await plain_chat(target))
    word = next((word for word in text.split()[1:] if len(word) > 2), "")
    if not word:
        raise Skip("the answer has no word to stop at")
    body = await chat(target, stop=[word])
    expect(text_of(body), "text").satisfies(lambda value: word not in value, f"text without {word!r}")
    expect(choice(body).get("finish_reason"), "finish_reason").equals("stop")


@check("openai.chat.n", level=SHOULD, source=OPENAI.chat)
async def chat_n(target: Target) -> None:
    """With n of 2 there are two choices, with the indices 0 and 1."""
    body = await chat(target, n=2, temperature=1)
    expect([item.get("index") for item in body["choices"]], "indices").equals([0, 1])


@check("openai.chat.repeats", level=SHOULD, source=OPENAI.chat)
async def chat_repeats(target: Target) -> None:
    """At temperature 0, with a seed, the same question has the same answer."""
    first, second = await chat(target, seed=7), await chat(target, seed=7)
    expect(text_of(second), "second answer").equals(text_of(first))


@check("openai.chat.unknown_field", level=SHOULD, source=OPENAI.chat)
async def chat_unknown_field(target: Target) -> None:
    """A field that nobody knows is ignored or refused with 4xx, never answered with 5xx."""
    answer = await post(target, "chat/completions", chat_body(target, servecert_unknown={"a": 1}))
    expect(answer.status, "status").satisfies(lambda status: status < 500, "below 500")


# openai.completions


@check("openai.completions.schema", level=MUST, source=OPENAI.completions)
async def completions_schema(target: Target) -> None:
    """A completion has an id, the object "text_completion", a time, and choices with index, text and reason."""
    check_schema(await plain_completion(target), "text_completion")


@check("openai.completions.usage", level=MUST, source=OPENAI.completions)
async def completions_usage(target: Target) -> None:
    """ "usage" adds up: total_tokens is prompt_tokens and completion_tokens."""
    check_usage(await plain_completion(target))


@check("openai.completions.max_tokens", level=MUST, source=OPENAI.completions)
async def completions_max_tokens(target: Target) -> None:
    """With max_tokens the answer has no more tokens, and says "length" where that cut it off."""
    check_limit(await complete(target, max_tokens=MAX_TOKENS))


@check("openai.completions.prompts", level=SHOULD, source=OPENAI.completions)
async def completions_prompts(target: Target) -> None:
    """A list of two prompts has two choices, the first of them that of the first prompt alone."""
    body = await complete(target, prompt=[PROMPT, "Name three lakes."])
    expect([item.get("index") for item in body["choices"]], "indices").equals([0, 1])
    expect(text_of(body), "first text").equals(text_of(await plain_completion(target)))


# openai.errors


async def refusal(target: Target, place: str, body: Any, status: int) -> None:
    answer = await post(target, place, body)
    expect(answer.status, "status").equals(status)
    error = answer.object().get("error")
    expect(error, "error").is_a(dict, "an object with a message")
    assert isinstance(error, dict)
    expect(error.get("message"), "error.message").is_text()


@check("openai.errors.unknown_model", level=MUST, source=OPENAI.errors)
async def unknown_model(target: Target) -> None:
    """An unknown model is refused with 404 and an error message."""
    await refusal(target, "chat/completions", chat_body(target, model="no-such-model-7d1f"), 404)


@check("openai.errors.messages_missing", level=MUST, source=OPENAI.errors)
async def messages_missing(target: Target) -> None:
    """A chat request without messages is refused with 400 and an error message."""
    await refusal(target, "chat/completions", {"model": target.model}, 400)


@check("openai.errors.temperature", level=MUST, source=OPENAI.errors)
async def bad_temperature(target: Target) -> None:
    """A temperature that is no number is refused with 400 and an error message."""
    await refusal(target, "chat/completions", chat_body(target, temperature="hot"), 400)


@check("openai.errors.max_tokens", level=MUST, source=OPENAI.errors)
async def bad_max_tokens(target: Target) -> None:
    """A negative max_tokens is refused with 400 and an error message."""
    await refusal(target, "chat/completions", chat_body(target, max_tokens=-1), 400)


@check("openai.errors.malformed", level=MUST, source=OPENAI.errors)
async def malformed(target: Target) -> None:
    """JSON that is cut off is refused with 400 and an error message."""
    await refusal(target, "chat/completions", '{"model": ', 400)


# openai.stream


@dataclass(frozen=True)
class Stream:
    answer: RestAnswer
    events: list[dict[str, Any]]
    done: bool
    """Whether ``[DONE]`` came last, once."""

    @property
    def text(self) -> str:
        parts = []
        for event in self.events:
            for item in event.get("choices") or []:
                if item.get("index", 0) == 0:
                    parts.append((item.get("delta") or {}).get("content") or item.get("text") or "")
        return "".join(parts)

    @property
    def reasons(self) -> list[str]:
        found = [item.get("finish_reason") for event in self.events for item in event.get("choices") or []]
        return [reason for reason in found if reason is not None]


def read_events(answer: RestAnswer) -> Stream:
    """Raises CheckFailed for what is not a stream of JSON events."""
    expect(answer.status, "status").equals(200)
    events: list[dict[str, Any]] = []
    lines = answer.content.decode("utf-8").split("\n")
    data = [line[5:].strip() for line in lines if line.startswith("data:")]
    other = [line for line in lines if line.strip() and not line.startswith(("data:", ":", "event:", "id:", "retry:"))]
    if other:
        raise CheckFailed("lines of server-sent events", repr(other[0])[:200])
    for item in data:
        if item == "[DONE]":
            continue
        try:
            event = json.loads(item)
        except ValueError as error:
            raise CheckFailed("JSON in each data line", f"{item[:200]!r}: {error}") from error
        expect(event, "event").is_a(dict, "a JSON object")
        events.append(event)
    return Stream(answer, events, data.count("[DONE]") == 1 and data[-1] == "[DONE]")


async def stream_chat(target: Target, **fields: Any) -> Stream:
    return read_events(await post(target, "chat/completions", chat_body(target, stream=True, **fields)))


async def plain_stream(target: Target) -> Stream:
    found: Stream = await target.once("openai.stream", lambda: stream_chat(target))
    return found


@check("openai.stream.content_type", level=MUST, source=OPENAI.stream)
async def stream_content_type(target: Target) -> None:
    """A streamed answer comes as text/event-stream."""
    expect((await plain_stream(target)).answer.content_type, "content type").equals("text/event-stream")


@check("openai.stream.events", level=MUST, source=OPENAI.stream)
async def stream_events(target: Target) -> None:
    """Each data line holds a JSON object "chat.completion.chunk", all of them with the same id."""
    events = (await plain_stream(target)).events
    expect(len(events), "events").satisfies(lambda count: count > 1, "more than one")
    for event in events:
        expect(event.get("object"), "object").equals("chat.completion.chunk")
        expect(event.get("id"), "id").equals(events[0].get("id"))


@check("openai.stream.text", level=MUST, source=OPENAI.stream)
async def stream_text(target: Target) -> None:
    """At temperature 0 the deltas, put together, are the text of the answer that is not streamed."""
    expect((await plain_stream(target)).text, "text of the stream").equals(text_of(await plain_chat(target)))


@check("openai.stream.one_finish_reason", level=MUST, source=OPENAI.stream)
async def stream_finish(target: Target) -> None:
    """A choice has exactly one finish reason, in its last event, and it is that of the answer that is not streamed."""
    stream = await plain_stream(target)
    expect(stream.reasons, "finish reasons").equals([choice(await plain_chat(target)).get("finish_reason")])


@check("openai.stream.done", level=MUST, source=OPENAI.stream)
async def stream_done(target: Target) -> None:
    """The stream ends with data: [DONE], once."""
    expect((await plain_stream(target)).done, "[DONE] last and once").is_true("[DONE] last and once")


@check("openai.stream.role", level=SHOULD, source=OPENAI.stream)
async def stream_role(target: Target) -> None:
    """The first delta says that the role is assistant."""
    first = choice((await plain_stream(target)).events[0])
    expect((first.get("delta") or {}).get("role"), "role").equals("assistant")


@check("openai.stream.pieces", level=SHOULD, source=OPENAI.stream)
async def stream_pieces(target: Target) -> None:
    """The text comes in several pieces, as it is made."""
    stream = await plain_stream(target)
    pieces = [event for event in stream.events if (choice(event).get("delta") or {}).get("content")]
    if len(stream.text.split()) < 3:
        raise Skip("the answer is too short to come in pieces")
    expect(len(pieces), "events with text").satisfies(lambda count: count > 1, "more than one")


@check("openai.stream.usage", level=SHOULD, source=OPENAI.stream)
async def stream_usage(target: Target) -> None:
    """With stream_options.include_usage the last event has the usage, and no choices."""
    stream = await stream_chat(target, stream_options={"include_usage": True})
    last = stream.events[-1]
    expect(last.get("choices"), "choices of the last event").equals([])
    check_usage(last)
    expect(last["usage"], "usage").equals((await plain_chat(target)).get("usage"))


@check("openai.stream.completions", level=MUST, source=OPENAI.completions)
async def stream_completions(target: Target) -> None:
    """A streamed completion, put together, is the text of the one that is not streamed."""
    answer = await post(target, "completions", completion_body(target, stream=True))
    expect(read_events(answer).text, "text of the stream").equals(text_of(await plain_completion(target)))


@check("openai.stream.refused_before", level=MUST, source=OPENAI.errors)
async def stream_refused(target: Target) -> None:
    """A stream that cannot begin is refused with a status, not with an event."""
    await refusal(target, "chat/completions", chat_body(target, model="no-such-model-7d1f", stream=True), 404)


@check("openai.stream.disconnect", level=MUST, source=OPENAI.stream, timeout_s=60)
async def disconnect(target: Target) -> None:
    """Clients that leave in the middle free what they held: after eight of them, a question takes no longer."""
    loop = asyncio.get_running_loop()

    async def timed() -> float:
        started = loop.time()
        await chat(target, max_tokens=MAX_TOKENS)
        return loop.time() - started

    usual = min([await timed() for _ in range(3)])
    path = f"{await base(target)}/chat/completions"
    body = chat_body(target, stream=True, max_tokens=2000, temperature=1)
    for _ in range(STREAMS):
        try:
            await target.rest.first_bytes("POST", path, body)
        except ProtocolError as error:
            raise CheckFailed("the first event of a stream", str(error)) from error
    again = min([await timed() for _ in range(3)])
    limit = max(3 * usual, usual + 0.5)
    expect(again, "seconds for a question afterwards").satisfies(
        lambda value: value <= limit, f"at most {limit:.2f} ({usual:.3f} before)"
    )
