"""generate: Triton's generate extension, text in and text out."""

from __future__ import annotations

from typing import Any

from harness.target.protocol.rest import RestAnswer
from scenarios.suites.conformance.checks import MUST, SHOULD, CheckFailed, Skip, expect
from scenarios.suites.conformance.openai import Stream, read_events
from scenarios.suites.conformance.rest_metadata import UNKNOWN_MODEL
from scenarios.suites.conformance.sources import GENERATE, check
from scenarios.suites.conformance.target import Target, body_of

PROMPT = "Name three rivers."


async def ask(target: Target, body: Any, where: str = "generate") -> RestAnswer:
    return await target.rest.request("POST", f"{target.rest.model_path}/{where}", body, timeout_s=60)


async def plain(target: Target) -> RestAnswer:
    """One valid question. Raises Skip where the extension is not served for the model."""
    answer: RestAnswer = await target.once("generate.plain", lambda: ask(target, {"text_input": PROMPT}))
    if answer.status in (404, 405) or (answer.status == 400 and "generate" not in target.asked):
        raise Skip(f"generate is not served for this model (status {answer.status})")
    return answer


async def stream(target: Target) -> Stream:
    await plain(target)
    answer: RestAnswer = await target.once(
        "generate.stream", lambda: ask(target, {"text_input": PROMPT}, "generate_stream")
    )
    return read_events(answer)


def text_of(body: dict[str, Any]) -> str:
    text = body.get("text_output")
    if not isinstance(text, str):
        raise CheckFailed('a string "text_output"', repr(text))
    return text


@check("generate.answer.status", level=MUST, source=GENERATE.request)
async def status(target: Target) -> None:
    """A question with text_input is answered 200."""
    expect((await plain(target)).status, "status").equals(200)


@check("generate.answer.fields", level=MUST, source=GENERATE.request)
async def fields(target: Target) -> None:
    """The answer has the model's name and a string "text_output"."""
    body = body_of(await plain(target))
    expect(body.get("model_name"), "model_name").equals(target.model)
    expect(text_of(body), "text_output").is_text()


@check("generate.answer.parameters", level=MUST, source=GENERATE.request)
async def parameters(target: Target) -> None:
    """Parameters of string, number and boolean are accepted."""
    await plain(target)
    wish = {"text_input": PROMPT, "parameters": {"servecert_text": "a", "servecert_number": 1, "servecert_flag": True}}
    expect((await ask(target, wish)).status, "status").equals(200)


@check("generate.answer.unknown_model", level=MUST, source=GENERATE.request)
async def unknown_model(target: Target) -> None:
    """A question to an unknown model is refused with 4xx and an error."""
    await plain(target)
    answer = await target.rest.request("POST", f"{UNKNOWN_MODEL}/generate", {"text_input": PROMPT})
    expect(answer.status, "status").satisfies(lambda value: 400 <= value < 500, "4xx")
    expect(answer.object().get("error"), "error").is_text()


@check("generate.answer.input_missing", level=MUST, source=GENERATE.request)
async def input_missing(target: Target) -> None:
    """A question without its input is refused with 4xx and an error."""
    await plain(target)
    answer = await ask(target, {})
    expect(answer.status, "status").satisfies(lambda value: 400 <= value < 500, "4xx")
    expect(answer.object().get("error"), "error").is_text()


@check("generate.stream.content_type", level=MUST, source=GENERATE.stream)
async def content_type(target: Target) -> None:
    """generate_stream answers with server-sent events."""
    expect((await stream(target)).answer.content_type, "content type").equals("text/event-stream")


@check("generate.stream.events", level=MUST, source=GENERATE.stream)
async def events(target: Target) -> None:
    """Each event is a JSON object with the model's name and a string "text_output"."""
    found = (await stream(target)).events
    expect(len(found), "events").satisfies(lambda count: count > 0, "one or more")
    for event in found:
        expect(event.get("model_name"), "model_name").equals(target.model)
        text_of(event)


@check("generate.stream.text", level=SHOULD, source=GENERATE.stream)
async def text(target: Target) -> None:
    """The texts of the events, put together, or the last of them, are the text of the answer that is not streamed."""
    found = (await stream(target)).events
    wanted = text_of(body_of(await plain(target)))
    together = "".join(text_of(event) for event in found)
    expect(together if found and text_of(found[-1]) != wanted else wanted, "text of the stream").equals(wanted)
