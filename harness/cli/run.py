"""``servecert run`` and the commands for one server: conformance, parity, load, capacity, worker, report, schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console

from harness.base.errors import EXIT_INTERRUPTED, UsageError
from harness.base.tls import Tls
from harness.cli.fields import parameters, validated, with_options
from harness.cli.options import Json, Junit
from harness.cli.output import emit_json
from harness.cli.session import Output, execute
from harness.load.distributed import Address
from harness.results.observer import Observer
from harness.results.records import Deviation
from harness.results.runstore import RunStore, read_run
from harness.results.verdict import judge
from harness.target.endpoint import Endpoint, check_url
from harness.target.golden import read_json_object, read_payload
from reports.terminal import print_verdict
from reports.write import write_reports
from runtimes.catalog import read_baseline
from scenarios.engine.steps import run_step
from scenarios.file.reading import find_scenario, json_schema, load_scenario
from scenarios.file.scenario import Scenario
from scenarios.model.steps import Step
from scenarios.suites import suites
from scenarios.suites.shared.suite import Target

app = typer.Typer()

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="keep the run directory, with its report, here")]
Url = Annotated[str, typer.Argument(metavar="URL", help="where the server is, such as http://127.0.0.1:8080")]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="the model's name on the server")]
Grpc = Annotated[
    str, typer.Option("--grpc", metavar="HOST:PORT", help="where the server speaks gRPC; grpcs://HOST:PORT with TLS")
]
Ca = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="certificates (PEM) to trust with https and grpcs")
]
Host = Annotated[str, typer.Option("--host", help="the host name to ask for, where the URL is an ingress")]
Payload = Annotated[Path | None, typer.Option("--payload", metavar="FILE", help="a v2 inference request to send")]
Golden = Annotated[Path | None, typer.Option("--golden", metavar="FILE", help="golden cases (.npz) to send")]


@app.command()
def run(
    scenarios: Annotated[
        list[str], typer.Argument(metavar="SCENARIO…", help="scenario files, or names in the catalog")
    ],
    provider: Annotated[str, typer.Option(help="where to run: local, existing, …; overrides the scenario")] = "",
    out: Out = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field, such as steps.0.rate=50/s")
    ] = None,
    json: Json = "",
    junit: Junit = None,
    quiet: Quiet = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print what would be done")] = False,
) -> None:
    """Runs scenarios, from start to report."""
    changes = list(settings or [])
    if provider:
        changes.append(f"cluster.provider={provider}")
    loaded = [load_scenario(find_scenario(name), changes) for name in scenarios]
    if len(loaded) > 1 and (json or junit):
        raise UsageError("--json and --junit take one scenario; each run directory has results.json and junit.xml")
    if dry_run:
        for scenario in loaded:
            _print_scenario(scenario)
        return
    worst = 0
    for scenario in loaded:
        from scenarios.engine.engine import default_directory

        directory = default_directory(scenario.name) if out is None else out
        if out is not None and len(loaded) > 1:
            directory = out / scenario.name
        worst = max(worst, _run_one(scenario, Output(directory, json, junit, quiet)))
        if worst == EXIT_INTERRUPTED:
            break
    raise typer.Exit(worst)


def _print_scenario(scenario: Scenario) -> None:
    """Cluster, manifests and steps, as they would be."""
    from harness.cli.cluster import print_plan
    from scenarios.engine.deployment import planned_manifests

    print(f"# {scenario.name}")
    print_plan(scenario.cluster)
    print(f"\n# to deploy in namespace {scenario.namespace}:")
    for manifest in planned_manifests(scenario):
        print(f"---\n{yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True).rstrip()}")
    print("\n# to carry out:")
    for index, step in enumerate(scenario.steps):
        print(f"# {index + 1}. {step.suite} on {step.service}")


def _run_one(scenario: Scenario, output: Output) -> int:
    async def work(store: RunStore, observer: Observer) -> None:
        from scenarios.engine.engine import Engine

        await Engine(scenario, store, observer).run()

    return execute(scenario.name, scenario.seed, work, output)


def _endpoint(
    url: str,
    model: str,
    grpc: str,
    host: str,
    payload: Path | None,
    golden: Path | None,
    ca: Path | None,
    deviations: dict[str, Deviation] | None = None,
) -> Endpoint:
    address = grpc.removeprefix("grpcs://")
    if address:
        name, _, port = address.rpartition(":")
        if not name or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"--grpc {address!r}: expected HOST:PORT, such as 127.0.0.1:8081, or grpcs://HOST:PORT")
    if not model:
        raise UsageError("--model: expected the model's name on the server")
    if payload is not None and golden is not None:
        raise UsageError("give either --payload or --golden")
    checked = check_url(url)
    return Endpoint(
        service=model,
        runtime=checked,
        url=checked,
        model=model,
        host=host,
        grpc_address=address,
        tls=Tls(ca) if ca else None,
        grpc_tls=grpc.startswith("grpcs://"),
        golden=golden,
        payload=tuple(read_payload(payload)) if payload else (),
        deviations=deviations or {},
    )


def _run_step(step: Step, endpoint: Endpoint, seed: int, output: Output) -> NoReturn:
    name = step.suite

    async def work(store: RunStore, observer: Observer) -> None:
        store.info["kind"] = step.suite
        store.info["services"][endpoint.service] = {"runtime": endpoint.runtime, "model": endpoint.model}
        store.info["steps"] = [{"name": name, "suite": step.suite, "service": endpoint.service, "state": "running"}]
        store.save_info()
        observer.phase(f"{step.suite} on {endpoint.url}")
        await run_step(step, name, Target(endpoint), seed, store, observer)
        store.info["steps"][0]["state"] = "done"

    raise typer.Exit(execute(f"{step.suite} of {endpoint.model}", seed, work, output))


def _step(suite: str, texts: Mapping[str, object]) -> Any:
    """A step of a suite on the one server that there is. Raises UsageError that names the option."""
    return validated(suites()[suite].step, texts, {"suite": suite, "service": "target"})


def conformance(
    url: Url,
    model: Model,
    grpc: Grpc = "",
    host: Host = "",
    payload: Payload = None,
    golden: Golden = None,
    ca: Ca = None,
    baseline: Annotated[Path | None, typer.Option(metavar="FILE", help="known deviations (YAML), with reasons")] = None,
    out: Out = None,
    json: Json = "",
    junit: Junit = None,
    seed: Seed = 1,
    quiet: Quiet = False,
    **texts: Any,
) -> None:
    """Checks a running server against the protocol."""
    endpoint = _endpoint(url, model, grpc, host, payload, golden, ca, read_baseline(baseline) if baseline else None)
    texts["profiles"] = texts["profiles"] or ["rest", *(["grpc"] if grpc else [])]
    if "grpc" in texts["profiles"] and not grpc:
        raise UsageError("--profile grpc needs --grpc HOST:PORT")
    _run_step(_step("conformance", texts), endpoint, seed, Output(out, json, junit, quiet))


def parity(
    url: Url,
    model: Model,
    golden: Annotated[Path, typer.Option(metavar="FILE", help="golden cases (.npz)")],
    grpc: Grpc = "",
    host: Host = "",
    ca: Ca = None,
    out: Out = None,
    json: Json = "",
    junit: Junit = None,
    quiet: Quiet = False,
    **texts: Any,
) -> None:
    """Compares a running server with golden outputs."""
    endpoint = _endpoint(url, model, grpc, host, None, golden, ca)
    _run_step(_step("parity", texts), endpoint, 1, Output(out, json, junit, quiet))


Seed = Annotated[int, typer.Option(metavar="N", help="of everything that is drawn at random")]
Payloads = Annotated[
    list[str] | None,
    typer.Option("--payload", metavar="FILE[:WEIGHT]", help="a v2 inference request to send; several are mixed"),
]


def _load_endpoint(
    url: str,
    model: str,
    grpc: str,
    host: str,
    payloads: list[str] | None,
    golden: Path | None,
    ca: Path | None,
    protocol: str,
) -> Endpoint:
    endpoint = _endpoint(url, model, grpc, host, None, golden, ca)
    if protocol == "openai":
        return replace(endpoint, chat=tuple(read_json_object(Path(text)) for text in payloads or []))
    if payloads and golden is not None:
        raise UsageError("give either --payload or --golden")
    mix = []
    for text in payloads or []:
        name, separator, weight = text.rpartition(":")
        try:
            share = float(weight) if separator and not Path(text).exists() else 1.0
        except ValueError:
            name, separator, share = text, "", 1.0
        if not share > 0:
            raise UsageError(f"--payload {text!r}: expected a weight above 0")
        path = Path(name if separator and not Path(text).exists() else text)
        mix.append((tuple(read_payload(path)), share))
    return replace(endpoint, mix=tuple(mix))


def _traffic(suite: str, help_: str, defaults: dict[str, str]) -> Callable[..., None]:
    """The command of a suite that sends load."""

    def command(
        url: Url,
        model: Model,
        seed: Seed = 1,
        grpc: Grpc = "",
        host: Host = "",
        payload: Payloads = None,
        golden: Golden = None,
        ca: Ca = None,
        out: Out = None,
        json: Json = "",
        junit: Junit = None,
        quiet: Quiet = False,
        **texts: Any,
    ) -> None:
        said = {name: text for name, text in texts.items() if text is not None}
        step = _step(suite, defaults | said)
        endpoint = _load_endpoint(url, model, grpc, host, payload, golden, ca, step.protocol)
        _run_step(step, endpoint, seed, Output(out, json, junit, quiet))

    command.__doc__ = help_
    return command


LOAD = """Sends load to a running server.

