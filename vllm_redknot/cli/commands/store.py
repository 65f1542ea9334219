"""`redknot store`: the directory of stored KV segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import PROBLEM, console, emit_json, print_table
from vllm_redknot.cli.commands.store_add import add
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.units import parse_bytes, show_bytes
from vllm_redknot.reuse.faults import SegmentError
from vllm_redknot.reuse.upkeep import Inspected, collect, inspect_store

store = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Fill a directory of stored KV segments, look at it, verify it, and tidy it. All but `add` work without vLLM"
    " and torch.",
)
store.command()(add)

Directory = Annotated[
    Path,
    typer.Option("--store", metavar="DIR", help="The server's `store` setting: the segments' directory."),
]
Result = TypeVar("Result")


@store.command()
def ls(directory: Directory, json: options.Json = False) -> None:
    """List the segments: whose they are, how many tokens, how large, when last used. Reads no KV.

    Examples:

      redknot store ls --store ~/segments
    """
    found = _try(directory, lambda: inspect_store(directory, whole=False))
    if json:
        emit_json({**_totals(directory, found), "models": _models(found), "segments": _rows(found)})
        return
    out = console()
    for model in _models(found):
        prints = model["fingerprint"]
        out.print(
            f"{prints['model'] or 'unnamed model'}: {model['segments']} segments, {model['tokens']} tokens,"
            f" {show_bytes(model['bytes'])}",
            style="bold",
        )
        out.print(
            f"  {prints['dtype']}, heads {prints['heads']}, rows {prints['rows'] or 'all'}, rank {prints['tp_rank']}"
            f" of {prints['tp_size']}, weights {prints['weights']}, scope {model['scope']}"
        )
    print_table(out, ("segment", "scope", "tokens", "size", "last used"), map(_cells, found))
    _say_totals(found)


@store.command()
def verify(directory: Directory, json: options.Json = False) -> None:
    """Read every segment and check every byte against its checksums. Exit status 1 if anything is wrong.

    Examples:

      redknot store verify --store ~/segments
    """
    found = _try(directory, lambda: inspect_store(directory, whole=True))
    bad = [one for one in found if one.reason is not None]
    if json:
        emit_json({**_totals(directory, found), "problems": [_problem(one) for one in bad]})
    else:
        _say_totals(found)
        _say_problems(bad)
        if not bad:
            console().print("All are sound.")
    if bad:
        raise typer.Exit(PROBLEM)


@store.command()
def gc(
    directory: Directory,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            parser=parse_bytes,
            help="Remove least recently used segments beyond this.",
            show_default="keep all that are sound",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Remove what killed processes left half-written, damaged segments, and what exceeds a budget.

    Servers may be running: they compute what they do not find.

    Examples:

      redknot store gc --store ~/segments --max-bytes 20GiB
    """
    removed = _try(directory, lambda: collect(directory, max_bytes))
    left = _try(directory, lambda: inspect_store(directory, whole=False))
    if json:
        document = {
            "temporaries": removed.temporaries,
            "damaged": [_problem(one) for one in removed.damaged],
            "evicted": [{"file": file.name, "bytes": file.nbytes} for file in removed.evicted],
        }
        emit_json({**_totals(directory, left), "removed": document})
        return
    out = console()
    freed = sum(file.nbytes for file in removed.evicted)
    out.print(f"Removed {removed.temporaries} half-written files.")
    out.print(f"Removed {len(removed.damaged)} damaged segments.")
    _say_problems(removed.damaged)
    out.print(f"Evicted {len(removed.evicted)} segments, {show_bytes(freed)}.")
    _say_totals(left)


def _try(directory: Path, action: Callable[[], Result]) -> Result:
    if not directory.is_dir():
        raise CliError(f"{directory} is no directory: give the one that the server's `store` setting names")
    try:
        return action()
    except SegmentError as error:
        raise CliError(str(error)) from error


def _totals(directory: Path, found: Iterable[Inspected]) -> dict[str, Any]:
    files = [one.file for one in found]
    return {
        "store": str(directory),
        "count": len(files),
        "bytes": sum(file.nbytes for file in files),
    }


def _models(found: Iterable[Inspected]) -> list[dict[str, Any]]:
    """One entry per scope: the segments that one rank of one model, with one set of head classes, can use."""
    models: dict[str, dict[str, Any]] = {}
    for one in found:
        if one.front is None:
            continue
        first = {"scope": one.file.scope, "fingerprint": one.front.scope.fingerprint.to_json()}
        model = models.setdefault(one.file.scope, {**first, "segments": 0, "tokens": 0, "bytes": 0})
        model["segments"] += 1
        model["tokens"] += one.front.num_tokens
        model["bytes"] += one.file.nbytes
    return list(models.values())


def _rows(found: Iterable[Inspected]) -> list[dict[str, Any]]:
    return [
        {
            "segment": one.file.content,
            "scope": one.file.scope,
            "tokens": None if one.front is None else one.front.num_tokens,
            "bytes": one.file.nbytes,
            "used": _when(one),
            "problem": one.problem or None,
        }
        for one in found
    ]


def _cells(one: Inspected) -> list[str]:
    tokens = "damaged" if one.front is None else str(one.front.num_tokens)
    return [one.file.content[:12], one.file.scope[:8], tokens, show_bytes(one.file.nbytes), _when(one)]


def _when(one: Inspected) -> str:
    return datetime.fromtimestamp(one.file.used_ns / 1e9, UTC).isoformat(timespec="seconds")


def _problem(one: Inspected) -> dict[str, str]:
    reason = "" if one.reason is None else one.reason.value
    return {"file": one.file.name, "reason": reason, "message": one.problem}


def _say_problems(bad: Iterable[Inspected]) -> None:
    for one in bad:
        console().print(f"  {one.problem}", soft_wrap=True)


def _say_totals(found: Iterable[Inspected]) -> None:
    files = [one.file for one in found]
    console().print(f"{len(files)} segments, {show_bytes(sum(file.nbytes for file in files))}.")
