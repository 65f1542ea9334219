"""What commands that ask engines for a while have in common: a bar on stderr, and a document in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vllm_redknot.evals.run import Told


@contextmanager
def progress() -> Iterator[Told]:
    """A bar per engine on stderr, where that is a terminal."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def told(engine: str, done: int, total: int) -> None:
            if engine not in tasks:
                tasks[engine] = bar.add_task(engine, total=total)
            bar.update(tasks[engine], completed=done)

        yield told
