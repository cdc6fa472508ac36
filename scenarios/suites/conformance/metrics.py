"""metrics: what a server says of itself to Prometheus."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from harness.target.protocol.rest import RestAnswer
from scenarios.suites.conformance.checks import MUST, SHOULD, CheckFailed, Skip, expect
from scenarios.suites.conformance.sources import PROMETHEUS, check
from scenarios.suites.conformance.target import Target, eventually, payload

REQUESTS = 7
SETTLE_S = 3.0
"""Some servers count a request a moment after they have answered it."""
Key = tuple[str, tuple[tuple[str, str], ...]]


async def scrape(target: Target) -> RestAnswer:
    answer = await target.rest.request("GET", target.metrics_path, headers={"Accept": "text/plain; version=0.0.4"})
    if answer.status == 404:
        raise Skip(f"{target.metrics_path} is not served here (404); give --metrics PATH where it is")
    expect(answer.status, "status").equals(200)
    return answer


async def families(target: Target) -> list[Any]:
    text = (await scrape(target)).content.decode("utf-8")
    try:
        return list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError) as error:
        raise CheckFailed("text in the Prometheus exposition format", f"a line that is not: {error}") from error


def samples(found: list[Any], *kinds: str) -> Iterator[tuple[Key, float, str]]:
    for family in found:
        if family.type in kinds:
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    yield (sample.name, tuple(sorted(sample.labels.items()))), sample.value, family.name


def counters(found: list[Any]) -> dict[Key, float]:
    """Everything that may only rise."""
    rising = {key: value for key, value, _ in samples(found, "counter")}
    for key, value, _ in samples(found, "histogram", "summary"):
        if key[0].endswith(("_count", "_bucket")):
            rising[key] = value
    return rising


@check("metrics.text.status", level=MUST, source=PROMETHEUS.format)
async def status(target: Target) -> None:
    """The metrics page is answered 200 and holds at least one sample."""
    found = await families(target)
    expect(sum(len(family.samples) for family in found), "samples").satisfies(lambda value: value > 0, "one or more")


@check("metrics.text.content_type", level=SHOULD, source=PROMETHEUS.format)
async def content_type(target: Target) -> None:
    """The metrics page comes as text/plain or as OpenMetrics."""
    expect((await scrape(target)).content_type, "content type").is_one_of(
        ["text/plain", "application/openmetrics-text"]
    )


@check("metrics.text.newline", level=MUST, source=PROMETHEUS.format)
async def newline(target: Target) -> None:
    """The last line of the page ends with a line feed."""
    expect((await scrape(target)).content[-1:], "last byte").equals(b"\n")


@check("metrics.text.types", level=SHOULD, source=PROMETHEUS.format)
async def types(target: Target) -> None:
    """Every metric has a # TYPE line."""
    untyped = [family.name for family in await families(target) if family.type in ("unknown", "untyped")]
    expect(untyped, "metrics without a type").equals([])


@check("metrics.text.unique", level=MUST, source=PROMETHEUS.format)
async def unique(target: Target) -> None:
    """No sample (name and labels) occurs twice on the page."""
    seen: set[Key] = set()
    for family in await families(target):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if key in seen:
                raise CheckFailed("each sample once", f"{sample.name}{sample.labels} twice")
            seen.add(key)


@check("metrics.counters.never_fall", level=MUST, source=PROMETHEUS.types, needs=[payload])
async def never_fall(target: Target) -> None:
    """Counters do not fall from one look to the next."""
    before = counters(await families(target))
    if not before:
        raise Skip("the page has no counters")
    for _ in range(3):
        await target.rest.infer_raw(target.body())
    after = counters(await families(target))
    for key, value in before.items():
        if key in after and after[key] < value:
            raise CheckFailed(f"{key[0]}{dict(key[1])} at least {value:g}", f"{after[key]:g}")


@check("metrics.counters.count_requests", level=MUST, source=PROMETHEUS.types, needs=[payload])
async def count_requests(target: Target) -> None:
    """Some counter rises by exactly the requests that were sent."""
    body_of_one = target.body()
    await target.rest.infer_raw(body_of_one)  # series that begin with a first request are there then
    before = counters(await families(target))
    for _ in range(REQUESTS):
        await target.rest.infer_raw(body_of_one)
    rises: dict[Key, float] = {}

    async def counted() -> bool:
        after = counters(await families(target))
        rises.clear()
        rises.update({key: value - before.get(key, 0.0) for key, value in after.items()})
        return any(math.isclose(rise, REQUESTS) for key, rise in rises.items() if not key[0].endswith("_bucket"))

    if not await eventually(counted, SETTLE_S):
        shown = ", ".join(f"{key[0]} by {rise:g}" for key, rise in rises.items() if rise)[:300]
        raise CheckFailed(f"a counter that rose by {REQUESTS}", shown or "no counter rose at all")


@check("metrics.histograms.cumulative", level=MUST, source=PROMETHEUS.types, needs=[payload])
async def cumulative(target: Target) -> None:
    """Histogram buckets are cumulative: they do not fall with rising bounds."""
    for name, buckets in (await _histograms(target)).items():
        values = [value for _, value in sorted(buckets)]
        if any(later < earlier for earlier, later in itertools.pairwise(values)):
            raise CheckFailed(f"buckets of {name[0]} that do not fall", repr(values))


@check("metrics.histograms.count", level=MUST, source=PROMETHEUS.types, needs=[payload])
async def histogram_count(target: Target) -> None:
    """_count of a histogram equals its +Inf bucket."""
    histograms = await _histograms(target)
    totals = {
        (family, key[1]): value
        for key, value, family in samples(await families(target), "histogram")
        if key[0].endswith("_count")
    }
    for (family, labels), buckets in histograms.items():
        highest = max(buckets)
        expect(highest[0], f"the highest bound of {family}").equals(math.inf)
        if (family, labels) not in totals:
            raise CheckFailed(f"a sample {family}_count", "none")
        if totals[(family, labels)] < highest[1]:
            raise CheckFailed(f"{family}_count of at least {highest[1]:g}", f"{totals[(family, labels)]:g}")


async def _histograms(target: Target) -> dict[Key, list[tuple[float, float]]]:
    """Bounds and counts of each series' buckets."""
    await target.rest.infer_raw(target.body())
    found: dict[Key, list[tuple[float, float]]] = {}
    for (name, labels), value, family in samples(await families(target), "histogram"):
        if not name.endswith("_bucket"):
            continue
        bound = dict(labels).get("le")
        if bound is None:
            raise CheckFailed(f"a label le on each bucket of {family}", repr(dict(labels)))
        rest = tuple(item for item in labels if item[0] != "le")
        found.setdefault((family, rest), []).append((float(bound), value))
    if not found:
        raise Skip("the page has no histograms")
    return found
