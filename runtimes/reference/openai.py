"""The OpenAI API and Triton's generate extension, for text models.

Sources: OpenAI API reference (Models, Completions, Chat completions); Triton, extension_generate.md.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from runtimes.reference.metrics import Metrics
from runtimes.reference.model import InvalidRequest, NotFound
from runtimes.reference.repository import Repository
from runtimes.reference.text import Piece, TextModel, Wish, count_tokens, generate

TOKEN_S = 0.001
"""Between two tokens: a stream takes its time, as a decoder's does."""
KINDS = {InvalidRequest: (400, "invalid_request_error"), NotFound: (404, "not_found_error")}


@dataclass(frozen=True)
class Asked:
    model: str
    prompts: list[str]
    n: int
    stream: bool
    usage: bool
    wish: Wish
    created: int = field(default_factory=lambda: int(time.time()))


def _json(content: object, status: int = 200) -> Response:
    return Response(json.dumps(content, ensure_ascii=False).encode(), status, media_type="application/json")


def _error(error: Exception) -> Response:
    status, kind = KINDS[type(error)]
    return _json({"error": {"message": str(error), "type": kind, "param": None, "code": None}}, status)


class OpenAI:
    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self.repository = repository
        self.metrics = metrics

    def routes(self, prefix: str = "/openai/v1") -> list[Route]:
        return [
            Route(f"{prefix}/models", self.models, methods=["GET"]),
            Route(f"{prefix}/completions", _guard(self.completions), methods=["POST"]),
            Route(f"{prefix}/chat/completions", _guard(self.chat), methods=["POST"]),
            Route("/v2/models/{model:str}/generate", self.generate, methods=["POST"]),
            Route("/v2/models/{model:str}/generate_stream", self.generate_stream, methods=["POST"]),
        ]

    async def models(self, request: HttpRequest) -> Response:
        entries = [
            {"id": model.name, "object": "model", "created": 0, "owned_by": "servecert"}
            for model in self.repository.models.values()
            if isinstance(model, TextModel)
        ]
        return _json({"object": "list", "data": entries})

    def _model(self, name: object) -> TextModel:
        model = self.repository.models.get(name) if isinstance(name, str) else None
        if not isinstance(model, TextModel):
            raise NotFound(f"the model {name!r} does not exist")
        return model

    async def completions(self, request: HttpRequest) -> Response:
        body = _object(await request.body())
        prompt = body.get("prompt")
        given = prompt if isinstance(prompt, list) else [prompt]
        prompts = [item for item in given if isinstance(item, str)]
        if not prompts or len(prompts) != len(given):
            raise InvalidRequest("prompt must be a string or a list of strings")
        return await self._answer(self._asked(body, prompts), chat=False)

    async def chat(self, request: HttpRequest) -> Response:
        body = _object(await request.body())
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise InvalidRequest("messages must be a list that is not empty")
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("content"), str):
                raise InvalidRequest("each message needs a role and a content")
            if message.get("role") not in ("system", "developer", "user", "assistant", "tool"):
                raise InvalidRequest(f"unknown role {message.get('role')!r}")
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return await self._answer(self._asked(body, [prompt]), chat=True)

    def _asked(self, body: dict[str, Any], prompts: list[str]) -> Asked:
        model = self._model(body.get("model"))
        stop = body.get("stop") or []
        stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else None
        if stops is None or not all(isinstance(item, str) and item for item in stops):
            raise InvalidRequest("stop must be a string or a list of strings")
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        wish = Wish(
            prompts[0],
            1000 if limit is None else _whole("max_tokens", limit, 1),
            _number("temperature", body.get("temperature", 1.0), 0.0, 2.0),
            None if body.get("seed") is None else _whole("seed", body["seed"], -(1 << 63)),
            stops,
        )
        stream = body.get("stream") or False
        options = body.get("stream_options") or {}
        if not isinstance(stream, bool) or not isinstance(options, dict):
            raise InvalidRequest("stream must be true or false, stream_options an object")
        count = _whole("n", body.get("n", 1), 1)
        return Asked(model.name, prompts, count, stream, bool(options.get("include_usage")), wish)

    async def _answer(self, asked: Asked, *, chat: bool) -> Response:
        identifier = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        if asked.stream:
            with self.metrics.observe(asked.model) as observation:
                observation.succeeded = True
            return StreamingResponse(self._events(asked, identifier, chat), media_type="text/event-stream")
        with self.metrics.observe(asked.model) as observation:
            choices, tokens = [], 0
            for index, (prompt, choice) in enumerate(_each(asked)):
                pieces = list(generate(_with_prompt(asked.wish, prompt), choice))
                text, finish = "".join(piece.text for piece in pieces), pieces[-1].finish
                tokens += count_tokens(text)
                content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                choices.append({"index": index, **content, "logprobs": None, "finish_reason": finish})
            observation.succeeded = True
        kind = "chat.completion" if chat else "text_completion"
        return _json({**_head(asked, identifier, kind), "choices": choices, "usage": _usage(asked, tokens)})

    async def _events(self, asked: Asked, identifier: str, chat: bool) -> AsyncIterator[bytes]:
        head = _head(asked, identifier, "chat.completion.chunk" if chat else "text_completion")
        tokens = 0
        for index, (prompt, choice) in enumerate(_each(asked)):
            first = True
            for piece in generate(_with_prompt(asked.wish, prompt), choice):
                await asyncio.sleep(TOKEN_S)
                tokens += count_tokens(piece.text)
                yield _event({**head, "choices": [_part(index, piece, chat, first)]})
                first = False
        if asked.usage:
            yield _event({**head, "choices": [], "usage": _usage(asked, tokens)})
        yield b"data: [DONE]\n\n"

    async def generate(self, request: HttpRequest) -> Response:
        try:
            model, wish = await self._generation(request)
        except (InvalidRequest, NotFound) as error:
            return _json({"error": str(error)}, KINDS[type(error)][0])
        text = "".join(piece.text for piece in generate(wish))
        return _json({"model_name": model.name, "model_version": model.versions[-1], "text_output": text})

    async def generate_stream(self, request: HttpRequest) -> Response:
        try:
            model, wish = await self._generation(request)
        except (InvalidRequest, NotFound) as error:
            return _json({"error": str(error)}, KINDS[type(error)][0])

        async def events() -> AsyncIterator[bytes]:
            for piece in generate(wish):
                await asyncio.sleep(TOKEN_S)
                if piece.text:
                    part = {"model_name": model.name, "model_version": model.versions[-1], "text_output": piece.text}
                    yield _event(part)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _generation(self, request: HttpRequest) -> tuple[TextModel, Wish]:
        model = self._model(request.path_params["model"])
        body = _object(await request.body())
        if not isinstance(body.get("text_input"), str):
            raise InvalidRequest("text_input must be a string")
        parameters = body.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidRequest("parameters must be an object")
        limit = parameters.get("max_tokens", body.get("max_tokens", 1000))
        return model, Wish(body["text_input"], _whole("max_tokens", limit, 1))


