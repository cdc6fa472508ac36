"""Checks: one function a requirement, with its level and source, and a runner that never lets one end the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.base.errors import ServecertError
from harness.results.records import CheckResult, Deviation, Exchange, Level, Outcome
from harness.target.protocol.transcript import recording

MUST, SHOULD, MAY = Level.MUST, Level.SHOULD, Level.MAY
EVIDENCE = 4
"""Exchanges kept with a result: the last ones, which decided it."""


@dataclass(frozen=True)
class Source:
    document: str
    section: str

    def __str__(self) -> str:
        return f"{self.document}, {self.section}"


Need = Callable[[Any], str | None]
"""Why a target cannot be checked, or None when it can."""


@dataclass(frozen=True)
class Check:
    id: str
    level: Level
    source: Source
    requirement: str
    run: Callable[[Any], Awaitable[None]]
    needs: tuple[Need, ...] = ()
    timeout_s: float = 30.0

    @property
    def group(self) -> str:
        return ".".join(self.id.split(".")[:2])


class CheckFailed(Exception):
    def __init__(self, expected: str, observed: str) -> None:
        self.expected = expected
        self.observed = observed
        super().__init__(f"expected {expected}, observed {observed}")


class Skip(Exception):
    """What the check needs turned out to be missing; the message says what."""


@dataclass
class Registry:
    checks: dict[str, Check] = field(default_factory=dict)

    def add(self, check: Check) -> None:
        if check.id in self.checks:
            raise ValueError(f"two checks are named {check.id}")
        self.checks[check.id] = check

    def check(
        self, name: str, *, level: Level, source: Source, needs: Iterable[Need] = (), timeout_s: float = 30.0
    ) -> Callable[[Callable[[Any], Awaitable[None]]], Callable[[Any], Awaitable[None]]]:
        """Registers a function; its docstring is the requirement."""

        def register(function: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
            requirement = " ".join((function.__doc__ or "").split())
            if not requirement:
                raise ValueError(f"check {name} states no requirement")
            self.add(Check(name, level, source, requirement, function, tuple(needs), timeout_s))
            return function

        return register

    def in_groups(self, groups: Iterable[str]) -> list[Check]:
        """In the order of the groups, and within a group as they were written."""
        order = {group: place for place, group in enumerate(groups)}
        chosen = [check for check in self.checks.values() if check.group in order]
        return sorted(chosen, key=lambda check: order[check.group])


def _show(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}…"


@dataclass(frozen=True)
class Expectation:
    """What came, and methods that say what should have come."""

    value: Any
    what: str = ""

    def _fail(self, expected: str) -> None:
        name = f"{self.what} " if self.what else ""
        raise CheckFailed(f"{name}{expected}", f"{name}{_show(repr(self.value))}")

    def equals(self, wanted: object) -> None:
        if self.value != wanted or type(self.value) is not type(wanted):
            self._fail(_show(repr(wanted)))

    def is_true(self, expected: str) -> None:
        if self.value is not True:
            self._fail(expected)

    def is_one_of(self, wanted: Iterable[object]) -> None:
        options = list(wanted)
        if self.value not in options:
            self._fail("one of " + ", ".join(map(repr, options)))

    def is_a(self, kind: type, name: str) -> None:
        if not isinstance(self.value, kind) or (isinstance(self.value, bool) and kind is not bool):
            self._fail(name)

    def is_text(self) -> None:
        if not isinstance(self.value, str) or not self.value:
            self._fail("a non-empty string")

    def is_below(self, limit: float) -> None:
        if not self.value < limit:
            self._fail(f"below {limit!r}")

    def satisfies(self, test: Callable[[Any], bool], expected: str) -> None:
        if not test(self.value):
            self._fail(expected)


def expect(value: Any, what: str = "") -> Expectation:
    return Expectation(value, what)


async def run_check(
    check: Check,
    target: Any,
    *,
    suite: str,
    service: str,
    runtime: str,
    deviations: dict[str, Deviation],
    step: str = "",
) -> CheckResult:
    """Never raises but for cancellation: what goes wrong is the result."""
    start = time.monotonic()
    outcome, expected, observed, reason = Outcome.PASSED, "", "", ""
    with recording() as exchanges:
        missing = next((why for need in check.needs if (why := need(target)) is not None), None)
        if missing is not None:
            outcome, reason = Outcome.SKIPPED, missing
        else:
            try:
                async with asyncio.timeout(check.timeout_s):
                    await check.run(target)
            except CheckFailed as failure:
                outcome, expected, observed = Outcome.FAILED, failure.expected, failure.observed
            except Skip as skip:
                outcome, reason = Outcome.SKIPPED, str(skip)
            except TimeoutError:
                outcome, expected, observed = Outcome.FAILED, f"an answer within {check.timeout_s:g} s", "none"
            except ServecertError as error:
                # The target broke the exchange: a failure of the requirement with the target's own words as evidence.
                outcome, expected, observed = Outcome.FAILED, check.requirement, _show(str(error))
            except Exception as error:
                outcome, reason = Outcome.ERROR, f"{type(error).__name__}: {error}"
    evidence: tuple[Exchange, ...] = tuple(exchanges[-EVIDENCE:])
    if outcome is Outcome.PASSED:
        evidence = tuple(Exchange(e.request[:1200], e.sent[:600], e.status, e.received[:600]) for e in exchanges[-1:])
    return CheckResult(
        id=check.id,
        suite=suite,
        level=check.level,
        outcome=outcome,
        service=service,
        runtime=runtime,
        requirement=check.requirement,
        source=str(check.source),
        expected=expected,
        observed=observed,
        reason=reason,
        duration_s=round(time.monotonic() - start, 6),
        evidence=evidence,
        deviation=deviations.get(check.id),
        step=step,
    )
