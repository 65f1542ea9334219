"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from vllm_redknot.cli.units import parse_tokens

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
    Path | None, typer.Option("--png", metavar="OUT", help="Write a picture as well; needs matplotlib.")
]
