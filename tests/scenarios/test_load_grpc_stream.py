"""Load over gRPC streams: messages timed one by one, failures within a stream found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from harness.results.records import CheckResult, LoadResult, Outcome
from harness.target.endpoint import Endpoint
from harness.target.protocol.messages import MESSAGES
from scenarios.suites.shared.stage import Plan, load
from tests.helpers import Reference, grpc_server

FIRST_S, GAP_S, MESSAGES_EACH = 0.04, 0.02, 5


async def run(reference: Reference, address: str) -> tuple[LoadResult, dict[str, CheckResult]]:
    endpoint = Endpoint("s", "r", reference.url, "identity", grpc_address=address)
    plan = Plan("load", 1.5, rate_per_s=20, warmup_s=0.2, protocol="grpc-stream", arrivals="constant")
    records = [record async for record in load(endpoint, plan, "s", lambda progress: None)]
    checks = {record.id: record for record in records if isinstance(record, CheckResult)}
    return next(record for record in records if isinstance(record, LoadResult)), checks


@contextlib.asynccontextmanager
async def decoder(wrong_id: bool = False, fails_within: bool = False) -> AsyncIterator[str]:
    """Answers each request with several messages, as a decoder gives its tokens; the model repeats nothing."""
    asked = 0

    async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        nonlocal asked
        async for request in requests:
            asked += 1
            for number in range(MESSAGES_EACH):
                await asyncio.sleep(GAP_S if number else FIRST_S)
                answer = MESSAGES["ModelStreamInferResponse"]()
                answer.infer_response.model_name = request.model_name
                answer.infer_response.id = "another" if wrong_id and asked > 2 else request.id
                answer.infer_response.outputs.add(name="y", datatype="INT32", shape=[1]).contents.int_contents.append(
                    asked
                )
                if fails_within and number == 2 and asked > 2:
                    answer.error_message = "out of memory"
                yield answer

    async with grpc_server("ModelStreamInfer", stream) as address:
        yield address


async def test_reference_server(reference: Reference) -> None:
    result, checks = await run(reference, reference.grpc)
    assert result.errors == 0
    assert result.requests == 30
    assert result.streaming["tokens"]["per_answer"] == 1
    assert checks["load.answers"].outcome is Outcome.PASSED
    assert "all right" in checks["load.answers"].observed


async def test_messages_are_timed_one_by_one(reference: Reference) -> None:
    async with decoder() as address:
        result, checks = await run(reference, address)
    assert result.errors == 0
    assert result.streaming["tokens"]["per_answer"] == MESSAGES_EACH
    assert result.streaming["ttft_s"]["p50"] == pytest.approx(FIRST_S, abs=0.015)
    assert result.streaming["gap_s"]["p50"] == pytest.approx(GAP_S, abs=0.008)
    assert checks["load.answers"].outcome is Outcome.PASSED


async def test_failures_within_a_stream_are_errors(reference: Reference) -> None:
    async with decoder(fails_within=True) as address:
        result, _ = await run(reference, address)
    assert result.errors == result.requests == 30
    assert result.errors_by_class == {"grpc_status": 30}


async def test_answers_to_others_are_found(reference: Reference) -> None:
    async with decoder(wrong_id=True) as address:
        result, checks = await run(reference, address)
    assert result.errors_by_class["wrong_answer"] >= 5
    assert checks["load.answers"].outcome is Outcome.FAILED
    assert "expected id" in checks["load.answers"].observed