Latency counts from the moment a request was due, so that a server that stands still cannot hide it.
"""
CAPACITY = "Searches the highest rate that meets the objectives."
TRIAL = {"duration": "5s"}
"""Of a capacity's trial, where the command line does not say it."""
for _suite, _command, _defaults in (
    ("conformance", conformance, {"profiles": "rest, and grpc with --grpc"}),
    ("parity", parity, {}),
    ("load", _traffic("load", LOAD, {}), {}),
    ("capacity", _traffic("capacity", CAPACITY, TRIAL), TRIAL),
):
    _own = parameters(suites()[_suite].step, ("suite", "service", "name"), _defaults)
    app.command(_suite)(with_options(_command, _own))


@app.command()
def worker(
    master: Annotated[str, typer.Argument(metavar="URL", help="locust://HOST:PORT, where the load is commanded")],
    once: Annotated[bool, typer.Option(help="end with the first master; otherwise wait for the next one")] = False,
) -> None:
    """Sends load for a servecert on another machine, as a Locust worker."""
    from harness.load.distributed.serve import serve

    try:
        address = Address.parse(master)
    except ValueError as error:
        raise UsageError(str(error)) from error
    raise typer.Exit(serve(address, once))


class Schema(StrEnum):
    SCENARIO = "scenario"
    RESULTS = "results"


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")],
    json: Json = "",
    quiet: Quiet = False,
) -> None:
    """Writes the reports of a run directory anew."""
    verdict = write_reports(directory)
    run_read = read_run(directory)
    if json:
        from reports.results import results

        emit_json(json, results(run_read, judge(run_read)))
    if not quiet:
        console = Console(stderr=True, soft_wrap=True)
        print_verdict(console, run_read, verdict)
        console.print(f"report: {directory / 'report.html'}", highlight=False)
    raise typer.Exit(verdict.exit_code)


@app.command()
def schema(
    of: Annotated[Schema, typer.Argument(metavar="[scenario|results]", help="which one")] = Schema.SCENARIO,
) -> None:
    """Prints a JSON schema: of scenario files, or of results.json."""
    if of is Schema.RESULTS:
        from reports.results_schema import results_schema

        emit_json("-", results_schema())
    else:
        emit_json("-", json_schema())
