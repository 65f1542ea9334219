"""Progress on stderr: a bar where somebody watches, a line a step elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_redknot.cli.app import PlainConsole, printable


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yields what to call at the beginning of each of `total` steps, with what it is."""
    console = PlainConsole(stderr=True, highlight=False, emoji=False)
    done = -1
    if not console.is_terminal:

        def line(text: str) -> None:
            nonlocal done
            done += 1
            typer.echo(f"[{done + 1}/{total}] {printable(text)}", err=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=total)

        def step(text: str) -> None:
            nonlocal done
            done += 1
            bars.update(task, completed=done, description=printable(text))

        yield step
