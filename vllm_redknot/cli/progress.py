"""Progress of a long command on stderr: bars where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vllm_redknot.cli.app import PlainConsole, printable
from vllm_redknot.evals.run import Told


@contextmanager
def bars(transient: bool = True) -> Iterator[Progress]:
    """Bars that vanish at the end, unless `transient` is False; nothing where stderr is no terminal."""
    console = PlainConsole(stderr=True, highlight=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=transient) as shown:
        yield shown


@contextmanager
def engine_bars() -> Iterator[Told]:
    """A bar per engine, which stays: how long each took."""
    with bars(transient=False) as shown:
        tasks: dict[str, TaskID] = {}

        def told(engine: str, done: int, total: int) -> None:
            if engine not in tasks:
                tasks[engine] = shown.add_task(engine, total=total)
            shown.update(tasks[engine], completed=done)

        yield told


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """Yields what to call as each of `total` steps begins, with what it is. Without a terminal that is a line."""
    done = -1
    with bars() as shown:
        task = shown.add_task("", total=total)

        def begin(text: str) -> None:
            nonlocal done
            done += 1
            shown.update(task, completed=done, description=printable(text))
            if shown.disable:
                typer.echo(f"[{done + 1}/{total}] {printable(text)}", err=True)

        yield begin
