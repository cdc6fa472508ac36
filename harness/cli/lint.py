"""``servecert lint`` and ``servecert preflight``: what can be known before anything runs."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import escape, quoteattr

import typer
from rich.console import Console
from rich.table import Table

from harness.base.errors import EXIT_FAILED, UsageError
from harness.base.files import write_atomic
from harness.base.quantities import parse_bytes
from harness.base.units import parse_duration, parse_rate
from harness.cli.options import Json, Junit
from harness.cli.output import emit_json
from harness.lint import RULES, Facts, Finding, Level, Subject, lint, read_manifests, subjects_of
from harness.results.history import stages_of
from harness.results.runstore import read_run
from scenarios.file.reading import find_scenario, load_scenario

STARTS = ("cold-start.first_byte.p50", "ready")
"""Measurements of how long a pod takes to answer, or to be ready."""


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def lint_command(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE…", help="manifests, or folders of them")] = None,
    model_size: Annotated[str | None, typer.Option(metavar="SIZE", help="of the model, such as 2Gi")] = None,
    p99: Annotated[str | None, typer.Option(metavar="T", help="the model's latency, as measured")] = None,
    peak: Annotated[str | None, typer.Option(metavar="RATE", help="the most that is expected, such as 200/s")] = None,
    cold_start: Annotated[str | None, typer.Option(metavar="T", help="how long a pod takes to be ready")] = None,
    slo: Annotated[str | None, typer.Option(metavar="T", help="the latency that is promised")] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="take latency and cold start from this run")] = None,
    check_storage: Annotated[bool, typer.Option(help="look whether each storageUri is there, and how large")] = False,
    strict: Annotated[bool, typer.Option(help="warnings fail too")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="list the rules, and check nothing")] = False,
    json: Json = "",
    junit: Junit = None,
) -> None:
    """The production checklist, read off manifests: exit code 1 where one has an error."""
    if rules:
        _print_rules(json)
        return
    if not files:
        raise UsageError("expected manifests: servecert lint FILE…")
    of_run = measured(run) if run else Facts()
    facts = Facts(
        model_bytes=parse_bytes(model_size) if model_size else None,
        p99_s=_seconds("--p99", p99) or of_run.p99_s,
        peak_per_s=_rate(peak) or of_run.peak_per_s,
        cold_start_s=_seconds("--cold-start", cold_start) or of_run.cold_start_s,
        slo_s=_seconds("--slo", slo),
    )
    subjects = subjects_of(read_manifests(files), facts)
    found: list[Finding] = []
    for subject in subjects:
        more: list[Finding] = []
        if check_storage:
            subject, more = _look_at_storage(subject)
        found += [*lint(subject), *more]
    failing = [item for item in found if strict or item.level is Level.ERROR]
    if json:
        emit_json(json, {"services": [item.name for item in subjects], "findings": [asdict(item) for item in found]})
    if junit is not None:
        write_atomic(junit, _junit(subjects, found, strict))
    if json != "-":
        _print_findings(subjects, found)
    raise typer.Exit(EXIT_FAILED if failing else 0)


def _rate(text: str | None) -> float | None:
    try:
        return parse_rate(text) if text is not None else None
    except ValueError as error:
        raise UsageError(f"--peak: {error}") from None


def measured(directory: Path) -> Facts:
    """The worst 99th percentile, the highest rate that was sent and the longest cold start of a run. The trials of a
    search for capacity are not among its stages: they are meant to go beyond what the service can take."""
    run = read_run(directory)
    stages = [load for load in stages_of(run) if "p99" in load.latency_s]
    for load in stages:
        if not math.isfinite(load.latency_s["p99"]):
            raise UsageError(
                f"--run {directory}: stage {load.step} has no 99th percentile: {load.errors} of its {load.requests}"
                " requests failed; expected a run in which at most 1 % fail, or give --p99"
            )
    p99 = [load.latency_s["p99"] for load in stages]
    rates = [load.offered_rate_per_s for load in stages if load.offered_rate_per_s]
    starts = [item for item in run.measurements if item.name in STARTS and item.unit == "s"]
    for item in starts:
        if not math.isfinite(item.value):
            raise UsageError(
                f"--run {directory}: step {item.step or item.name}: half of its cold starts had no answer; expected a"
                " run in which they are answered, or give --cold-start"
            )
    cold = [item.value for item in starts]
    if not p99 and not cold:
        raise UsageError(f"--run {directory}: it measured neither a latency nor a start")
    return Facts(
        p99_s=max(p99, default=None), peak_per_s=max(rates, default=None), cold_start_s=max(cold, default=None)
    )


def _look_at_storage(subject: Subject) -> tuple[Subject, list[Finding]]:
    """The size of the model, where it can be looked at, or a finding that says why not."""
    from dataclasses import replace

    import fsspec

    uri = subject.model.get("storageUri")
    if not uri or str(uri).startswith(("pvc://", "oci://", "hdfs://", "webhdfs://", "git://")):
        return subject, []
    try:
        system, path = fsspec.core.url_to_fs(str(uri))
        size = float(system.du(path))
        if not size and not system.exists(path):
            raise FileNotFoundError(path)
    except Exception as error:  # each file system has its own kinds
        what = f"{uri}: {type(error).__name__}: {str(error)[:200]}"
        reason = "A model that cannot be read here may not be readable for the pod either; it starts without one."
        fix = "mend the URI, or the credentials that this was asked with"
        finding = Finding(
            "storage.reachable", Level.ERROR, subject.file, subject.name, "model.storageUri", what, reason, fix
        )
        return subject, [finding]
    facts = subject.facts if subject.facts.model_bytes else replace(subject.facts, model_bytes=size)
    return replace(subject, facts=facts), []


def _print_rules(json: str) -> None:
    if json:
        emit_json(json, [{"id": item.id, "level": item.level, "reason": item.reason} for item in RULES.values()])
        return
    for item in RULES.values():
        print(f"{item.level:8}{item.id:34}{item.reason}")


def _print_findings(subjects: list[Subject], found: list[Finding]) -> None:
    for item in found:
        print(f"{item.file}: {item.service}: {item.level}: {item.where}: {item.what} [{item.rule}]")
        print(f"    why: {item.reason}")
        print(f"    fix: {item.fix}")
    unseen = [item.name for item in subjects if not item.runtime_known]
    if unseen:
        print(f"not judged of {', '.join(unseen)}: probes and resources of its runtime, which is not in the files")
    errors = sum(item.level is Level.ERROR for item in found)
    print(f"{len(subjects)} services, {len(RULES)} rules: {errors} errors, {len(found) - errors} warnings")


def _junit(subjects: list[Subject], found: list[Finding], strict: bool) -> str:
    """One test case a service and rule, so that a service without findings is seen to have been looked at."""
    cases, failures = [], 0
    for subject in subjects:
        for name in [*RULES, *({item.rule for item in found if item.service == subject.name} - set(RULES))]:
            wrong = [
                item for item in found if (item.service, item.rule, item.file) == (subject.name, name, subject.file)
            ]
            wrong = [item for item in wrong if strict or item.level is Level.ERROR]
            failures += bool(wrong)
            inner = ""
            for item in wrong[:1]:
                message = quoteattr(f"{item.where}: {item.what}")
                inner = f"<failure message={message}>{escape(f'{item.reason} {item.fix}')}</failure>"
            cases.append(f"<testcase classname={quoteattr(subject.name)} name={quoteattr(name)}>{inner}</testcase>")
    counts = f'name="lint" tests="{len(cases)}" failures="{failures}"'
    body = "".join(cases)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites><testsuite {counts}>{body}</testsuite></testsuites>\n'


def preflight_command(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="a scenario file, or a name in the catalog")],
    provider: Annotated[str, typer.Option(help="instead of the file's; a cluster has to be there")] = "existing",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field")] = None,
    json: Json = "",
) -> None:
    """Asks an existing cluster whether it can run a scenario; nothing is created. Exit code 1 where it cannot."""
    from cluster.model import Existing
    from cluster.providers.existing import write_kubeconfig
    from harness.kubernetes.kube import Kube
    from scenarios.engine.preflight import Answer, preflight

    changes = [*(settings or []), f"cluster.provider={provider}"]
    loaded = load_scenario(find_scenario(scenario), changes)
    choice = loaded.cluster
    if not isinstance(choice, Existing):
        raise UsageError(f"expected a cluster that is there: --provider existing, got {choice.provider}")
    with tempfile.TemporaryDirectory(prefix="servecert-preflight-") as folder:
        kube = Kube(write_kubeconfig(choice, Path(folder)))
        found = preflight(loaded, kube)
    failed = [item for item in found if item.answer is Answer.FAILED]
    if json:
        emit_json(json, {"cluster": kube.host, "able": not failed, "findings": [asdict(item) for item in found]})
    if json != "-":
        _print_preflight(loaded.name, kube.host, found)
    raise typer.Exit(EXIT_FAILED if failed else 0)


def _print_preflight(name: str, host: str, found: list[Any]) -> None:
    table = Table("", "needs", "found", "do", box=None, pad_edge=False)
    marks = {"passed": "✓", "failed": "✕", "unknown": "?"}
    for item in found:
        table.add_row(marks[item.answer], item.needs, item.found, item.fix if item.answer != "passed" else "")
    Console().print(table)
    failed = sum(item.answer == "failed" for item in found)
    unknown = sum(item.answer == "unknown" for item in found)
    verdict = "cannot run" if failed else "can run"
    more = f", {unknown} could not be asked" if unknown else ""
    print(f"{host} {verdict} {name}: {len(found) - failed - unknown} of {len(found)} fit, {failed} do not{more}")
