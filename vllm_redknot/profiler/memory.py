"""What a profiling run needs, before it starts. Bytes, estimates from above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vllm_redknot.heads.model_shape import ModelShape

HIDDEN_COPIES: Final = 16
"""Rows of hidden size that a layer keeps for its backward pass: norms, residuals, projections in and out."""
MLP_COPIES: Final = 6
"""Rows of intermediate size: gate, up, activation, product, and what casting adds."""
HEAD_COPIES: Final = 12
"""Rows of all query heads: q, k and v under two windows, both outputs, their mixture and its gradient."""
BASE_BYTES: Final = 2**30
"""A Python process with torch and transformers."""
STATES: Final = 3
"""Hidden states a calibration of row skipping keeps of each case; as in `row_judge`, which needs torch."""
PREDICTED: Final = 0.25
"""Share of the layers whose FFN inputs it keeps; as in `row_predictor`, which needs torch."""
GRADIENTS: Final = 0.75
"""Share of the layers that its backward passes go through: those, and the late ones."""
BLOCK: Final = 128
"""Queries of a block of windowed attention; as in `windowed`."""
ESSAY_ANSWER: Final = 256
"""Tokens of an essay's answer; as in `calibration`."""


def run_bytes(
    shape: ModelShape, weight_bytes: int | None, tokens: int, window: int, element_bytes: int
) -> int:
    """Peak of a run whose longest text has `tokens` tokens: weights, and what all layers keep for the gradients.

    `window` is the smallest: of its attention, weights and the keys of each block of queries are kept.
    """
    intermediate = shape.intermediate_size or 4 * shape.hidden_size
    seen = window + BLOCK
    row = (
        HIDDEN_COPIES * shape.hidden_size
        + MLP_COPIES * intermediate
        + HEAD_COPIES * shape.num_attention_heads * shape.head_dim
        + shape.num_attention_heads * seen
        + 2 * shape.num_kv_heads * shape.head_dim * seen // min(window, BLOCK)
    )
    return BASE_BYTES + (weight_bytes or 0) + shape.num_layers * tokens * row * element_bytes


def row_run_bytes(
    shape: ModelShape,
    weight_bytes: int | None,
    lengths: Sequence[int],
    texts: int,
    element_bytes: int,
    predictors: bool,
) -> int:
    """Peak of a calibration of row skipping: weights, layers at work, and what is kept of every case."""
    intermediate = shape.intermediate_size or 4 * shape.hidden_size
    row = (
        HIDDEN_COPIES * shape.hidden_size
        + MLP_COPIES * intermediate
        + HEAD_COPIES * shape.num_attention_heads * shape.head_dim
    )
    tokens = 3 * texts * sum(lengths)
    inputs = PREDICTED * shape.num_layers if predictors else 0
    kept = tokens * (STATES + inputs) * shape.hidden_size * element_bytes
    layers = max(1.0, GRADIENTS * shape.num_layers) if predictors else 1
    at_work = layers * max(lengths) * row * element_bytes
    # Of an essay's answer: fp16 that is kept, and fp32 logits, log-probabilities and their difference for one.
    logprobs = ESSAY_ANSWER * shape.vocab_size * (2 * texts * len(lengths) + 4 * 4)
    return BASE_BYTES + (weight_bytes or 0) + round(at_work + kept) + logprobs
