"""Fuzz: requests that nobody wrote down, valid and spoilt, for a given time; what fails is shrunk to its core.

Valid ones must be answered right; spoilt ones with anything but a 5xx; and none may hang the server or end it.
Hypothesis draws and shrinks; it runs in a thread, the requests on the caller's event loop.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from harness.base.errors import MeasurementError, ProtocolError, ServecertError
from harness.results.records import CheckResult, Exchange, Outcome
from harness.target.endpoint import Endpoint
from harness.target.protocol.rest import RestAnswer, json_request, parse_infer, print_bytes
from harness.target.protocol.tensors import DTYPES, Tensor, same
from harness.target.protocol.transcript import recording
from scenarios.suites.conformance.checks import MUST, Source
from scenarios.suites.conformance.datatypes import repeats
from scenarios.suites.conformance.sources import HTTP, OIP_REST
from scenarios.suites.conformance.target import Target, eventually, health_status, open_target

SUITE = "fuzz"
ROUND = 40
"""Examples drawn between two looks at the clock."""
SHRINK_S = 20.0
MOST_ROWS = 4
TIMEOUT_S = 10.0
RESTART_S = 2.0


@dataclass(frozen=True)
class Rule:
    id: str
    source: Source
    requirement: str


VALID = Rule("fuzz.valid", OIP_REST.inference, "Valid requests, whatever their values, are answered right.")
REFUSED = Rule("fuzz.refused", HTTP.semantics, "Spoilt requests are refused or answered, never with 5xx.")
ANSWERED = Rule("fuzz.answered", HTTP.semantics, f"Every request is answered within {TIMEOUT_S:g} s.")
ALIVE = Rule("fuzz.alive", HTTP.semantics, "After every request the server is still there.")
RULES = (VALID, REFUSED, ANSWERED, ALIVE)


class Broken(Exception):
    """A rule that a request has broken."""

    def __init__(self, rule: Rule, expected: str, observed: str) -> None:
        self.rule = rule
        self.expected = expected
        self.observed = observed
        super().__init__(f"{rule.id}: expected {expected}, observed {observed}")


@dataclass
class Finding:
    """The smallest request so far that breaks the rule."""

    expected: str
    observed: str
    body: bytes
    exchanges: tuple[Exchange, ...]
    found_s: float


@dataclass
class Session:
    target: Target
    loop: asyncio.AbstractEventLoop
    deadline_s: float
    identity: bool
    findings: dict[str, Finding] = field(default_factory=dict)
    verdicts: dict[bytes, Broken | None] = field(default_factory=dict)
    """What came of each body, so that shrinking asks nothing twice."""
    counts: dict[str, int] = field(default_factory=lambda: {"valid": 0, "spoilt": 0})
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, body: bytes) -> RestAnswer:
        """From hypothesis' thread. Raises Broken where no answer comes."""
        request = self.target.rest.infer_raw(body, {"Content-Type": "application/json"}, timeout_s=TIMEOUT_S)
        try:
            return asyncio.run_coroutine_threadsafe(request, self.loop).result()
        except ServecertError as error:
            there = asyncio.run_coroutine_threadsafe(self._is_there(), self.loop).result()
            rule, wanted = (ANSWERED, "an answer") if there else (ALIVE, "a server that is still there")
            raise Broken(rule, wanted, str(error)[:300]) from error

    async def _is_there(self) -> bool:
        """A server that is restarted by whoever watches it gets a moment."""
        if not await eventually(self._answers, RESTART_S):
            return False
        return (await health_status(self.target) or 500) < 500

    async def _answers(self) -> bool:
        return await health_status(self.target) is not None

    def judge(self, kind: str, body: bytes, rule: Callable[[RestAnswer], None]) -> None:
        """Raises Broken for a rule that is not yet settled; the smallest request that breaks it is kept."""
        if body not in self.verdicts:
            self.counts[kind] += 1
            with recording() as exchanges:
                try:
                    rule(self.ask(body))
                    self.verdicts[body] = None
                except Broken as broken:
                    self.verdicts[body] = broken
                    self._keep(broken, body, tuple(exchanges[-2:]))
        verdict = self.verdicts[body]
        if verdict is not None and not self.settled(verdict.rule.id, body):
            raise verdict

    def _keep(self, broken: Broken, body: bytes, exchanges: tuple[Exchange, ...]) -> None:
        known = self.findings.get(broken.rule.id)
        if known is None:
            now = time.monotonic()
            self.findings[broken.rule.id] = Finding(broken.expected, broken.observed, body, exchanges, now)
        elif len(body) < len(known.body):
            known.body, known.exchanges = body, exchanges
            known.expected, known.observed = broken.expected, broken.observed

    def settled(self, rule_id: str, body: bytes) -> bool:
        """Whether shrinking has had its time: only the smallest request still counts as a failure then, so that
        hypothesis comes to its end."""
        found = self.findings[rule_id]
        return time.monotonic() > found.found_s + SHRINK_S and (body != found.body or found.found_s == -math.inf)

    @property
    def over(self) -> bool:
        return self.stop.is_set() or time.monotonic() > self.deadline_s or ALIVE.id in self.findings


