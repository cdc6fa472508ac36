"""``servecert cluster``: what would be done, doing it, what there is, and taking it down."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster import ledger
from cluster.commands import Command
from cluster.install import plan_install
from cluster.local.provider import LocalCluster, LocalSpec
from cluster.model import PROVIDERS, ClusterChoice, Existing, Local
from cluster.providers.existing import kubeconfig_files, minified
from cluster.providers.managed import ManagedCluster, plan_create, plan_delete, settle, spec_of, strays, take_down
from harness.base.errors import EXIT_FAILED, ClusterError, ServecertError, UsageError
from harness.cli.options import Json
from harness.cli.output import emit_json
from harness.kubernetes.kube import Kube
from runtimes.environments import cache_directory
from scenarios.file.reading import find_scenario, load_cluster

cluster_app = typer.Typer(help="Brings clusters up, and takes them down.", no_args_is_help=True)

File = Annotated[
    str, typer.Argument(metavar="[FILE]", help="a scenario, or a file with nothing but its cluster section")
]
Provider = Annotated[str, typer.Option(help=f"instead of the file's: {', '.join(PROVIDERS)}")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field, such as cluster.name=nightly")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only print what would be done")]


def _choice(file: str, provider: str, settings: list[str] | None) -> ClusterChoice:
    changes = list(settings or [])
    if provider:
        changes.append(f"cluster.provider={provider}")
    return load_cluster(find_scenario(file) if file else None, changes)


# What would be done


def commands_of(choice: ClusterChoice) -> tuple[list[Command], list[Command]]:
    """What brings the cluster up and what takes it down. Raises UsageError."""
    match choice:
        case Local():
            return [], []
        case Existing():
            install = choice.install
            return (plan_install(install, choice, Path("KUBECONFIG")) if install else []), []
        case _:
            now = time.time()
            entry = ledger.Entry(choice.provider, choice.name, {}, now, now + choice.ttl, False)
            return plan_create(choice, entry.directory, entry.expires_s), plan_delete(choice, entry.directory)


def print_plan(choice: ClusterChoice) -> None:
    """Everything that would be run, as one could paste it into a shell."""
    creating, deleting = commands_of(choice)
    match choice:
        case Local():
            print("# starts the embedded cluster: processes of this machine, nothing else")
        case Existing():
            data = minified(kubeconfig_files(choice.kubeconfig), choice.context)
            server = data["clusters"][0]["cluster"].get("server")
            print(f"# uses context {data['current-context']} ({server}); nothing of it is taken down afterwards")
        case _:
            print(f"# to bring {choice.provider} cluster {choice.name} up, for at most {choice.ttl / 3600:g} h:")
    for number, command in enumerate(creating, 1):
        print(f"\n# {number}. {command.does}\n{command.shown()}")
    if deleting:
        print("\n# to take it down again, on every way out:")
        for command in deleting:
            print(f"\n# {command.does}\n{command.shown()}")
    cost = getattr(choice, "highest_cost", lambda: None)()
    if cost is not None:
        print(f"\n# costs at most {cost:.2f}: every pool at its maximum for {getattr(choice, 'ttl', 0) / 3600:g} h")


@cluster_app.command()
def plan(file: File = "", provider: Provider = "", settings: Settings = None, json: Json = "") -> None:
    """Prints every command that `up` and `down` would run, and runs none of them."""
    choice = _choice(file, provider, settings)
    if not json:
        print_plan(choice)
        return
    creating, deleting = commands_of(choice)
    as_data = [
        [{"does": command.does, "argv": list(command.argv), "stdin": command.stdin} for command in commands]
        for commands in (creating, deleting)
    ]
    cost = getattr(choice, "highest_cost", lambda: None)()
    emit_json(json, {"provider": choice.provider, "up": as_data[0], "down": as_data[1], "highest_cost": cost})


# Doing it


CREATING = "stopping, and taking down what was created; once more to leave at once"
DELETING = "what is being deleted is deleted to the end; once more to leave at once, then repeat the command later"


@contextmanager
def _stoppable(console: Console, answer: str) -> Iterator[tuple[threading.Event, Callable[[str], None]]]:
    """The first Ctrl-C or SIGTERM sets the event and gets ``answer``, the second ends this process; a line that changes
    says what runs."""
    stop = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            os._exit(128 + number)
        print(f"\n{answer}", file=sys.stderr, flush=True)
        stop.set()

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    shown = console.status("") if console.is_terminal else None
    try:
        if shown:
            shown.start()

        def progress(line: str) -> None:
            if shown:
                shown.update(line[: max(20, console.width - 4)])
            elif line.split(" ", 1)[0].isdigit() or line.startswith(("delete", "taking")):
                print(line, file=sys.stderr, flush=True)

        yield stop, progress
    finally:
        if shown:
            shown.stop()
        for number, handler in old.items():
            signal.signal(number, handler)


@cluster_app.command()
def up(
    file: File = "",
    provider: Provider = "",
    settings: Settings = None,
    dry_run: DryRun = False,
    api_port: Annotated[int, typer.Option(help="local: port of the Kubernetes API; 0 takes a free one")] = 0,
    ingress_port: Annotated[int, typer.Option(help="local: port of the ingress; 0 takes a free one")] = 0,
    mirror: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX=DIR", help="local: where URIs that begin so are read from")
    ] = None,
    json: Json = "",
) -> None:
    """Brings a cluster up that keeps running, and prints how to reach it."""
    choice = _choice(file, provider, settings)
    if not isinstance(choice, Local) and (api_port or ingress_port or mirror):
        raise UsageError("--api-port, --ingress-port and --mirror are for the local cluster")
    if dry_run:
        print_plan(choice)
        return
    match choice:
        case Local():
            found = _describe_local(_local_up(api_port, ingress_port, mirror or []))
        case Existing():
            raise UsageError(
                "an existing cluster is up already; `servecert run` installs on it what the scenario asks for"
            )
        case _:
            with _stoppable(Console(stderr=True), CREATING) as (stop, progress):
                cluster = ManagedCluster.create(settle(choice), stop, progress, keep=True)
            found = _describe_managed(cluster)
    if json:
        emit_json(json, found)
    else:
        _print(found)


def _local_directory() -> Path:
    return cache_directory() / "clusters" / "local"


def _local_up(api_port: int, ingress_port: int, mirror: list[str]) -> LocalCluster:
    mirrors = {}
    for item in mirror:
        prefix, separator, target = item.rpartition("=")
        if not separator or not Path(target).is_dir():
            raise UsageError(f"--mirror {item!r}: expected PREFIX=DIRECTORY, and the directory must exist")
        mirrors[prefix] = str(Path(target).resolve())
    cluster = LocalCluster.find(_local_directory())
    if cluster is None:
        return LocalCluster.start(LocalSpec(_local_directory(), api_port, ingress_port, mirrors), detached=True)
    if api_port or ingress_port or mirrors:
        raise ClusterError("a cluster is already up, with other settings; take it down first: servecert cluster down")
    return cluster


def _describe_local(cluster: LocalCluster) -> dict[str, Any]:
    return {key: cluster.state[key] for key in ("api", "ingress", "kubeconfig", "domain", "pid")}


def _describe_managed(cluster: ManagedCluster) -> dict[str, Any]:
    entry = cluster.entry
    return {
        "cluster": entry.key,
        "state": entry.state,
        "kubeconfig": str(cluster.kubeconfig),
        "kubernetes": _asked(cluster.kubeconfig),
        "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.expires_s)),
        "log": str(entry.log),
    }


def _asked(kubeconfig: Path) -> str:
    """What the API server says that it is; why not, where it does not answer."""
    if not kubeconfig.exists():
        return "no kubeconfig was written"
    try:
        return Kube(kubeconfig).version()
    except ServecertError as error:
        return str(error)


def _print(found: dict[str, Any]) -> None:
    print(f"export KUBECONFIG={found['kubeconfig']}")
    if "domain" in found:
        host = f"<isvc>.<namespace>.{found['domain']}"
        print(f"# services answer at http://{found['ingress']} with the Host header {host},")
        print(f"# and in a browser at http://{found['ingress']}/serving/<namespace>/<isvc>/")
        return
    print(f"# {found['cluster']} is {found['state']} until {found['expires']}; its API: {found['kubernetes']}")
    print(f"# servecert run SCENARIO --provider existing --set cluster.kubeconfig={found['kubeconfig']}")
    print(f"# take it down: servecert cluster down {found['cluster']}")


# What there is


@cluster_app.command()
def status(
    key: Annotated[str, typer.Argument(metavar="[CLUSTER]", help="PROVIDER-NAME; the local one by default")] = "",
    all_: Annotated[bool, typer.Option("--all", help="every cluster that is known here")] = False,
    json: Json = "",
) -> None:
    """Says whether a cluster is up: exit code 0 when it is, 1 when not."""
    if all_:
        _status_all(json)
        return
    if key and key != "local":
        managed = ManagedCluster.find(key)
        found = _describe_managed(managed) if managed else {}
        is_up = managed is not None and managed.entry.state == "up"
    else:
        local = LocalCluster.find(_local_directory())
        found = _describe_local(local) if local else {}
        is_up = local is not None
    if json:
        emit_json(json, {"up": is_up, **found})
    elif found:
        _print(found)
    else:
        print(f"no cluster {key or 'is'} up; start one with: servecert cluster up")
    raise typer.Exit(0 if is_up else EXIT_FAILED)


def _status_all(json: str) -> None:
    local = LocalCluster.find(_local_directory())
    entries = ledger.entries()
    if json:
        clusters = [_describe_managed(ManagedCluster(spec_of(entry), entry, True)) for entry in entries]
        emit_json(json, {"local": _describe_local(local) if local else None, "clusters": clusters})
        return
    if local:
        print(f"local: up, {local.ingress}")
    for entry in entries:
        print(entry.describe())
    if not local and not entries:
        print("no cluster is known here")


# Taking it down


@cluster_app.command()
def down(
    key: Annotated[
        str, typer.Argument(metavar="[CLUSTER]", help="PROVIDER-NAME, as status --all has it; the local one by default")
    ] = "",
    provider: Annotated[str, typer.Option(help="with --strays: whose clusters")] = "",
    all_: Annotated[bool, typer.Option("--all", help="every cluster that is known here and not in use")] = False,
    expired: Annotated[bool, typer.Option("--expired", help="only those whose time to live is over")] = False,
    strays_of: Annotated[
        str,
        typer.Option("--strays", metavar="FILE", help="clusters with our label in the account of FILE, unknown here"),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="also what a running command uses")] = False,
    dry_run: DryRun = False,
) -> None:
    """Deletes clusters and everything on them. May be repeated until nothing is left."""
    entries: list[ledger.Entry] = []
    if strays_of:
        entries = _stray_entries(_choice(strays_of, provider, None))
    elif all_ or expired:
        entries = [entry for entry in ledger.entries() if entry.expired or not expired]
        if used := [entry for entry in entries if entry.owner_lives and not force]:
            print("\n".join(f"left alone: {entry.describe()} (--force takes it down)" for entry in used))
        entries = [entry for entry in entries if entry not in used]
    elif key and key != "local":
        entry = ledger.find(key)
        if entry is None:
            known = ", ".join(item.key for item in ledger.entries()) or "none"
            raise UsageError(f"no cluster {key!r} is known here; there are: {known}")
        if entry.owner_lives and not force:
            raise ClusterError(f"{entry.describe()}; end that command, or give --force")
        entries = [entry]
    if not strays_of and not expired and (all_ or key in ("", "local")):
        _local_down(dry_run, quiet=all_)
    failed = _take_all_down(entries, dry_run)
    if (all_ or expired or strays_of) and not entries:
        print("nothing else was left")
    if failed:
        raise ClusterError("\n".join(failed))


def _stray_entries(choice: ClusterChoice) -> list[ledger.Entry]:
    if isinstance(choice, Local | Existing):
        raise UsageError("--strays: expected a file whose provider is kind, gke, eks or aks")
    found = []
    now = time.time()
    for name in strays(choice):
        spec = choice.model_copy(update={"name": name}).model_dump(mode="json", exclude_none=True)
        found.append(ledger.Entry(choice.provider, name, spec, now, now, True, "stray"))
    return found


def _local_down(dry_run: bool, *, quiet: bool) -> None:
    cluster = LocalCluster.find(_local_directory())
    if cluster is None:
        if not quiet:
            print("no cluster was up")
    elif dry_run:
        print(f"would end the local cluster, process {cluster.state['pid']}")
    else:
        cluster.down()
        print("the cluster is down")


def _take_all_down(entries: list[ledger.Entry], dry_run: bool) -> list[str]:
    """Why some could not be taken down; the others are."""
    failed = []
    for entry in entries:
        if dry_run:
            print(f"# {entry.describe()}")
            for command in plan_delete(spec_of(entry), entry.directory):
                print(command.shown())
            continue
        print(f"taking down {entry.key}", flush=True)
        try:
            with _stoppable(Console(stderr=True), DELETING) as (_, progress):
                take_down(entry, progress)
            print(f"{entry.key} is down")
        except ServecertError as error:
            failed.append(str(error))
    return failed
