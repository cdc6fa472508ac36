"""From a command to a verdict: the run directory, the signals, the reports and the exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.base.errors import EXIT_INTERRUPTED, EXIT_USAGE, RunStoreError, ServecertError
from harness.base.files import write_atomic
from harness.cli.output import emit_json
from harness.results.records import LoadResult
from harness.results.runstore import Run, RunStore, read_run
from harness.results.verdict import Verdict, judge
from reports.junit import junit
from reports.results import capacity_json, check_json, load_json, results, verdict_json
from reports.terminal import Terminal, print_verdict
from reports.write import write_reports

Work = Callable[[RunStore, Terminal], Awaitable[None]]


@dataclass(frozen=True)
class Output:
    """Where results go. ``json`` may be ``-`` for standard output; ``directory`` None keeps no run directory."""

    directory: Path | None = None
    json: str = ""
    junit: Path | None = None
    quiet: bool = False


async def _until_done(work: Awaitable[None]) -> None:
    """The first signal cancels the work, which then cleans up; the second ends the process at once (what belongs to it
    notices and ends too)."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    seen = 0

    def stop(number: int) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            os._exit(128 + number)
        print("\nstopping and cleaning up; once more to leave at once", file=sys.stderr, flush=True)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def execute(name: str, seed: int, work: Work, output: Output) -> int:
    """Carries out ``work``, writes the reports and gives the exit code. Raises RunStoreError and usage errors."""
    console = Console(stderr=True, soft_wrap=True)
    with ExitStack() as stack:
        directory = output.directory
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="servecert-run-"))) / "run"
        store = RunStore(directory, name, seed=seed)
        stack.callback(store.close)
        interrupted = False
        with Terminal(console, quiet=output.quiet) as terminal:
            try:
                asyncio.run(_until_done(work(store, terminal)))
            except (asyncio.CancelledError, KeyboardInterrupt):
                interrupted = True
            except RunStoreError:
                raise
            except ServecertError as error:
                if error.exit_code == EXIT_USAGE:
                    raise
                store.add_error(error)
        store.finish(EXIT_INTERRUPTED if interrupted else 0)
        verdict = judge(read_run(directory))
        store.finish(verdict.exit_code)
        run = _publish(directory, verdict, output)
        if not output.quiet:
            print_verdict(console, run, verdict)
            if output.directory is not None:
                console.print(f"report: {directory / 'report.html'}", highlight=False)
        elif not verdict.passed:
            for reason in verdict.reasons[:8]:
                console.print(f"{name}: {reason}", highlight=False, markup=False)
        return verdict.exit_code


def _publish(directory: Path, verdict: Verdict, output: Output) -> Run:
    if output.directory is not None:
        write_reports(directory)
    run = read_run(directory)
    if output.json:
        emit_json(output.json, results_of(run, verdict))
    if output.junit is not None:
        write_atomic(output.junit, junit(run, verdict))
    return run


def results_of(run: Run, verdict: Verdict) -> dict[str, Any]:
    """A command on one suite gives what that suite measured at the top level; a scenario gives everything."""
    kind = run.info.get("kind")
    if kind == "load" and len(run.loads) == 1:
        load: LoadResult = run.loads[0]
        return {**verdict_json(verdict), **load_json(load), "checks": [check_json(check) for check in run.checks]}
    if kind == "capacity":
        return {**verdict_json(verdict), **capacity_json(run), "checks": [check_json(check) for check in run.checks]}
    return results(run, verdict)
