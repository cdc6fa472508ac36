"""A request that is encoded once, with a place for the number that makes each one its own."""

from __future__ import annotations

from dataclasses import dataclass

from harness.load.job import ID_PLACEHOLDER, ID_WIDTH


@dataclass(frozen=True)
class Template:
    """``after`` is None where the request has no place for a number: every row then sends ``before``."""

    before: bytes
    after: bytes | None

    @staticmethod
    def of(content: bytes) -> Template:
        before, found, after = content.partition(ID_PLACEHOLDER.encode())
        return Template(before, after) if found else Template(content, None)

    def parts(self, number: int) -> tuple[bytes, ...]:
        if self.after is None:
            return (self.before,)
        return self.before, b"%0*d" % (ID_WIDTH, number), self.after

    def fill(self, number: int) -> bytes:
        return b"".join(self.parts(number))
