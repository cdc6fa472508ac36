"""``servecert runtimes`` and ``servecert checks``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.local.kubelet import podshim
from harness.base.errors import UsageError
from harness.cli.options import Json
from harness.cli.output import emit_json
from runtimes.catalog import build_model, find_runtime, model_specs, runtime_specs
from runtimes.environments import cache_directory, unwritable

SHIM = Path(podshim.__file__)

runtimes_app = typer.Typer(help="The reference runtimes.", no_args_is_help=True)
checks_app = typer.Typer(help="The checks of the conformance suite.", no_args_is_help=True)


@runtimes_app.command("list")
def list_runtimes(json: Json = "") -> None:
    """The reference runtimes, their versions, and which are installed."""
    rows: list[dict[str, Any]] = []
    for name, (spec, _) in runtime_specs().items():
        for version in spec.versions:
            runtime = find_runtime(f"{name}@{version}")
            rows.append(
                {
                    "runtime": runtime.name,
                    "runs_here": runtime.runs_here,
                    "installed": runtime.runs_here and runtime.installed,
                    "protocols": spec.protocols,
                    "formats": spec.model_formats,
                    "image": runtime.image,
                    "description": spec.description,
                    "models": [model.name for model in model_specs().values() if model.format in spec.model_formats],
                }
            )
    if json:
        emit_json(json, rows)
        return
    table = Table("runtime", "installed", "protocols", "models", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            str(row["runtime"]),
            ("yes" if row["installed"] else "no") if row["runs_here"] else "real clusters only",
            ", ".join(row["protocols"]),
            ", ".join(row["models"]),
        )
    Console().print(table)


@runtimes_app.command()
def install(
    names: Annotated[list[str], typer.Argument(metavar="RUNTIME…", help="NAME or NAME@VERSION; all for every one")],
) -> None:
    """Builds the Python environments of runtimes, once."""
    if names == ["all"]:
        names = [
            f"{name}@{version}"
            for name, (spec, _) in runtime_specs().items()
            if spec.command
            for version in spec.versions
        ]
    console = Console(stderr=True)
    runtimes = [find_runtime(name) for name in names]
    if elsewhere := [runtime.name for runtime in runtimes if not runtime.runs_here]:
        raise UsageError(f"{', '.join(elsewhere)}: there is nothing to install, it runs on real clusters only")
    for runtime in runtimes:
        with console.status(f"{runtime.name}") as shown:
            python = runtime.python(lambda line, shown=shown, name=runtime.name: shown.update(f"{name}: {line[:90]}"))  # type: ignore[misc]
        print(f"{runtime.name}: {python}")


@runtimes_app.command()
def serve(
    name: Annotated[str, typer.Argument(metavar="RUNTIME", help="NAME or NAME@VERSION")],
    model: Annotated[str, typer.Option(help="a model of the catalog that the runtime can serve")],
    http_port: Annotated[int, typer.Option(help="REST")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="gRPC")] = 8081,
    metrics_port: Annotated[int, typer.Option(help="metrics, where the runtime has a port of their own")] = 8082,
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
) -> None:
    """Runs one runtime with one model in the foreground, to point other commands at."""
    runtime = find_runtime(name)
    if not runtime.runs_here:
        raise UsageError(f"{runtime.name} runs on real clusters only")
    built = build_model(model, lambda line: print(line, file=sys.stderr))
    if built.spec.format not in runtime.spec.model_formats:
        raise UsageError(
            f"{runtime.name} serves {', '.join(runtime.spec.model_formats)}, and {model} is {built.spec.format}"
        )
    python = runtime.python(lambda line: print(line, file=sys.stderr), threading.Event())
    values = {
        "host": host,
        "http_port": str(http_port),
        "grpc_port": str(grpc_port),
        "metrics_port": str(metrics_port),
        "model_name": model,
        "model_dir": str(built.artifacts),
    }
    command, environment = runtime.local_command(python, values)
    declared = {
        item["name"]: str(item.get("value", ""))
        for item in runtime.spec.serving_runtime["containers"][0].get("env", [])
    }
    print(f"{runtime.name} serves {model}: http://{host}:{http_port}, gRPC {host}:{grpc_port}", file=sys.stderr)
    print(f"golden cases: {built.golden}", file=sys.stderr)
    scratch = cache_directory() / "serve"  # what servers leave in their working directory
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(scratch, error) from error
    variables = {**os.environ, **declared, **environment}
    raise typer.Exit(_foreground(command, variables, scratch))


def _foreground(command: list[str], variables: dict[str, str], directory: Path) -> int:
    """The exit code of a server that gets our signals and ends when this process does, however that is."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    shim = [sys.executable, "-I", "-S", str(SHIM), str(read_end), *command]
    with subprocess.Popen(shim, env=variables, cwd=directory, pass_fds=(read_end,), start_new_session=True) as process:
        os.close(read_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: process.terminate())
        code = process.wait()
    os.close(write_end)
    return code


@checks_app.command("list")
def list_checks(
    group: Annotated[str, typer.Option(help="only this group, such as rest.infer")] = "", json: Json = ""
) -> None:
    """Every check, with its level."""
    from scenarios.suites.conformance.suite import REGISTRY

    chosen = [check for check in REGISTRY.checks.values() if not group or check.group == group]
    if not chosen:
        groups = ", ".join(dict.fromkeys(check.group for check in REGISTRY.checks.values()))
        raise UsageError(f"no group {group!r}; there are {groups}")
    if json:
        emit_json(json, [_check_json(check) for check in chosen])
        return
    for check in chosen:
        print(f"{check.level.upper():7}{check.id:48}{check.requirement}")


@checks_app.command("show")
def show_check(check_id: Annotated[str, typer.Argument(metavar="ID")], json: Json = "") -> None:
    """One check: what it requires, how much that binds, and where it is written."""
    from scenarios.suites.conformance.suite import REGISTRY

    check = REGISTRY.checks.get(check_id)
    if check is None:
        raise UsageError(f"no check {check_id!r}; `servecert checks list` names them all")
    data = _check_json(check)
    if json:
        emit_json(json, data)
        return
    for key, value in data.items():
        print(f"{key:12} {value}")


def _check_json(check: Any) -> dict[str, Any]:
    return {
        "id": check.id,
        "level": str(check.level),
        "requirement": check.requirement,
        "source": str(check.source),
        "group": check.group,
    }
