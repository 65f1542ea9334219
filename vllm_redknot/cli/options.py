"""Options that several commands have."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_redknot.cli.units import parse_bytes, parse_tokens
from vllm_redknot.config import ALL_GLOBAL
from vllm_redknot.heads import native
from vllm_redknot.heads.documents import decode, parse_object, read_bytes
from vllm_redknot.heads.errors import HeadFileError
from vllm_redknot.rows.schedule import SECTION

ROWS_OFF = "off"
MOST_TEXTS = 1000
"""Of each kind, at each length: all are made before the first is asked."""
LARGEST = 1e6
"""Of limits and weights that have no bound of their own: documents cannot say infinity."""


class Policy(StrEnum):
    """Which tokens of moved documents KV reuse recomputes."""

    BOUNDARY = "boundary"
    BLEND = "blend"


def parse_rows(text: str) -> dict[str, Any] | str:
    """A schedule of rows as JSON, the file that holds one (or is a head-class file that does), or "off".

    Raises:
        typer.BadParameter: It is none of these, or a file that cannot be read.
    """
    if text == ROWS_OFF:
        return text
    if text.lstrip().startswith("{"):
        try:
            stated = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise typer.BadParameter(
                f"{text!r:.80} is no JSON object ({error}): give one such as"
                ' {"ffn_from": 20, "attention_from": 24}'
            ) from error
        assert isinstance(stated, dict)
        return stated
    path = Path(text).expanduser()
    try:
        stated = parse_object(decode(read_bytes(path), path), path)
        if not native.matches(stated):
            return stated
        rows = native.read(path, stated).sections.get(SECTION)
    except HeadFileError as error:
        raise typer.BadParameter(
            f'{text!r:.80} is neither "{ROWS_OFF}" nor a JSON object nor a file that holds one ({error})'
        ) from error
    if not isinstance(rows, dict):
        raise typer.BadParameter(f"{path} is a head-class file without a section {SECTION!r}: give another")
    return rows


def parse_png(text: str) -> Path:
    """The path of a picture to write. Raises typer.BadParameter for another kind of file."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise typer.BadParameter(f"{text!r} is no name of a PNG file: give one that ends in .png")
    return path


def parse_kv_bytes(text: str) -> int:
    """As `parse_bytes`, but for 0, with which no server starts."""
    count = parse_bytes(text)
    if not count:
        raise typer.BadParameter("0 bytes hold no request: give more, or leave the option out")
    return count


def absolute_heads(heads: str | None) -> str | None:
    """The setting `heads` for a server that may be started in another folder."""
    # An empty path is left to the settings, which refuse it.
    return heads if not heads or heads == ALL_GLOBAL else str(Path(heads).expanduser().absolute())


def kv_bytes(means: str, default: str | bool = True) -> Any:
    """--kv-bytes; what it is of, and what it is by default, differ by command."""
    names = ("--kv-cache-memory-bytes", "--kv-bytes")
    return typer.Option(*names, metavar="BYTES", parser=parse_kv_bytes, help=means, show_default=default)


def max_model_len(means: str, default: str) -> Any:
    """--max-model-len; see `kv_bytes`."""
    return typer.Option(metavar="TOKENS", parser=parse_tokens, help=means, show_default=default)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
Heads = Annotated[
    str | None,
    typer.Option(
        "--heads",
        metavar="FILE",
        help='A head-class file, or "all-global". Without it: beside the model, bundled, else all global.',
    ),
]
Window = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", help="Replace the window of every local head.", show_default=False),
]
Sink = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", help="Replace the sink of every local head.", show_default=False),
]
DensePrefix = Annotated[
    int | None,
    typer.Option("--dense-prefix-layers", metavar="N", help="Make the first N attention layers dense."),
]
DuoThreshold = Annotated[
    float | None,
    typer.Option(metavar="X", help="DuoAttention heads that score above it are global.", show_default="0.5"),
]
MaxGroups = Annotated[
    int | None, typer.Option(metavar="N", help="Bound on vLLM's KV-cache groups.", show_default="16")
]
BatchedTokens = Annotated[
    int,
    typer.Option(
        "--max-num-batched-tokens",
        "--batched-tokens",
        metavar="TOKENS",
        parser=parse_tokens,
        help="vLLM's --max-num-batched-tokens: tokens of a step, which local heads keep beside their window.",
    ),
]
TensorParallel = Annotated[
    int, typer.Option("--tensor-parallel-size", "--tp", metavar="N", min=1, help="GPUs that share the heads.")
]
Png = Annotated[
    Path | None,
    typer.Option("--png", metavar="OUT", parser=parse_png, help="Write a picture as well; needs matplotlib."),
]
Rows = Annotated[
    Any,
    typer.Option(
        "--rows",
        metavar="JSON|FILE|off",
        parser=parse_rows,
        help="What prompt tokens skip, see docs/row_skipping.md.",
        show_default="the head file's",
    ),
]
Ablation = Annotated[
    bool,
    typer.Option(
        "--ablation", help="Also head classes without row skipping, and row skipping with all heads global."
    ),
]
BlockSize = Annotated[
    int, typer.Option(min=16, metavar="TOKENS", help="vLLM's --block-size: a multiple of 16.")
]


def check_block_size(tokens: int) -> None:
    """Raises typer.BadParameter for pages REDKNOT cannot have."""
    if tokens % 16:
        raise typer.BadParameter(f"--block-size is {tokens}: REDKNOT has pages of a multiple of 16 tokens")