# What is drawn


def elements(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(str.encode)
    if datatype in ("FP16", "BF16"):
        return st.integers(-64, 64).map(lambda value: value / 8)
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        return st.floats(allow_nan=False, allow_infinity=False, width=32 if datatype == "FP32" else 64)
    limits: Any = np.iinfo(dtype)
    return st.integers(limits.min, limits.max)


@st.composite
def valid_inputs(draw: st.DrawFn, target: Target) -> list[Tensor]:
    """The example's inputs with drawn values, in a drawn number of rows where the model allows it; models other than
    identities get values from the example's range, since not every number makes sense to every model."""
    example = target.example()
    rows = draw(st.integers(1, MOST_ROWS)) if target.free_batch else None
    tensors = []
    for tensor in example:
        shape = tensor.shape if rows is None else (rows, *tensor.shape[1:])
        count = math.prod(shape)
        values = draw(st.lists(elements(tensor.datatype), min_size=count, max_size=count))
        if tensor.datatype == "BYTES":
            array = np.empty(count, dtype=object)
            array[:] = values
        else:
            array = np.array(values, dtype=DTYPES[tensor.datatype])
        tensors.append(Tensor(tensor.name, tensor.datatype, shape, array.reshape(shape)))
    return tensors


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(["FP32", "INT64", "BYTES", "", "\u0000", "/", "../..", "1e999"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document that can be changed."""
    found = [path] if path else []
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


@st.composite
def spoilt_bodies(draw: st.DrawFn, target: Target) -> bytes:
    """A valid request with a thing or two wrong: a value replaced, removed or doubled; or the text itself damaged."""
    request = json.loads(json.dumps(json_request(target.example(), request_id="fuzz")))
    for _ in range(draw(st.integers(0, 2))):
        reachable = places(request)
        if not reachable:
            break
        path = draw(st.sampled_from(reachable))
        holder = request
        for key in path[:-1]:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "remove", "double"]))
        if action == "replace":
            holder[path[-1]] = draw(JSON)
        elif action == "remove":
            del holder[path[-1]]
        elif isinstance(holder, list):
            holder.append(holder[path[-1]])
    body = json.dumps(request).encode()
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "byte", "insert"]))
    if damage != "none" and body:
        position = draw(st.integers(0, len(body) - 1))
        if damage == "cut":
            return body[:position]
        other = bytes([draw(st.integers(0, 255))])
        return body[:position] + other + body[position + (damage == "byte") :]
    return body


# The rules


def answered_right(session: Session, inputs: list[Tensor]) -> Callable[[RestAnswer], None]:
    def rule(answer: RestAnswer) -> None:
        if answer.status != 200:
            if session.identity or answer.status >= 500:
                raise Broken(VALID, "200", f"status {answer.status}: {answer.content[:200]!r}")
            return  # a model may refuse values that make no sense to it
        try:
            result = parse_infer(answer)
        except ProtocolError as error:
            raise Broken(VALID, "an answer of the protocol", str(error)[:300]) from error
        if session.identity:
            for sent, came in zip(inputs, result.outputs, strict=False):
                if not same(sent, came.with_name(sent.name)):
                    raise Broken(
                        VALID,
                        f"{sent.flat.tolist()[:8]} in {came.name}",
                        f"{came.flat.tolist()[:8]} of shape {list(came.shape)}",
                    )

    return rule


def not_a_fault(answer: RestAnswer) -> None:
    if answer.status >= 500:
        raise Broken(REFUSED, "a status below 500", f"status {answer.status}: {answer.content[:200]!r}")


def hunt(session: Session, chosen_seed: int) -> None:
    """In a thread of its own: rounds of examples until the time is over or the server is."""
    turn = 0
    while not session.over:
        turn += 1
        for kind in ("valid", "spoilt"):
            _round(session, kind, chosen_seed + turn)


def _round(session: Session, kind: str, chosen_seed: int) -> None:
    strategy: st.SearchStrategy[Any] = (
        valid_inputs(session.target) if kind == "valid" else spoilt_bodies(session.target)
    )

    @seed(chosen_seed)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(strategy)
    def one(drawn: Any) -> None:
        body = json.dumps(json_request(drawn, request_id="fuzz")).encode() if kind == "valid" else drawn
        if session.over and body not in session.verdicts:
            return
        session.judge(kind, body, answered_right(session, drawn) if kind == "valid" else not_a_fault)

    try:
        one()
    except Broken as broken:
        # The next rounds look for something else: this rule has its finding.
        session.findings[broken.rule.id].found_s = -math.inf
    except Exception as error:
        if session.findings:
            return  # hypothesis' own complaint about a server that answers one way and then another
        raise MeasurementError(f"fuzz: {type(error).__name__}: {error}") from error


async def fuzz(
    endpoint: Endpoint,
    duration_s: float,
    chosen_seed: int,
    save: Callable[[str, str], str],
    status: Callable[[str], None],
    step: str = "",
) -> AsyncIterator[CheckResult]:
    """``save`` keeps a text and says where. Raises UnreachableError, or MeasurementError when nothing could be sent."""
    async with open_target(endpoint, use_grpc=False) as target:
        if not target.has_payload:
            raise MeasurementError(
                "fuzz needs a request to begin with: the model's metadata name no inputs; give --payload or --golden"
            )
        alone = await target.rest.infer_raw(json_request(target.example()))
        if alone.status != 200:
            raise MeasurementError(f"fuzz: the valid request to begin with was answered {alone.status}")
        identity = repeats(target.example(), parse_infer(alone))
        started = time.monotonic()
        session = Session(target, asyncio.get_running_loop(), started + duration_s, identity)
        hunting = asyncio.create_task(asyncio.to_thread(hunt, session, chosen_seed))
        try:
            while not hunting.done():
                await asyncio.wait([hunting], timeout=0.5)
                sent = ", ".join(f"{count} {kind}" for kind, count in session.counts.items())
                status(f"fuzz: {time.monotonic() - started:.0f} of {duration_s:g} s, {sent} requests")
            await hunting
        finally:
            session.stop.set()
        for rule in RULES:
            yield _result(endpoint, rule, session, save, step, time.monotonic() - started)


def _result(
    endpoint: Endpoint, rule: Rule, session: Session, save: Callable[[str, str], str], step: str, elapsed_s: float
) -> CheckResult:
    found = session.findings.get(rule.id)
    sent = ", ".join(f"{count} {kind}" for kind, count in session.counts.items())
    kept = save(f"{rule.id}.sh", script(found, session.target)) if found else ""
    fields: dict[str, Any] = {"observed": f"{sent} requests"}
    if found:
        note = f" (the request is kept in {kept})" if kept else ""
        fields = {"expected": found.expected, "observed": found.observed + note, "evidence": found.exchanges}
    return CheckResult(
        id=rule.id,
        suite=SUITE,
        level=MUST,
        outcome=Outcome.FAILED if found else Outcome.PASSED,
        service=endpoint.service,
        runtime=endpoint.runtime,
        requirement=rule.requirement,
        source=str(rule.source),
        duration_s=round(elapsed_s, 3),
        deviation=endpoint.deviations.get(rule.id),
        step=step,
        **fields,
    )


def script(found: Finding, target: Target) -> str:
    """The request as a curl command that needs nothing beside it, whatever bytes it holds."""
    host = f" -H 'Host: {target.rest.host}'" if target.rest.host else ""
    url = f"{target.rest.base_url}{target.rest.model_path}/infer"
    readable = found.body[:400].decode(errors="backslashreplace").replace("\n", " ")
    command = f"curl -sS -i -X POST -H 'Content-Type: application/json'{host} --data-binary @- '{url}'"
    return (
        f"#!/bin/sh\n# expected: {_line(found.expected)}\n# observed: {_line(found.observed)}\n# body: {readable}\n"
        f"{print_bytes(found.body)} | {command}\n"
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
