"""`redknot convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import console, emit_json, warn
from vllm_redknot.cli.conversion import Format, losses, render, write
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.target import settings
from vllm_redknot.heads.formats import load_profile


def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A head-class file of any known format.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="A file; for duo a folder, which gets two files."),
    ],
    to: Annotated[Format, typer.Option("--to", help="The format to write.")] = Format.NATIVE,
    lossy: Annotated[bool, typer.Option("--lossy", help="Convert even if something is lost.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at OUT.")] = False,
    duo_threshold: options.DuoThreshold = None,
    json: options.Json = False,
) -> None:
    """Rewrite head classes in another format, and say what that format has no place for.

    native keeps everything. v1 and v2 are the published RedKnot matrices (v2 names the attention layers of a
    hybrid model), duo is DuoAttention's full_attention_heads.tsv with its config.json, which has one window and one
    sink for all heads. The result is read back and compared: anything lost is named, and nothing is written
    without --lossy. Works without vLLM.

    Examples:

      redknot convert llama-70B_optimal_g15_lf_ret.json -o heads.json

      redknot convert heads.json --to duo -o duo-folder --lossy
    """
    profile = load_profile(source.expanduser(), settings(duo_threshold=duo_threshold).duo_threshold)
    files = render(profile, to)
    lost = losses(profile, files)
    if lost.items and not lossy:
        view = "what heads see stays the same" if lost.same_view else "WHAT HEADS SEE CHANGES"
        raise CliError(
            f"{source}: {to} has no place for {'; '.join(lost.items)} ({view}): add --lossy to leave that out"
        )
    written = write(files, output, overwrite=force)
    if json:
        emit_json(
            {
                "source": str(source),
                "source_format": profile.source_format,
                "format": str(to),
                "written": [str(path) for path in written],
                "lost": lost.items,
                "same_view": lost.same_view,
                "warnings": list(profile.warnings),
                "fingerprint": profile.fingerprint(),
            }
        )
        return
    for warning in profile.warnings:
        warn(warning)
    out = console()
    for path in written:
        out.print(str(path), soft_wrap=True)
    for item in lost.items:
        out.print(f"left out: {item}")
    if not lost.same_view:
        warn("heads see something else than in the original")
