"""`redknot report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import emit_json, warn
from vllm_redknot.cli.errors import CliError
from vllm_redknot.report.collect import Collected, collect
from vllm_redknot.whole_file import write_whole

SUFFIXES: Final = (".html", ".htm")


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A folder with results: profile, eval and bench documents, head files."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The page; replaced if it is there.",
            show_default="DIR/report.html",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Make one HTML page of what was measured: head map, quality against memory, needle grid, tables, bars.

    Reads the *.json files of DIR: native head-class files, and what `redknot profile`, `redknot eval` and `redknot
    bench` write. A file it cannot use is named and left out. The page is one file without scripts that asks no network.

    Examples:

      redknot report results -o report.html
    """
    page = output or folder / "report.html"
    if page.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"--output is {page}: give a name that ends in {' or '.join(SUFFIXES)}")
    if not folder.is_dir():
        raise CliError(f"{folder} is no folder: give one with JSON results")
    found = collect(folder)
    for warning in found.warnings:
        warn(warning)
    if not found.names:
        raise CliError(
            f"{folder} holds no document for a report: `redknot bench -o {folder}` makes one, as do"
            " `redknot profile` and `redknot eval`"
        )
    write_whole(page, _render(found))
    if json:
        emit_json({"report": str(page), "files": found.names, "warnings": found.warnings})
        return
    typer.echo(str(page))


def _render(found: Collected) -> str:
    try:
        from vllm_redknot.report.page import page
    except ImportError as error:
        raise CliError(f"{error.name} is not installed: pip install jinja2") from error
    return page(found)
