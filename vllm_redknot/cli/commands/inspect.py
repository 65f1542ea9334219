"""`redknot inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from vllm_redknot.cli import options
from vllm_redknot.cli.app import console, emit_json, print_table, warn
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.head_map_png import save_head_map
from vllm_redknot.cli.inspection import BATCHES, BLOCK_SIZE, inspection
from vllm_redknot.cli.model_file import is_model_folder
from vllm_redknot.cli.target import Target, settings, target_of_file, target_of_model
from vllm_redknot.cli.units import default_contexts, parse_token_list, show_bytes, show_tokens
from vllm_redknot.heads.head_map import ONE_LOCAL, HeadMap, head_map
from vllm_redknot.heads.readers.duo_attention import TSV_NAME

STYLES: Final = {
    "G": "bold white on red",
    "D": "bold white on magenta",
    "R": "black on yellow",
    ONE_LOCAL: "dim",
}


def inspect(
    target: Annotated[
        Path, typer.Argument(metavar="FILE|MODEL", help="A head-class file, or a model's folder.")
    ],
    heads: options.Heads = None,
    window: options.Window = None,
    sink: options.Sink = None,
    dense_prefix_layers: options.DensePrefix = None,
    duo_threshold: options.DuoThreshold = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Context lengths to show the savings for.",
            show_default="8K,32K,128K, or up to the model's longest",
        ),
    ] = None,
    batched_tokens: options.BatchedTokens = "2K",  # type: ignore[assignment]
    png: options.Png = None,
    json: options.Json = False,
) -> None:
    """Show what every KV head sees: a map of layers x heads, counts, windows, provenance, what it saves.

    A model's folder shows which profile a server of it would use, why, and whether it fits. The settings
    that a server reads from REDKNOT_* variables apply there as well. Works without vLLM.

    Examples:

      redknot inspect heads.json

      redknot inspect ~/models/Qwen3-32B --heads heads.json --png heads.png
    """
    lengths = None if contexts is None else parse_token_list(contexts, "--contexts")
    given = {
        "window": window,
        "sink": sink,
        "dense_prefix_layers": dense_prefix_layers,
        "duo_threshold": duo_threshold,
    }
    found = _find(target, heads, given)
    longest = found.model.max_context if found.model else None
    document = inspection(found, lengths or default_contexts(longest), batched_tokens, element_bytes=2)
    grid = head_map(found.profile)
    if png is not None:
        save_head_map(grid, f"{found.origin}\n{found.profile.describe()}", png)
    if json:
        emit_json({"target": str(target), **document})
        return
    for warning in found.warnings:
        warn(warning)
    _show(found, document, grid, batched_tokens)


def _find(target: Path, heads: str | None, given: dict[str, Any]) -> Target:
    if is_model_folder(target):
        return target_of_model(target, settings(heads=heads, **given))
    if heads is not None:
        raise CliError(f"--heads needs a model: {target} is no folder with a model's config.json")
    if target.is_dir() and not (target / TSV_NAME).exists():
        raise CliError(
            f"{target} is a folder without a model's config.json, and without DuoAttention's {TSV_NAME}: give one"
            " with either, or a head-class file"
        )
    return target_of_file(target, settings(**given))


def _show(found: Target, document: Mapping[str, Any], grid: HeadMap, batched_tokens: int) -> None:
    out = console()
    out.print(f"{found.origin}", style="bold", soft_wrap=True)
    for reason in document["why"]:
        out.print(f"  {reason}")
    if found.model:
        out.print(f"Model: {found.model.shape.described}. The head classes fit it.")
    out.print()
    for line in grid.lines(out.width):
        out.print(_coloured(line), soft_wrap=True)
    out.print()
    total = sum(entry.heads for entry in grid.legend)
    for entry in grid.legend:
        out.print(f"{entry.symbol}  {entry.heads:>5} ({entry.heads / total:.1%})  {entry.meaning}")
    if found.profile.dense_prefix_layers:
        out.print(f"The first {found.profile.dense_prefix_layers} attention layers are dense.")
    if found.model and found.model.sliding:
        out.print(f"{len(found.model.sliding)} layers have a sliding window of their own and keep that.")
    out.print()
    _show_savings(document["savings"], found, batched_tokens)
    _show_origin(document)


def _coloured(line: str) -> Text:
    """Colour for class letters; header digits and layer numbers stay plain, as do the digits of windows."""
    text = Text(line)
    for symbol, style in STYLES.items():
        text.highlight_words([symbol], style)
    return text


def _show_savings(rows: Sequence[Mapping[str, Any]], found: Target, batched_tokens: int) -> None:
    out = console()
    if not rows:
        out.print(f"KV bytes do not follow from {found.profile.shape}: they share one cache.")
        return
    out.print(
        f"KV of one longest request, by the closed form for steps of {batched_tokens} tokens"
        f" ({BATCHES} in flight, pages of {BLOCK_SIZE}); `redknot plan` has the engine's figure."
    )
    columns = ["context", "KV kept", "requests at once"]
    columns += ["KV bytes, 16-bit"] if rows[0]["request_bytes"] is not None else []
    print_table(out, columns, map(_savings_row, rows))


def _savings_row(row: Mapping[str, Any]) -> list[str]:
    cells = [show_tokens(row["context"]), f"{row['kept_share']:.1%}", f"{1 / row['kept_share']:.2f}x"]
    if row["request_bytes"] is None:
        return cells
    return [*cells, f"{show_bytes(row['dense_request_bytes'])} -> {show_bytes(row['request_bytes'])}"]


def _show_origin(document: Mapping[str, Any]) -> None:
    out = console()
    for part, title in (("identity", "Made for"), ("provenance", "Provenance")):
        values = {key: value for key, value in (document[part] or {}).items() if value not in ({}, False)}
        if values:
            out.print(f"{title}:", style="bold")
        for key, value in values.items():
            out.print(f"  {key}: {value}")
    if document["sections"]:
        out.print(f"Sections: {', '.join(document['sections'])}")
    out.print(f"Fingerprint: {document['fingerprint']}")
