"""`redknot store add`: documents computed alone and stored, before any server needs them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import PROBLEM, console, emit_json, warn
from vllm_redknot.cli.commands.plan import Dtype
from vllm_redknot.cli.configurations import row_schedule
from vllm_redknot.cli.diagnosis.installation import INSTALL
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.progress import bars
from vllm_redknot.cli.store_engine import adding_arguments
from vllm_redknot.cli.target import Target, settings, target_of_model
from vllm_redknot.cli.tokenizer_file import read_tokenizer
from vllm_redknot.cli.units import parse_bytes, show_bytes
from vllm_redknot.evals.engine_process import EngineError, engine_process
from vllm_redknot.reuse.document_files import Document, Skipped, read_documents
from vllm_redknot.reuse.faults import SegmentError
from vllm_redknot.reuse.folder import StoreFolder

WORKER: Final = ("-m", "vllm_redknot.reuse.add_worker")
LONGEST: Final = 2**20
"""Tokens of a document where the model states no context."""
STORED: Final = "stored"
THERE: Final = "already there"
SKIPPED: Final = "skipped"
Row = dict[str, Any]


def add(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Text files, one document each.")],
    model: Annotated[
        Path, typer.Option(metavar="MODEL", help="The model's folder, the one the server is given.")
    ],
    directory: Annotated[
        Path,
        typer.Option(
            "--store", metavar="DIR", help="The server's `store` setting; made where it is missing."
        ),
    ],
    heads: options.Heads = None,
    window: options.Window = None,
    sink: options.Sink = None,
    dense_prefix_layers: options.DensePrefix = None,
    duo_threshold: options.DuoThreshold = None,
    rows: options.Rows = None,
    dtype: Annotated[Dtype, typer.Option(help="The server's --dtype.")] = Dtype.AUTO,
    special_tokens: Annotated[
        bool,
        typer.Option(
            "--special-tokens",
            help="Put the tokens that the tokenizer opens a text with before each document: for documents that begin"
            " the prompt.",
        ),
    ] = False,
    min_reuse: Annotated[
        int,
        typer.Option(min=31, metavar="TOKENS", help="The server's `min_reuse`: shorter files are skipped."),
    ] = 64,
    policy: Annotated[
        options.Policy,
        typer.Option(help="The server's `policy`: for blend every token of local heads is stored too."),
    ] = options.Policy.BOUNDARY,
    max_bytes: Annotated[
        int,
        typer.Option(
            metavar="BYTES",
            parser=parse_bytes,
            help="Budget of the directory: the least recently used beyond it are removed.",
        ),
    ] = "20GiB",  # type: ignore[assignment]
    json: options.Json = False,
) -> None:
    """Compute documents alone, one a file, and store their KV, so that a server reuses it from the first request on.

    Runs vLLM with the server's head classes and row skipping. What is stored already is not computed again: a command
    that was interrupted goes on when it is given again. Files that are unreadable, no UTF-8 text, too short or longer
    than the model's context are named and skipped, and the exit status is 1.

    Examples:

      redknot store add docs/*.txt --model ~/models/SmolLM2-135M-Instruct --store ~/segments
    """
    if importlib.util.find_spec("vllm") is None:
        raise CliError(f"vLLM is not installed, and documents are computed by it: {INSTALL}")
    config = settings(
        heads=heads,
        window=window,
        sink=sink,
        dense_prefix_layers=dense_prefix_layers,
        duo_threshold=duo_threshold,
        rows=rows,
        min_reuse=min_reuse,
        policy=policy.value,
    )
    target = target_of_model(model, config)
    assert target.model is not None
    if target.model.refused:
        raise CliError(f"{model}: REDKNOT does not serve {', '.join(target.model.refused)}")
    for warning in target.warnings:
        warn(warning)
    # One that the model cannot have is told before anything is started.
    row_schedule(target, config)
    found = _read(files, target, special_tokens, min_reuse)
    documents = [one for one in found if isinstance(one, Document)]
    lines = {id(one): _skipped(one) for one in found if isinstance(one, Skipped)}
    facts: Row = {"scope": None, "dtype": None}
    if documents:
        _check_writable(directory)
        longest = max(len(one.tokens) for one in documents)
        arguments = adding_arguments(
            target.model, config, longest, dtype.value, directory.expanduser().absolute(), max_bytes
        )
        facts, replies = _store(documents, arguments)
        lines |= {id(one): _stored(one, reply) for one, reply in zip(documents, replies, strict=True)}
    in_order = [lines[id(one)] for one in found]
    _show(in_order, {"store": str(directory), "model": str(model), **facts}, target, json)
    if any(row["problem"] for row in in_order):
        raise typer.Exit(PROBLEM)


def _read(
    files: Sequence[Path], target: Target, special_tokens: bool, shortest: int
) -> list[Document | Skipped]:
    assert target.model is not None
    tokenizer = read_tokenizer(target.model.path)
    # One token is left for the answer that the engine must give.
    longest = (target.model.max_context or LONGEST) - 1
    opening: tuple[int, ...] = ()
    if special_tokens:
        from vllm_redknot.evals.opening import opening as opening_of

        opening = opening_of(tokenizer)
    with bars() as bar:
        task = bar.add_task("reading", total=len(files))
        found = []
        for one in read_documents(files, tokenizer, opening, shortest, longest):
            found.append(one)
            bar.advance(task)
    return found


def _check_writable(directory: Path) -> None:
    """Before minutes of work: make the directory, take its lock once."""
    try:
        with StoreFolder(directory.expanduser()).locked():
            pass
    except SegmentError as error:
        raise CliError(str(error)) from error


def _store(documents: Sequence[Document], arguments: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """What the engine is, and its reply to each document. Its log is kept where something is wrong."""
    with tempfile.NamedTemporaryFile(prefix="redknot-store-add-", suffix=".log", delete=False) as file:
        log = Path(file.name)
    replies: list[Row] = []
    try:
        with (
            engine_process("store add", arguments, documents, log, WORKER) as lines,
            bars() as bar,
        ):
            task = bar.add_task("storing", total=len(documents))
            facts: Row = next(lines)["facts"]
            for reply in lines:
                replies.append(reply)
                bar.advance(task)
    except EngineError as error:
        raise CliError(
            f"{error}; what was stored before is kept: {len(replies)} of {len(documents)}"
        ) from error
    except KeyboardInterrupt:
        warn("what was stored is kept: the same command goes on from there")
        raise
    if any(reply["problem"] for reply in replies):
        warn(f"the engine's log is {log}")
    else:
        log.unlink()
    return facts, replies


def _skipped(one: Skipped) -> Row:
    return {
        **{"file": str(one.path), "state": SKIPPED, "tokens": None, "bytes": None},
        **{"evicted": 0, "problem": one.problem},
    }


def _stored(one: Document, reply: Mapping[str, Any]) -> Row:
    state = SKIPPED if reply["problem"] else THERE if reply["there"] else STORED
    return {
        **{"file": str(one.path), "state": state, "tokens": len(one.tokens), "bytes": reply["bytes"]},
        **{"evicted": reply["evicted"], "problem": reply["problem"]},
    }


def _show(rows: Sequence[Row], about: Row, target: Target, json: bool) -> None:
    counts = {state: sum(row["state"] == state for row in rows) for state in (STORED, THERE, SKIPPED)}
    evicted = sum(row["evicted"] for row in rows)
    if evicted:
        warn(f"{evicted} segments were removed to stay within --max-bytes: give more to keep all")
    if json:
        emit_json(
            {
                **about,
                "heads": target.profile.fingerprint(),
                **{"files": list(rows), "stored": counts[STORED], "already_there": counts[THERE]},
                **{"skipped": counts[SKIPPED], "evicted": evicted},
            }
        )
        return
    out = console()
    for row in rows:
        said = row["problem"] or f"{row['tokens']} tokens, {show_bytes(row['bytes'])}, {row['state']}"
        out.print(f"{row['file']}: {said}", soft_wrap=True)
    out.print(f"{counts[STORED]} stored, {counts[THERE]} already there, {counts[SKIPPED]} skipped.")
