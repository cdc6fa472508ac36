"""The command line: ``servecert``. Each command lives in a module of its own, and only that of the one that is called
is imported: a command that asks for the version need not wait for what draws plots."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer

from harness.base.errors import ServecertError
from harness.base.shown import visible
from harness.base.version import __version__

_RUN = "harness.cli.run"
_GROUPS = {
    "cluster": ("harness.cli.cluster", "cluster_app"),
    "runtimes": ("harness.cli.tools", "runtimes_app"),
    "checks": ("harness.cli.tools", "checks_app"),
}
_COMMANDS = {
    "history": ("harness.cli.history", "history_command"),
    "site": ("harness.cli.history", "site_command"),
    "samples": ("harness.cli.samples", "samples_command"),
    "compare": ("harness.cli.compare", "compare_command"),
    "lint": ("harness.cli.lint", "lint_command"),
    "preflight": ("harness.cli.lint", "preflight_command"),
}
_CLASSES = {"compare": ("harness.cli.compare", "SidesCommand")}
"""Of commands that read their command line in a way of their own."""
_OF_RUN = ("run", "conformance", "parity", "load", "capacity", "worker", "report", "schema")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"servecert {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def _attribute(where: tuple[str, str]) -> Any:
    return getattr(importlib.import_module(where[0]), where[1])


def build(first: str = "") -> typer.Typer:
    """The application for a command line that begins with ``first``: with that command alone, or with all of them where
    it is none."""
    app = typer.Typer(
        name="servecert",
        help="Certifies model-serving clusters: protocol conformance, numerical parity and load.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    known = first in (*_GROUPS, *_COMMANDS, *_OF_RUN, "--version")
    if not known or first in _OF_RUN:
        app.registered_commands += importlib.import_module(_RUN).app.registered_commands
    for name, where in _COMMANDS.items():
        if not known or name == first:
            app.command(name, cls=_attribute(_CLASSES[name]) if name in _CLASSES else None)(_attribute(where))
    for name, where in _GROUPS.items():
        if not known or name == first:
            app.add_typer(_attribute(where), name=name)
    return app


def main() -> None:
    """The entry point. Errors raised on purpose end here, as a message and an exit code."""
    try:
        build(sys.argv[1] if len(sys.argv) > 1 else "")()
    except ServecertError as error:
        print(f"servecert: {visible(str(error), lines=True)}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
