"""statistics: the statistics extension. Nobody else may ask the model meanwhile, or the counts are not ours."""

from __future__ import annotations

from typing import Any

from harness.target.protocol.rest import json_request
from scenarios.suites.conformance.checks import MUST, SHOULD, CheckFailed, expect
from scenarios.suites.conformance.rest_metadata import UNKNOWN_MODEL
from scenarios.suites.conformance.sources import STATISTICS, check
from scenarios.suites.conformance.target import Target, advertised, body_of, free_batch, payload

statistics = advertised("statistics", "statistics")
REQUESTS = 7
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


async def stats(target: Target) -> dict[str, Any]:
    """The entry of the model, all versions added up where there are several."""
    body = body_of(await target.rest.get(f"{target.rest.model_path}/stats"))
    entries = body.get("model_stats")
    if not isinstance(entries, list) or not entries:
        raise CheckFailed('a list "model_stats" that is not empty', repr(entries))
    entry: dict[str, Any] = next((item for item in entries if item.get("name") == target.model), entries[0])
    return entry


def count(entry: dict[str, Any], name: str) -> int:
    part = (entry.get("inference_stats") or {}).get(name)
    if not isinstance(part, dict) or not isinstance(part.get("count"), int):
        raise CheckFailed(f'an integer "count" in inference_stats.{name}', repr(part))
    return int(part["count"])


@check("statistics.model.status", level=MUST, source=STATISTICS.rest, needs=[statistics])
async def status(target: Target) -> None:
    """GET /v2/models/<model>/stats answers 200 with the model's statistics."""
    expect((await stats(target)).get("name"), "name").equals(target.model)


@check("statistics.model.fields", level=MUST, source=STATISTICS.rest, needs=[statistics])
async def fields(target: Target) -> None:
    """Statistics have inference_count and execution_count, and a count and nanoseconds for each kind of duration."""
    entry = await stats(target)
    for name in ("inference_count", "execution_count"):
        expect(entry.get(name), name).is_a(int, "an integer")
    for name in DURATIONS:
        part = (entry.get("inference_stats") or {}).get(name)
        expect(part, name).is_a(dict, "an object with count and ns")
        assert part is not None
        for key in ("count", "ns"):
            expect(part.get(key), f"{name}.{key}").is_a(int, "an integer")


@check("statistics.model.all", level=MUST, source=STATISTICS.rest, needs=[statistics])
async def all_models(target: Target) -> None:
    """GET /v2/models/stats lists the model among all."""
    entries = body_of(await target.rest.get("/v2/models/stats")).get("model_stats") or []
    names = [item.get("name") for item in entries]
    expect(target.model in names, f"{target.model} in {names}").is_true("the model's name among them")


@check("statistics.counts.success", level=MUST, source=STATISTICS.rest, needs=[statistics, payload])
async def successes(target: Target) -> None:
    """success.count and inference_count rise by exactly the requests that were answered."""
    before = await stats(target)
    for _ in range(REQUESTS):
        body_of(await target.rest.infer_raw(target.body()))
    after = await stats(target)
    rise = (count(after, "success") - count(before, "success"), after["inference_count"] - before["inference_count"])
    rows = max(1, target.example()[0].shape[0]) if target.free_batch and target.example()[0].shape else 1
    expect(rise, f"rise of success.count and inference_count after {REQUESTS} requests").equals(
        (REQUESTS, REQUESTS * rows)
    )


@check("statistics.counts.fail", level=MUST, source=STATISTICS.rest, needs=[statistics, payload])
async def failures(target: Target) -> None:
    """fail.count does not count requests that succeeded, and success.count not those that were refused."""
    before = await stats(target)
    for _ in range(REQUESTS):
        body_of(await target.rest.infer_raw(target.body()))
    spoilt = target.body()
    spoilt["inputs"][0]["name"] = "no-such-input-7d1f"
    refused = [(await target.rest.infer_raw(spoilt)).status >= 400 for _ in range(3)]
    after = await stats(target)
    expect(count(after, "success") - count(before, "success"), "rise of success.count").equals(
        REQUESTS + refused.count(False)
    )
    expect(count(after, "fail") - count(before, "fail"), "rise of fail.count").satisfies(
        lambda rise: 0 <= rise <= refused.count(True), f"at most the {refused.count(True)} that were refused"
    )


@check("statistics.counts.batch", level=MUST, source=STATISTICS.rest, needs=[statistics, free_batch])
async def batches(target: Target) -> None:
    """inference_count rises by the rows of a batch, or by one where the server does not take the first dimension for a
    batch; execution_count by one."""
    before = await stats(target)
    body_of(await target.rest.infer_raw(json_request(target.batch(5))))
    after = await stats(target)
    expect(after["inference_count"] - before["inference_count"], "rise of inference_count").is_one_of([5, 1])
    expect(after["execution_count"] - before["execution_count"], "rise of execution_count").equals(1)


@check("statistics.counts.duration", level=SHOULD, source=STATISTICS.rest, needs=[statistics, payload])
async def durations(target: Target) -> None:
    """success.ns rises with the requests, by no more than they took."""
    before = await stats(target)
    answers = [await target.rest.infer_raw(target.body()) for _ in range(REQUESTS)]
    after = await stats(target)
    rise = after["inference_stats"]["success"]["ns"] - before["inference_stats"]["success"]["ns"]
    taken = sum(answer.elapsed_s for answer in answers) * 1e9
    expect(rise, "rise of success.ns").satisfies(lambda ns: 0 < ns <= taken, f"above 0, at most {taken:.0f}")


@check("statistics.model.unknown", level=MUST, source=STATISTICS.rest, needs=[statistics])
async def unknown(target: Target) -> None:
    """Statistics of an unknown model are refused with 4xx."""
    answer = await target.rest.get(f"{UNKNOWN_MODEL}/stats")
    expect(answer.status, "status").satisfies(lambda value: 400 <= value < 500, "4xx")
