"""A text model for the reference server: no language, but everything that its protocols say about text.

Each token is a word of a small vocabulary, chosen by a hash of the prompt, the seed and the position, so that the same
question has the same answer. A model directory holds ``model.json`` with ``"platform": "servecert_text"``.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from runtimes.reference.model import InvalidRequest, Model, Request, Tensor

_TEXT = """
stone river lamp seven quiet orange window north paper bridge cloud silver morning garden letter winter copper road
island music harbour field candle mirror salt thunder valley feather anchor meadow clock forest
"""
WORDS = tuple(_TEXT.split())
SHORTEST, LONGEST = 12, 40


@dataclass(frozen=True)
class Wish:
    """What is asked of the generator."""

    prompt: str
    max_tokens: int = LONGEST
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A token's text; the last has why it is the last: ``stop`` or ``length``."""

    text: str
    finish: str | None = None


def count_tokens(text: str) -> int:
    return len(text.split())


def generate(wish: Wish, choice: int = 0) -> Iterator[Piece]:
    """The tokens of one choice; the text ends before the first stop sequence."""
    seed = "" if wish.temperature == 0 else str(secrets.randbits(64) if wish.seed is None else wish.seed)
    base = f"{wish.prompt}\0{seed}\0{choice if wish.temperature else 0}".encode()

    def number(position: int) -> int:
        return int.from_bytes(hashlib.blake2b(base + b"\0%d" % position, digest_size=8).digest(), "big")

    length = SHORTEST + number(-1) % (LONGEST - SHORTEST)
    text = ""
    for position in range(length):
        if position == wish.max_tokens:
            yield Piece("", "length")
            return
        word = WORDS[number(position) % len(WORDS)]
        piece = word if not text else f" {word}"
        cut = min((found for stop in wish.stop if (found := (text + piece).find(stop)) >= 0), default=-1)
        if cut >= 0:
            yield Piece((text + piece)[len(text) : cut], "stop")
            return
        text += piece
        yield Piece(piece)
    yield Piece("", "stop")


class TextModel(Model):
    """Over v2 it takes one BYTES element and answers with one."""

    def infer(self, request: Request) -> list[Tensor]:
        (answer,) = super().infer(request)
        texts = []
        for item in answer.data:
            try:
                prompt = item.decode()
            except UnicodeDecodeError:
                raise InvalidRequest("the prompt is not UTF-8") from None
            texts.append("".join(piece.text for piece in generate(Wish(prompt))).encode())
        return [Tensor(answer.name, "BYTES", answer.shape, texts)]
