"""`redknot config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import emit_json, warn
from vllm_redknot.cli.configurations import row_schedule
from vllm_redknot.cli.model_file import is_model_folder
from vllm_redknot.cli.serve_flags import backend_flags, redknot_section, shell_line
from vllm_redknot.cli.target import Target, settings, target_of_file, target_of_model
from vllm_redknot.cli.units import parse_tokens
from vllm_redknot.config import ALL_GLOBAL, RedknotConfig
from vllm_redknot.heads.tensor_parallel import per_rank
from vllm_redknot.reuse.setup import CHAT_DOCUMENTS

MODEL_PLACEHOLDER = "MODEL"


def config(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model's folder, which is checked, or a name, which is not."),
    ] = None,
    heads: options.Heads = None,
    window: options.Window = None,
    sink: options.Sink = None,
    dense_prefix_layers: options.DensePrefix = None,
    duo_threshold: options.DuoThreshold = None,
    rows: options.Rows = None,
    max_groups: options.MaxGroups = None,
    kernel: Annotated[str | None, typer.Option(help='"auto", or "torch" for plain torch.')] = None,
    decode_kernel: Annotated[
        str | None, typer.Option(help='"triton", or "flashinfer" for global heads on GPUs.')
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where compiled CPU kernels are kept.")
    ] = None,
    tp: options.TensorParallel = 1,
    max_model_len: Annotated[
        int | None, typer.Option(metavar="TOKENS", parser=parse_tokens, help="Passed on to vLLM.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Passed on to vLLM: a multiple of 16.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print a `vllm serve` command with these head classes and row skipping, checked and quoted, ready to paste.

    The settings pass the server's own validation, the head-class file is read, and with a model's folder both and
    the layers that skip rows must fit it, and the heads the tensor-parallel size. Settings from REDKNOT_* variables
    are written out. Works without vLLM.

    Examples:

      redknot config ~/models/Qwen3-32B --heads heads.json --window 4096 --tp 2
    """
    given: dict[str, Any] = {
        "heads": options.absolute_heads(heads),
        "window": window,
        "sink": sink,
        "dense_prefix_layers": dense_prefix_layers,
        "duo_threshold": duo_threshold,
        "rows": rows,
        "max_groups": max_groups,
        "kernel": kernel,
        "decode_kernel": decode_kernel,
        "cache_dir": cache_dir,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if block_size is not None:
        options.check_block_size(block_size)
    checked = settings(**given)
    found = _checked_heads(model, checked, tp)
    section = redknot_section(checked, given)
    flags = backend_flags(section)
    for flag, value, default in (
        ("--tensor-parallel-size", tp, 1),
        ("--max-model-len", max_model_len, None),
        ("--block-size", block_size, None),
    ):
        if value != default:
            flags += [flag, str(value)]
    if checked.reuse != "off":
        flags += ["--middleware", CHAT_DOCUMENTS]
    command = ["vllm", "serve", _model_argument(model), *flags]
    warnings = _warnings(found, tp)
    if json:
        emit_json(
            {
                "command": command,
                "shell": shell_line(command),
                "settings": section,
                "heads": None if found is None else found.origin,
                "warnings": warnings,
            }
        )
        return
    for warning in warnings:
        warn(warning)
    typer.echo(shell_line(command))


def _checked_heads(model: str | None, config: RedknotConfig, tp: int) -> Target | None:
    """The head classes in force, if the command line tells them; they split over the ranks, and the rows fit too."""
    found = None
    if model is not None and is_model_folder(Path(model).expanduser()):
        found = target_of_model(Path(model), config)
    elif config.heads not in (None, ALL_GLOBAL):
        found = target_of_file(Path(str(config.heads)), config)
    if found is not None:
        per_rank(found.profile, tp)
        row_schedule(found, config)
    return found


def _model_argument(model: str | None) -> str:
    if model is None:
        return MODEL_PLACEHOLDER
    path = Path(model).expanduser()
    return str(path.absolute()) if path.is_dir() else model


def _warnings(found: Target | None, tp: int) -> list[str]:
    if found is None:
        return ["without a model's folder the head classes a server would find are not checked"]
    sharded = per_rank(found.profile, tp)
    promoted = [sharded.describe()] if sharded.promoted else []
    unchecked = [] if found.model else ["without a model's folder the fit of the head classes is not checked"]
    return [*found.warnings, *promoted, *unchecked]
