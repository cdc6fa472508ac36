"""What a cold request is held against: requests to a service that is awake, one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.base.errors import MeasurementError
from harness.load.runner import run_stage
from harness.target.endpoint import Endpoint
from runtimes.catalog import BuiltModel
from scenarios.suites.cold_start.suite import cold_job
from scenarios.suites.cold_start.warm import warm_requests
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.beforehand import encode
from tests.helpers import reference_server

PLAN = Plan("warm", duration_s=1.0, concurrency=1, timeout_s=10.0, warmup_s=0.0)


async def test_warm_requests_do_not_wait_for_each_other(identity: BuiltModel) -> None:
    """A tenth of a second of work, and more requests than a server could take if they came fifty a second."""
    with reference_server(identity.artifacts, arguments=["--work-ms", "100"]) as server:
        endpoint = Endpoint("m", "reference", server.url, server.model)
        warm = await warm_requests(endpoint, PLAN, await encode(endpoint, PLAN), 12)
    assert (len(warm.latency_s), warm.sent, warm.errors) == (12, 12, "")
    assert 0.1 <= float(np.median(warm.latency_s)) < 0.2


async def test_wrong_answers_are_no_warm_requests(identity: BuiltModel) -> None:
    with reference_server(identity.artifacts) as server:
        endpoint = Endpoint("m", "reference", server.url, server.model)
        encoded = await encode(endpoint, PLAN)
        of_another = encoded[1].expected
        swapped = [replace(item, expected=of_another) for item in encoded]
        warm = await warm_requests(endpoint, PLAN, swapped, 2 * len(encoded))
        assert warm.sent == 2 * len(encoded)
        assert len(warm.latency_s) == 2
        assert warm.errors == f"{2 * len(encoded) - 2} wrong_answer (200)"
        with pytest.raises(MeasurementError, match="none of 5 warm requests was answered rightly"):
            await warm_requests(endpoint, PLAN, swapped[:1], 5)


async def test_cold_requests_are_sent_at_once_however_many(identity: BuiltModel) -> None:
    """Each takes half a second, and a generator's usual connections would be too few for all of them."""
    with reference_server(identity.artifacts, arguments=["--work-ms", "500"]) as server:
        endpoint = Endpoint("m", "reference", server.url, server.model)
        encoded = await encode(endpoint, PLAN, 0.0)
        job = cold_job(endpoint, PLAN, encoded, 300)
        stage = await run_stage(job, [item.body for item in encoded], np.arange(300), lambda progress: None)
    columns = stage.columns
    assert columns["sent_ns"].size == 300
    assert columns["sent_ns"].max() < columns["done_ns"].min(), "the last was sent before the first had its answer"
    assert stage.limited == 0
    assert cold_job(endpoint, PLAN, encoded, 4).connections == 256
