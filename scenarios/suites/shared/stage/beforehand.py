"""The look before the load: is the model there, does it answer, and what is right?

What is wrong is said before anything is sent in numbers. What nobody knows the right answer to is asked twice: where
both answers agree, they are what the load's answers are compared with. One request at a time: a server that mixes up
what it is asked at once would else be compared with its own mixed answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import grpc as grpc_api

from harness.base.errors import (
    BringUpError,
    MeasurementError,
    RefusedError,
    ServecertError,
    UnreachableError,
    UsageError,
)
from harness.base.shown import visible
from harness.target.endpoint import Endpoint
from harness.target.inputs import Case, cases_for
from harness.target.look import PASSING, what_is_wrong
from harness.target.protocol.grpc_client import GrpcClient, GrpcStatusError
from harness.target.protocol.rest import RestClient
from harness.target.protocol.tensors import InferResult
from scenarios.suites.shared.stage.plan import Plan
from scenarios.suites.shared.stage.requests import GRPC, Encoded, agree, ask, encode_case

LEAST_BUDGET_S, BUDGET_SHARE = 2.0, 0.2
OVERTIME_S = 1.0
"""A case is begun where it is likely to end in time, and left where it takes so much longer."""
TRIES, PAUSE_S = 3, 0.3
"""A first request that is refused for now (429, 503) is asked again."""
PASSING_CODES = (grpc_api.StatusCode.UNAVAILABLE, grpc_api.StatusCode.RESOURCE_EXHAUSTED)


def brief(plan: Plan) -> float:
    """The budget of a stage of load: what is not known in time is inspected by its id alone."""
    return max(LEAST_BUDGET_S, BUDGET_SHARE * plan.length_s)


@contextlib.asynccontextmanager
async def _clients(endpoint: Endpoint, timeout_s: float) -> AsyncIterator[tuple[RestClient, GrpcClient | None]]:
    async with contextlib.AsyncExitStack() as stack:
        rest = await stack.enter_async_context(endpoint.rest(timeout_s))
        grpc = await stack.enter_async_context(endpoint.grpc(timeout_s)) if endpoint.grpc_address else None
        yield rest, grpc


async def encode(endpoint: Endpoint, plan: Plan, budget_s: float = math.inf) -> list[Encoded]:
    """``budget_s`` is for the cases after the first answer; by default all of them are asked. Raises what is wrong
    first: UnreachableError, NotServedError, MeasurementError where a single request is refused."""
    if plan.protocol in GRPC and not endpoint.grpc_address:
        raise UsageError(
            f"{plan.name}: load over gRPC needs a gRPC address: --grpc HOST:PORT, or in a scenario"
            " for a real cluster 'expose: grpc' at the service (it routes to one port)"
        )
    async with _clients(endpoint, max(plan.timeout_s, 30)) as (rest, grpc):
        if plan.protocol == "openai":
            from scenarios.suites.shared.stage import openai

            return await openai.encode(endpoint, rest, budget_s)
        cases = await cases_for(endpoint, rest, grpc)
        items = [encode_case(endpoint, plan, number, case) for number, case in enumerate(cases)]
        return await _Asking(endpoint, plan, rest, grpc, cases, items).all(budget_s)


async def first_answer(endpoint: Endpoint, plan: Plan, within_s: float) -> None:
    """Returns when one request has been answered. Raises what the last try raised after ``within_s``."""
    deadline = time.monotonic() + within_s
    async with _clients(endpoint, plan.timeout_s) as (rest, grpc):
        while True:
            try:
                item = encode_case(endpoint, plan, 0, (await cases_for(endpoint, rest, grpc))[0])
                await ask(plan, item, rest, grpc)
                return
            except ServecertError as error:
                if time.monotonic() > deadline:
                    raise await what_is_wrong(error, rest, grpc, over_grpc=plan.protocol in GRPC) or error from error
            await asyncio.sleep(0.05)


async def ask_first(
    endpoint: Endpoint, plan: Plan, item: Encoded, rest: RestClient, grpc: GrpcClient | None
) -> InferResult:
    """Raises what is wrong first, ProtocolError where the answer cannot be read, else MeasurementError with the words
    of the server that refuses the request."""
    for left in reversed(range(TRIES)):
        try:
            return await ask(plan, item, rest, grpc)
        except ServecertError as error:
            if (wrong := await what_is_wrong(error, rest, grpc, over_grpc=plan.protocol in GRPC)) is not None:
                raise wrong from error
            for_now = (isinstance(error, RefusedError) and error.status in PASSING) or (
                isinstance(error, GrpcStatusError) and error.code in PASSING_CODES
            )
            if left and for_now:
                await asyncio.sleep(PAUSE_S)
                continue
            if isinstance(error, UnreachableError):
                raise UnreachableError(f"{error}; the server is there, and this request is not answered") from error
            if isinstance(error, RefusedError | GrpcStatusError):
                raise MeasurementError(
                    f"{endpoint.service}: before the load, one request alone was refused: {visible(str(error), 500)};"
                    " the model is there: give a request that it takes with --payload FILE, or see the server's log"
                ) from error
            raise
    raise AssertionError("the last try returns or raises")


class _Asking:
    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        rest: RestClient,
        grpc: GrpcClient | None,
        cases: Sequence[Case],
        items: list[Encoded],
    ) -> None:
        self.endpoint, self.plan, self.rest, self.grpc = endpoint, plan, rest, grpc
        self.cases, self.items = cases, items
        self.slowest_s = 0.0

    async def all(self, budget_s: float) -> list[Encoded]:
        try:
            first = await ask_first(self.endpoint, self.plan, self.items[0], self.rest, self.grpc)
        except (BringUpError, MeasurementError):
            raise
        except ServecertError as error:
            self.items[0] = replace(self.items[0], problem=visible(str(error), 400))
            first = None
        deadline = time.monotonic() + budget_s
        if first is not None:
            await self._settle(0, first)
        for number in range(1, len(self.items)):
            golden = self.cases[number].outputs
            self.items[number] = replace(self.items[number], expected=golden or (), unasked=golden is None)
            asks = 1 if golden is not None else 2
            left_s = deadline - time.monotonic()
            if asks * self.slowest_s <= left_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if math.isinf(left_s) else left_s + OVERTIME_S):
                        await self._settle(number)
        return self.items

    async def _ask(self, number: int) -> InferResult:
        started = time.monotonic()
        try:
            return await ask(self.plan, self.items[number], self.rest, self.grpc)
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    async def _settle(self, number: int, one: InferResult | None = None) -> None:
        """What is right for one case, and what the model answered."""
        case, item = self.cases[number], self.items[number]
        try:
            one = one or await self._ask(number)
            repeats = case.outputs is not None or agree(one, await self._ask(number))
        except UnreachableError:
            raise
        except ServecertError as error:
            self.items[number] = replace(item, problem=visible(str(error), 400))
            return
        expected = (case.outputs or one.outputs) if repeats else ()
        self.items[number] = replace(item, expected=expected, inputs=case.inputs, alone=one, unasked=False)


def how_inspected(encoded: Sequence[Encoded]) -> str:
    """What a check says beside the number of inspected answers, where not all were compared with values."""
    unasked = sum(item.unasked for item in encoded)
    changing = sum(not item.expected and not item.unasked for item in encoded)
    if changing == len(encoded):
        return " as far as ids tell: the model does not repeat itself"
    text, by_id = "", f"of {len(encoded)} requests were checked by id only"
    if changing:
        text += f"; {changing} {by_id}: to these the model does not repeat itself"
    if unasked:
        text += f"; {unasked} {by_id}: there was no time to ask them before the load"
    return text
