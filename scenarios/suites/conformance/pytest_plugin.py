"""The checks as pytest tests: ``pytest --pyargs scenarios.suites.conformance --v2-url URL --v2-model NAME``.

A MUST that fails fails its test; a SHOULD or MAY that fails, and a known deviation, is an expected failure (xfail);
what cannot be checked is skipped with its reason; a deviation that no longer holds fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import ServecertError
from harness.results.records import CheckResult, Outcome
from harness.results.verdict import describe
from harness.target.endpoint import Endpoint, check_url
from harness.target.golden import read_payload
from runtimes.catalog import read_baseline
from scenarios.suites.conformance.checks import Check, run_check

PATHS = ("payload", "golden", "baseline")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("servecert", "conformance to the Open Inference Protocol")
    group.addoption("--v2-url", metavar="URL", default="", help="where the server is, such as http://127.0.0.1:8080")
    group.addoption("--v2-model", metavar="NAME", default="", help="the model's name on the server")
    group.addoption("--v2-grpc", metavar="HOST:PORT", default="", help="where the server speaks gRPC")
    group.addoption("--v2-host", metavar="NAME", default="", help="the host name to ask for, behind an ingress")
    group.addoption("--v2-profile", metavar="NAME", action="append", default=[], help="rest, grpc, binary, …")
    group.addoption("--v2-metrics", metavar="PATH", default="/metrics", help="where the metrics page is")
    group.addoption("--v2-payload", metavar="FILE", default="", help="a v2 inference request to send")
    group.addoption("--v2-golden", metavar="FILE", default="", help="golden cases (.npz) to send")
    group.addoption("--v2-baseline", metavar="FILE", default="", help="known deviations (YAML)")


def _endpoint(config: pytest.Config) -> Endpoint:
    """Raises ServecertError for a file that cannot be read or an address that is none."""
    paths = {name: config.getoption(f"--v2-{name}") for name in PATHS}
    return Endpoint(
        service=config.getoption("--v2-model"),
        runtime=config.getoption("--v2-url"),
        url=check_url(config.getoption("--v2-url")),
        model=config.getoption("--v2-model"),
        host=config.getoption("--v2-host"),
        grpc_address=config.getoption("--v2-grpc"),
        metrics_path=config.getoption("--v2-metrics"),
        payload=tuple(read_payload(Path(paths["payload"]))) if paths["payload"] else (),
        golden=Path(paths["golden"]) if paths["golden"] else None,
        deviations=read_baseline(Path(paths["baseline"])) if paths["baseline"] else {},
    )


def _profiles(config: pytest.Config) -> list[str]:
    chosen: list[str] = config.getoption("--v2-profile")
    return chosen or ["rest", *(["grpc"] if config.getoption("--v2-grpc") else [])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "v2_check" not in metafunc.fixturenames:
        return
    from scenarios.suites.conformance.suite import select

    if not metafunc.config.getoption("--v2-url"):  # no server, no tests, and no green
        raise pytest.UsageError("--v2-url: expected where the server is, such as http://127.0.0.1:8080")
    try:
        checks: list[Check] = select(_profiles(metafunc.config))
    except ServecertError as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize("v2_check", checks, ids=lambda check: check.id, scope="session")


class Bench:
    """A target, and the event loop that its connections live on."""

    def __init__(self, endpoint: Endpoint, profiles: list[str]) -> None:
        from scenarios.suites.conformance.target import open_target

        self.endpoint = endpoint
        self.runner = asyncio.Runner()
        self._opened = open_target(endpoint, use_grpc=bool(endpoint.grpc_address), asked=profiles)
        self.target = self.runner.run(self._opened.__aenter__())

    def run(self, check: Check) -> CheckResult:
        return self.runner.run(
            run_check(
                check,
                self.target,
                suite="conformance",
                service=self.endpoint.service,
                runtime=self.endpoint.runtime,
                deviations=self.endpoint.deviations,
            )
        )

    def close(self) -> None:
        with contextlib.suppress(ServecertError):
            self.runner.run(self._opened.__aexit__(None, None, None))
        self.runner.close()


@pytest.fixture(scope="session")
def v2_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    config = request.config
    if not config.getoption("--v2-model"):
        raise pytest.UsageError("--v2-model: expected the model's name on the server")
    try:
        bench = Bench(_endpoint(config), _profiles(config))
    except ServecertError as error:
        pytest.exit(str(error), returncode=3)
    yield bench
    bench.close()


def judge(result: CheckResult) -> None:
    """Ends the test as the result says."""
    lines = [describe(result), f"required: {result.requirement} ({result.level}; {result.source})"]
    for exchange in result.evidence[-2:]:
        lines += [f"request: {exchange.request}", f"answer: {exchange.status} {exchange.received[:600]}"]
    text = "\n".join(lines)
    if result.outcome is Outcome.SKIPPED:
        pytest.skip(result.reason)
    if result.fails_run:
        pytest.fail(text, pytrace=False)
    if result.outcome is Outcome.FAILED:
        pytest.xfail(f"known: {result.deviation_reason}" if result.known else f"{result.level}: {describe(result)}")


def pytest_report_header(config: pytest.Config) -> Any:
    url = config.getoption("--v2-url")
    return f"servecert: {config.getoption('--v2-model')} at {url}, {', '.join(_profiles(config))}" if url else None
