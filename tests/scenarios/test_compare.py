"""Comparisons of servers whose difference is known, and of run directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from harness.base.errors import MeasurementError, ScenarioError
from harness.results.records import (
    CheckResult,
    Comparison,
    Level,
    Measurement,
    Outcome,
    ParityResult,
    Record,
    SampleBatch,
    Series,
)
from harness.results.runstore import RunStore, read_run
from harness.results.slo import parse_slo
from harness.target.endpoint import Endpoint
from harness.target.protocol.tensors import TensorSpec, example_tensor
from reports.tables import service_rows
from runtimes.catalog import build_model
from scenarios.file.reading import load_scenario
from scenarios.suites.compare.blocks import Blocks
from scenarios.suites.compare.contenders import Comparing, Contender, Stage, Taken
from scenarios.suites.compare.suite import Suite, compare
from scenarios.suites.shared.stage import Plan
from scenarios.suites.shared.stage.beforehand import encode
from tests.helpers import Reference, free_port, reference_server, scripted_server, servecert
from tests.records import check, load_result
from tests.scenarios.test_verdicts import one_at_a_time, server

WANTED = Comparing(rounds=6, metrics=("p50", "p90"), margin=0.10, confidence=0.95, fail_on=("slower",), seed=3)
PLAN = Plan("compare", 0.4, rate_per_s=80, arrivals="constant", warmup_s=0.1)


@contextmanager
def servers(*work_ms: int) -> Iterator[list[Reference]]:
    """Reference servers that take so long for each request."""
    artifacts = build_model("identity").artifacts
    with ExitStack() as stack:
        yield [stack.enter_context(reference_server(artifacts, arguments=["--work-ms", str(ms)])) for ms in work_ms]


def contenders(found: list[Reference], plan: Plan = PLAN) -> list[Contender]:
    names = ["base", *(f"other{place}" for place in range(1, len(found)))]
    golden = build_model("identity").golden
    return [
        Contender(
            name, Endpoint(name, "reference", server.url, server.model, grpc_address=server.grpc, golden=golden), plan
        )
        for name, server in zip(names, found, strict=True)
    ]


async def records_of(chosen: list[Contender], wanted: Comparing = WANTED) -> list[Record]:
    return [record async for record in compare(chosen, wanted, "step", lambda text: None, lambda text: None)]


def by_metric(records: list[Record]) -> dict[str, Comparison]:
    return {item.metric: item for item in records if isinstance(item, Comparison)}


def outcomes(records: list[Record]) -> dict[str, Outcome]:
    return {item.id: item.outcome for item in records if isinstance(item, CheckResult)}


async def test_a_slower_server_is_found_and_fails_the_run() -> None:
    with servers(4, 6) as found:
        records = await records_of(contenders(found))
    slower = by_metric(records)["p50"]
    assert slower.verdict == "slower"
    assert 1.2 < slower.ratio < 1.7
    assert slower.low > 1.1
    assert slower.confidence == pytest.approx(0.975), "two metrics"
    judged = outcomes(records)
    assert judged["compare.other1.p50"] is Outcome.FAILED
    assert judged["compare.answers"] is Outcome.PASSED
    assert judged["compare.other1.errors"] is Outcome.PASSED
    assert judged["compare.other1.parity"] is Outcome.PASSED, "they give the same numbers"
    assert all(item.within for item in records if isinstance(item, ParityResult))
    batches = [item for item in records if isinstance(item, SampleBatch)]
    assert len(batches) == 12
    assert len({batch.step for batch in batches}) == 12, "each block's samples are kept"
    series = next(item for item in records if isinstance(item, Series))
    assert sorted(series.columns["variant"]) == [0.0] * 6 + [1.0] * 6

    # The figure again, from the samples.
    def median_of(name: str) -> float:
        latencies = [np.sort(item.latency_s) for item in batches if item.step.endswith(name)]
        return float(np.median([ordered[int(np.ceil(0.5 * ordered.size)) - 1] for ordered in latencies]))

    assert slower.baseline_value == pytest.approx(median_of("base"))
    assert slower.variant_value == pytest.approx(median_of("other1"))


async def test_protocols_of_one_server() -> None:
    plan = replace(PLAN, rate_per_s=None, concurrency=1)
    with servers(1) as (server,):
        base, other = contenders([server, server], plan)
        wanted = replace(WANTED, metrics=("p50", "throughput"), fail_on=())
        records = await records_of([base, replace(other, plan=replace(plan, protocol="grpc"))], wanted)
    compared = by_metric(records)
    assert set(compared) == {"p50", "throughput"}
    faster = compared["throughput"].ratio > 1
    assert faster == (compared["p50"].ratio < 1), "a closed loop of one client: one is the other's inverse"
    assert outcomes(records)["compare.other1.p50"] is Outcome.SKIPPED, "nothing was asked of it"


async def test_the_highest_rate_and_what_requests_cost() -> None:
    """A server that takes one request at a time, and 8 ms longer for it, bears less. Over one connection its clients
    would be the limit, and more of them are opened."""
    plan = replace(
        PLAN, rate_per_s=40, duration_s=0.5, warmup_s=0.0, connections=1, objectives=(parse_slo("p90 < 100ms"),)
    )
    wanted = replace(WANTED, metrics=("capacity", "cost"), tolerance=0.3)
    payload = (example_tensor(TensorSpec("x", "FP32", (1, 2))),)
    blocks = []
    for name, seconds in (("fast", 0.004), ("slow", 0.012)):
        with scripted_server(server(one_at_a_time(seconds))) as port:
            endpoint = Endpoint(name, "r", f"http://127.0.0.1:{port}", "m", payload=payload)
            contender = Contender(name, endpoint, plan, price_per_hour=3.6)
            taken = Taken(await encode(endpoint, plan))
            present = await Stage().enter(contender)
            blocks.append(await Blocks(wanted, "step", 1, print).take(1, 0, contender, present, taken))
    fast, slow = blocks
    assert 60 < fast.values["capacity"] < 260, "250/s is all that 4 ms leave"
    assert slow.values["capacity"] < 0.8 * fast.values["capacity"]
    for block in blocks:
        assert block.values["cost"] == pytest.approx(3.6 / 3600 / block.values["capacity"] * 1e6)
        assert set(block.values) == {"capacity", "cost"}
        assert len(block.batches) >= 3
        assert block.failed == 0, "what fails at too high a rate counts for nothing"
        assert not block.wrong


async def test_differences_in_numbers_and_requirements_are_named() -> None:
    artifacts = build_model("identity").artifacts
    wanted = replace(WANTED, conformance=("rest",), metrics=("p50",), fail_on=("parity",))
    with servers(0) as (server,), reference_server(artifacts, mutant="one_element_is_slightly_off") as liar:
        records = await records_of(contenders([server, liar]), wanted)
    judged = {item.id: item for item in records if isinstance(item, CheckResult) and item.suite == "compare"}
    parity = judged["compare.other1.parity"]
    assert parity.fails_run, "that was asked for"
    assert judged["compare.answers"].outcome is Outcome.FAILED, "a variant that lies is no faster"
    assert "outputs differ" in parity.observed
    results = [item for item in records if isinstance(item, ParityResult)]
    assert {item.comparison for item in results} == {"beside base"}
    assert [item.within for item in results].count(False) >= 1
    conformance = judged["compare.other1.conformance"]
    assert (conformance.outcome, conformance.level) == (Outcome.FAILED, Level.SHOULD), (
        "reported, nothing more was asked"
    )
    assert "3 worse (rest.datatypes.fp32, " in conformance.observed
    checked = {item.service for item in records if isinstance(item, CheckResult) and item.suite == "conformance"}
    assert checked == {"base", "other1"}


def test_one_at_a_time_on_a_cluster(tmp_path: Path) -> None:
    """Deployed anew for each block: never two at once, and how long that takes is compared too."""
    step = {
        "against": [{"service": "slow"}],
        "deploy": "in_turn",
        "metrics": ["p50", "cold_start", "cpu", "memory"],
        "duration": "300ms",
    }
    out = tmp_path / "run"
    path = scenario(tmp_path, step)
    data = yaml.safe_load(path.read_text())
    data["services"]["slow"]["faults"] = ["slow-load=500ms"]
    path.write_text(yaml.safe_dump(data))
    result = servecert("run", str(path), "--out", str(out))
    assert result.returncode == 0, result.stderr
    run = read_run(out)
    compared = {item.metric: item for item in run.comparisons}
    assert compared["p50"].verdict == "slower"
    cold = compared["cold_start"]
    assert cold.verdict == "slower"
    assert cold.variant_value - cold.baseline_value == pytest.approx(0.5, abs=0.3)
    assert 20 << 20 < compared["memory"].baseline_value < 1 << 30
    assert compared["memory"].ratio == pytest.approx(1, abs=0.2), "the same program"
    assert 1e-4 < compared["cpu"].baseline_value < 0.05
    summary = (out / "summary.md").read_text()
    assert "cold start" in summary
    assert "CPU a request" in summary
    rows = {row.name: row for row in service_rows(run)}
    assert rows["slow"].load.total > 0
    assert rows["fast"].ready != "–"
    beside = yaml.safe_load(path.read_text())
    beside["steps"].append({"suite": "load", "service": "slow", "rate": "1/s", "duration": "1s"})
    path.write_text(yaml.safe_dump(beside))
    with pytest.raises(ScenarioError, match="deployed in turn by a comparison"):
        load_scenario(path)


def test_a_metric_that_nothing_gave_is_an_error() -> None:
    """CPU comes from pods, and these servers are none."""
    there = Endpoint("svc", "reference", "http://127.0.0.1:1", "m")
    chosen = [Contender(name, there, PLAN) for name in ("base", "other")]
    suite = Suite(chosen, replace(WANTED, metrics=("p50", "cpu")), "step", print, print)
    taken = [Taken(values={"p50": [0.01] * 6}) for _ in chosen]
    with pytest.raises(MeasurementError, match="cpu was asked for, and nothing gave it"):
        suite.judged(taken)


async def test_a_server_that_is_gone_is_no_comparison() -> None:
    with servers(2) as (server,):
        gone = Endpoint("gone", "r", f"http://127.0.0.1:{free_port()}", server.model)
        with pytest.raises(Exception, match=r"ConnectError|does not answer"):
            await records_of([contenders([server])[0], Contender("gone", gone, PLAN)])


def scenario(tmp_path: Path, step: dict[str, Any]) -> Path:
    data = {
        "name": "two",
        "services": {
            "fast": {"runtime": "reference", "model": "identity", "predictor": {"model": {"args": ["--work-ms", "3"]}}},
            "slow": {"runtime": "reference", "model": "identity", "predictor": {"model": {"args": ["--work-ms", "6"]}}},
        },
        "steps": [
            {
                "suite": "compare",
                "service": "fast",
                "rate": "60/s",
                "duration": "400ms",
                "warmup": "100ms",
                "rounds": 6,
                **step,
            }
        ],
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_scenario_and_its_reports_and_two_runs_beside_each_other(tmp_path: Path) -> None:
    out = tmp_path / "run"
    step = {"against": [{"service": "slow"}], "fail_on": ["slower"], "metrics": ["p50"]}
    result = servecert("run", str(scenario(tmp_path, step)), "--out", str(out), "--json", "-")
    assert result.returncode == 1, result.stderr
    (found,) = json.loads(result.stdout)["comparisons"]
    assert found["verdict"] == "slower"
    assert "slow beside fast, p50:" in result.stderr
    summary = (out / "summary.md").read_text()
    assert "## slow beside fast: slower in p50" in summary
    report = (out / "report.html").read_text()
    assert "slow beside fast: slower in p50" in report
    assert "Ratios with their intervals" in report
    assert read_run(out).comparisons[0].blocks == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"against": [{"service": "none"}]}, "no service 'none'"),
        ({"against": []}, "at least 1"),
        ({"against": [{"name": "x"}]}, "another 'service'"),
        ({"against": [{"service": "slow"}], "rounds": 5}, "greater than or equal to 6"),
        ({"against": [{"service": "slow"}], "margin": "120%"}, "a share such as 5%"),
        ({"against": [{"service": "slow"}], "metrics": ["throughput"]}, "needs 'concurrency'"),
        ({"against": [{"service": "slow"}], "slo": ["p99 < 1s"]}, "goes with 'metrics: .capacity.'"),
        ({"against": [{"service": "slow"}], "metrics": ["capacity"]}, "expected both or none"),
        (
            {"against": [{"service": "slow"}], "metrics": ["capacity", "p50"], "slo": ["p99 < 1s"]},
            "leave it out beside 'capacity'",
        ),
        ({"against": [{"service": "slow"}], "metrics": ["cold_start"]}, "needs 'deploy: in_turn'"),
        ({"against": [{"service": "slow"}], "metrics": ["p50", "cost"]}, "'price_per_hour' goes with"),
        ({"against": [{"service": "slow"}], "metrics": ["cost"], "price_per_hour": 2}, "needs 'concurrency'"),
        ({"against": [{"protocol": "grpc"}], "deploy": "in_turn"}, "needs another 'service'"),
    ],
)
def test_mistakes(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        load_scenario(scenario(tmp_path, change))


def load_run(
    out: Path, level_s: float, seed: int, failed: bool = False, errors: int = 0, name: str = "1", **fields: Any
) -> str:
    """A run with one stage of load, whose latencies are drawn; so many of its 1000 requests fail, at once."""
    generator = np.random.default_rng(seed)
    due = np.arange(0, 10**10, 10**7, dtype=np.int64)
    latency = (generator.lognormal(0, 0.2, due.size) * level_s * 1e9).astype(np.int64)
    zeros = np.zeros(due.size, dtype=np.int32)
    wrong = generator.permutation(due.size) < errors
    latency[wrong] = 10**6
    store = RunStore(out, "run", seed=1)
    done = due + latency
    columns = {"due_ns": due, "dispatched_ns": due, "sent_ns": due, "first_byte_ns": done, "done_ns": done}
    rest = {"status": zeros + 200, "bytes": zeros.astype(np.int64), "error": wrong.astype(np.int16)}
    store.add(SampleBatch("svc", name, **columns, **rest, error_classes=("", "http_503")))
    store.add(load_result(errors=errors, step=name, samples=store.samples_name("svc", name), **fields))
    store.add(check("rest.infer.outputs", outcome=Outcome.FAILED if failed else Outcome.PASSED))
    store.finish(0)
    store.close()
    return str(out)


def test_one_run_a_side_describes_and_does_not_judge(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a", "b", "c")]
    for seed, (name, level_s, failed) in enumerate(zip(names, (0.01, 0.013, 0.01), (False, True, False), strict=True)):
        load_run(Path(name), level_s, seed, failed)
    result = servecert("compare", *names, "--margin", "10%", "--json", "-")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    p50 = {item["variant"]: item for item in data["comparisons"] if item["metric"] == "p50"}
    assert p50[names[1]]["ratio"] == pytest.approx(1.3, rel=0.05)
    assert p50[names[1]]["low"] > 1.2, "what varied within the two runs"
    assert {item["verdict"] for item in data["comparisons"]} == {"descriptive"}
    assert p50[names[1]]["paired"] is False
    assert [item["more"] for item in data["errors"]] == [False, False]
    assert data["not_compared"] == []
    assert [item["worse"] for item in data["checks"][names[1]]] == [True]
    assert data["checks"][names[2]] == []
    for other in names[1:]:
        gate = servecert("compare", names[0], other, "--fail-on", "slower", "--markdown", str(tmp_path / "c.md"))
        assert gate.returncode == 1
        assert "descriptive in p50" in gate.stdout
        assert "one run a side: the figures describe these runs" in gate.stdout
        assert "servecert compare A1 A2 A3 -- B1 B2 B3" in gate.stderr
        assert (tmp_path / "c.md").read_text() == gate.stdout
    assert "worse: rest.infer.outputs of svc: passed, now failed" in servecert("compare", *names[:2]).stdout
    assert servecert("compare", names[0], names[2], "--fail-on", "checks").returncode == 0
    assert servecert("compare", names[0], names[1], "--fail-on", "checks").returncode == 1
    nothing = servecert("compare", names[0], str(tmp_path))
    assert nothing.returncode == 3
    assert "is not a run directory" in nothing.stderr


def test_a_server_that_fails_fast_is_no_faster(tmp_path: Path) -> None:
    """Failed requests are compared first, and are infinitely late in the percentiles."""
    sound, failing = load_run(tmp_path / "a", 0.01, 1), load_run(tmp_path / "b", 0.01, 2, errors=300)
    result = servecert("compare", sound, failing, "--fail-on", "slower")
    assert result.returncode == 1
    assert result.stdout.startswith("## Failed requests: more on the side of the variant in 1 of 1 stages")
    assert "30.00% (300 of 1000)" in result.stdout
    p99 = next(line for line in result.stdout.splitlines() if line.startswith("| p99"))
    assert [cell.strip() for cell in p99.strip("|").split("|")][2:] == ["failed", "–", "descriptive"]
    assert servecert("compare", failing, sound).stdout.startswith("## Failed requests: no more")


def test_several_runs_a_side(tmp_path: Path) -> None:
    """The spread is that between runs, of which requests within a run know nothing."""
    generator = np.random.default_rng(4)

    def side(name: str, level_s: float, spread: float, count: int = 3, **fields: Any) -> list[str]:
        levels = level_s * np.exp(generator.normal(0, spread, count))
        return [
            load_run(tmp_path / f"{name}{n}", float(level), int(generator.integers(1 << 30)), **fields)
            for n, level in enumerate(levels)
        ]

    a, same, slow = side("a", 0.01, 0.01), side("b", 0.01, 0.01), side("c", 0.013, 0.01)
    result = servecert("compare", *a, "--", *slow, "--fail-on", "slower", "--json", "-", "--metric", "p50")
    assert result.returncode == 1, result.stderr
    (found,) = json.loads(result.stdout)["comparisons"]
    assert (found["verdict"], found["blocks"], found["replicates"]) == ("slower", 3, "runs")
    assert found["baseline"] == ", ".join(a)
    better = servecert("compare", "--fail-on", "slower", "--metric", "p50", *slow, "--", *a)
    assert better.returncode == 0, better.stderr
    assert "faster in p50" in better.stdout
    assert "3 runs a side, one value a run" in better.stdout
    noisy = servecert("compare", *same, "--", *side("d", 0.01, 0.1), "--fail-on", "slower", "--metric", "p50")
    assert noisy.returncode == 1
    assert "is undecided" in noisy.stderr
    failing = servecert("compare", *a, "--", *side("e", 0.01, 0.01, errors=20), "--fail-on", "slower")
    assert failing.returncode == 1
    assert "more on the side of the variant" in failing.stdout
    twice = servecert("compare", *a, "--", a[0], *same)
    assert twice.returncode == 2
    assert "named twice" in twice.stderr
    for wrong in ((*a, "--"), ("--", *a), (*a, "--", *same, "--", *slow)):
        assert servecert("compare", *wrong).returncode == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"valid": False, "invalid_reason": "the generator was late"}, "not valid: the generator was late"),
        ({"name": "2"}, "it was not measured here"),
        ({"offered": "200/s poisson"}, "not the same load: 100/s poisson and 200/s poisson"),
    ],
)
def test_a_stage_that_cannot_be_compared_is_named_and_no_pass(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    sides = [[load_run(tmp_path / f"{side}{n}", 0.01, n) for n in range(3)] for side in "ab"]
    odd = load_run(tmp_path / "odd", 0.01, 9, **fields)
    result = servecert("compare", *sides[0], "--", *sides[1][:2], odd, "--fail-on", "slower")
    assert result.returncode == 1
    assert "## Not compared" in result.stdout
    assert words in result.stdout
    assert words in result.stderr
    (Path(sides[1][2]) / "samples" / "1-svc.parquet").unlink()
    gone = servecert("compare", *sides[0], "--", *sides[1], "--fail-on", "slower")
    assert gone.returncode == 1
    assert "the samples of the stage are missing" in gone.stderr


def cold_run(out: Path, level_s: float, capacity: float, unfinished: int = 0) -> str:
    drawn = np.random.default_rng(int(100 * level_s)).normal(level_s, 0.02, (8, 2)) / 2
    drawn[:unfinished, 1] = np.nan
    store = RunStore(out, "run", seed=1)
    store.add(Series("cold-start", "svc", "1", {"created": drawn[:, 0].tolist(), "ready": drawn[:, 1].tolist()}))
    store.add(Measurement("capacity", capacity, "1/s", 9, "svc", "2"))
    store.finish(0)
    store.close()
    return str(out)


def test_cold_starts_and_capacities_of_run_directories(tmp_path: Path) -> None:
    one, other = cold_run(tmp_path / "a", 1.0, 200.0), cold_run(tmp_path / "b", 1.5, 150.0)
    result = servecert("compare", one, other, "--json", "-")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    found = {item["metric"]: item for item in data["comparisons"]}
    assert found["cold_start"]["ratio"] == pytest.approx(1.5, rel=0.05)
    assert found["cold_start"]["verdict"] == found["capacity"]["verdict"] == "descriptive"
    assert data["measured_once"][other] == [
        {"service": "svc", "step": "2", "metric": "capacity", "was": 200.0, "now": 150.0}
    ]
    a = [cold_run(tmp_path / f"a{n}", 1.0 + n / 100, 200.0 + n) for n in range(3)]
    b = [cold_run(tmp_path / f"b{n}", 1.5 + n / 100, 150.0 + n) for n in range(3)]
    several = servecert("compare", *a, "--", *b, "--json", "-")
    verdicts = {item["metric"]: item["verdict"] for item in json.loads(several.stdout)["comparisons"]}
    assert verdicts == {"cold_start": "slower", "capacity": "slower"}
    worst = [cold_run(tmp_path / f"c{n}", 1.0 + n / 100, 200.0 + n, unfinished=5) for n in range(3)]
    stuck = servecert("compare", *a, "--", *worst, "--metric", "cold_start", "--fail-on", "slower")
    assert stuck.returncode == 1, "trials that never ended are not left out"
    assert "failed" in stuck.stdout


def test_two_runs_that_have_nothing_in_common_are_not_equal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store = RunStore(tmp_path / name, name, seed=1)
        store.finish(0)
        store.close()
    result = servecert("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert result.returncode == 1
    assert "nothing in common" in result.stderr


def test_errors_under_another_load_are_not_compared(tmp_path: Path) -> None:
    one = load_run(tmp_path / "a", 0.01, 1)
    other = load_run(tmp_path / "b", 0.01, 2, errors=300, offered="200/s poisson")
    data = json.loads(servecert("compare", one, other, "--json", "-").stdout)
    assert data["errors"] == []
    assert "not the same load" in data["not_compared"][0]["reason"]
