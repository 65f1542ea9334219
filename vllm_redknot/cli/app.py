"""How every command ends: exit 0 fine, 1 a problem found, 2 wrong usage; an error is one line on stderr.

Commands raise; this module alone turns what they raise into a line and a status.
"""

import json
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from vllm_redknot.cli.errors import CliError
from vllm_redknot.config import RedknotConfigError
from vllm_redknot.heads.errors import HeadProfileError

PROBLEM: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130
WIDE: Final = 1000
"""Columns of a terminal in which any table has its natural width."""


class OneLineErrors(TyperGroup):
    """A group of commands in which whatever goes wrong is one line on stderr, and never a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line. Ends the process with its status, as a console script must."""
        del prog_name, standalone_mode
        status: object = 0
        try:
            # In this mode the status of `typer.Exit` is returned, and errors are left to us.
            status = super().main(args, "redknot", complete_var, False, windows_expand_args, **extra)
        except typer.TyperException as error:
            # Without a command the help has been printed, and there is nothing to add.
            message = error.format_message()
            status = _say(message, error.exit_code) if message else error.exit_code
        except RedknotConfigError as error:
            status = _say(str(error), WRONG_USAGE)
        except (CliError, HeadProfileError) as error:
            status = _say(str(error), PROBLEM)
        except OSError as error:
            path = f"{error.filename}: " if error.filename else ""
            status = _say(f"{path}{error.strerror or error}", PROBLEM)
        except typer.Abort:
            status = _say("interrupted", INTERRUPTED)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            status = _say(
                f"internal error, {type(error).__name__}: {error} ({place.filename}:{place.lineno}); please report it"
                " with the output of `redknot doctor --json`",
                PROBLEM,
            )
        sys.exit(status if isinstance(status, int) else 0)


def _say(message: str, status: int) -> int:
    typer.echo(f"redknot: {printable(' '.join(message.split()))}", err=True)
    return status


def warn(message: str) -> None:
    """One line on stderr that does not change the status."""
    typer.echo(f"redknot: warning: {printable(' '.join(message.split()))}", err=True)


def printable(text: str) -> str:
    """The text without characters that steer a terminal: files we show are not ours."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


class PlainConsole(Console):
    """A console on which strings cannot hold escape sequences or markup of their own."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, markup off."""
        safe = [printable(shown) if isinstance(shown, str) else shown for shown in objects]
        super().print(*safe, **{"markup": False, **options})


def console() -> Console:
    """Where people read: stdout at the terminal's width, plain text where it is no terminal."""
    return PlainConsole(highlight=False, emoji=False)


def print_table(out: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Right-aligned columns; where the terminal is too narrow for them, a paragraph a row. No number is ever broken."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    kept = list(rows)
    for row in kept:
        table.add_row(*row)
    if table.__rich_measure__(out, out.options.update(max_width=WIDE)).maximum <= out.width:
        out.print(table)
        return
    for row in kept:
        out.print(f"  {columns[0]} {row[0]}")
        for column, cell in zip(columns[1:], row[1:], strict=True):
            out.print(f"    {column}: {cell}")


def emit_json(document: Mapping[str, Any]) -> None:
    """The one thing that `--json` puts on stdout."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))
