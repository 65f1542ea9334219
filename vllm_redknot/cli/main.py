"""The `redknot` command."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_redknot import __version__
from vllm_redknot.cli.app import OneLineErrors
from vllm_redknot.cli.commands.bench import bench
from vllm_redknot.cli.commands.config import config
from vllm_redknot.cli.commands.convert import convert
from vllm_redknot.cli.commands.doctor import doctor
from vllm_redknot.cli.commands.eval import evaluate
from vllm_redknot.cli.commands.inspect import inspect
from vllm_redknot.cli.commands.plan import plan
from vllm_redknot.cli.commands.profile import profile
from vllm_redknot.cli.commands.report import report
from vllm_redknot.cli.commands.store import store
from vllm_redknot.cli.commands.verify_reuse import verify_reuse

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Look at head classes, plan what they save, and check an installation of vllm-redknot.",
    epilog="Exit status: 0 fine, 1 a problem found, 2 wrong usage. Every command takes --json.",
)
for command in (profile, inspect, convert, plan, config, bench, report, doctor):
    app.command(no_args_is_help=command is not doctor)(command)
app.add_typer(store, name="store")
app.command("eval", no_args_is_help=True)(evaluate)
app.command("verify-reuse", no_args_is_help=True)(verify_reuse)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Callback of the group: its options come before the command's name."""
    del version


def main() -> None:
    """Entry point of the console script."""
    app()