def _guard(handler: Callable[[HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def guarded(request: HttpRequest) -> Response:
        try:
            return await handler(request)
        except (InvalidRequest, NotFound) as error:
            return _error(error)

    return guarded


def _object(body: bytes) -> dict[str, Any]:
    try:
        wish = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(wish, dict):
        raise InvalidRequest(f"expected a JSON object, got {type(wish).__name__}")
    return wish


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidRequest(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def _number(name: str, value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidRequest(f"{name} must be a number between {least:g} and {most:g}, got {value!r}")
    return float(value)


def _each(asked: Asked) -> list[tuple[str, int]]:
    return [(prompt, choice) for prompt in asked.prompts for choice in range(asked.n)]


def _with_prompt(wish: Wish, prompt: str) -> Wish:
    return Wish(prompt, wish.max_tokens, wish.temperature, wish.seed, wish.stop)


def _head(asked: Asked, identifier: str, kind: str) -> dict[str, Any]:
    return {"id": identifier, "object": kind, "created": asked.created, "model": asked.model}


def _usage(asked: Asked, completion: int) -> dict[str, int]:
    prompt = sum(count_tokens(text) for text in asked.prompts)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _part(index: int, piece: Piece, chat: bool, first: bool) -> dict[str, Any]:
    if not chat:
        return {"index": index, "text": piece.text, "logprobs": None, "finish_reason": piece.finish}
    delta = {**({"role": "assistant"} if first else {}), **({"content": piece.text} if piece.text or first else {})}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": piece.finish}


def _event(content: object) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
