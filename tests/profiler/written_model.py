"""Parts of small Llamas written weight by weight, whose heads are therefore known.

Tokens are one-hot in blocks of the residual stream. A previous-token head attends to the token before and copies it to
another block. An induction head then compares its own token with every key's *previous* token and copies the key's
token to a third block, which the output layer reads: after "... A B ... A" it says B, however far back that was. What
is not written adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HEAD_DIM = 64
HEADS = 2
HIDDEN = 2 * HEAD_DIM
SHARPNESS = 60.0
ROPE_THETA = 1e9
CURRENT = 0
"""The block of the token itself."""


@dataclass(frozen=True)
class Stream:
    """Number of tokens, and where in the residual stream the blocks begin; `constant` is always 1."""

    vocabulary: int
    previous: int
    answer: int
    constant: int


def rotation_pairs() -> tuple[list[int], list[int]]:
    """Dimensions of a head that turn fast, and those that hardly turn over a few thousand tokens."""
    half = HEAD_DIM // 2
    fast = [*range(16), *range(half, half + 16)]
    slow = [*range(16, half), *range(half + 16, HEAD_DIM)]
    return fast, slow


@torch.no_grad()
def empty_model(stream: Stream, layers: int, intermediate: int) -> LlamaForCausalLM:
    """Embeddings and output layer, and layers that write nothing."""
    config = LlamaConfig(
        vocab_size=stream.vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    for token in range(stream.vocabulary):
        model.model.embed_tokens.weight[token, CURRENT + token] = 1.0
        model.model.embed_tokens.weight[token, stream.constant] = 1.0
        model.lm_head.weight[token, stream.answer + token] = 4.0
    return model


@torch.no_grad()
def write_previous_token_head(
    layer: torch.nn.Module, head: int, stream: Stream, source: int, target: int
) -> None:
    """q and k depend on the position alone: rotated so that they agree best one token apart."""
    attention = layer.self_attn
    row = head * HEAD_DIM
    half = HEAD_DIM // 2
    for pair in range(16):
        angle = torch.tensor(ROPE_THETA ** (-2 * pair / HEAD_DIM))
        # A query turned back by one step meets the key before it.
        attention.q_proj.weight[row + pair, stream.constant] = SHARPNESS**0.5 * angle.cos()
        attention.q_proj.weight[row + pair + half, stream.constant] = -(SHARPNESS**0.5) * angle.sin()
        attention.k_proj.weight[row + pair, stream.constant] = SHARPNESS**0.5
    for token in range(stream.vocabulary):
        attention.v_proj.weight[row + token, source + token] = 1.0
        attention.o_proj.weight[target + token, row + token] = 0.1


@torch.no_grad()
def write_induction_head(layer: torch.nn.Module, head: int, stream: Stream) -> None:
    """Finds the key whose previous token is the query's own."""
    attention = layer.self_attn
    row = head * HEAD_DIM
    _, slow = rotation_pairs()
    for token in range(stream.vocabulary):
        attention.q_proj.weight[row + slow[token], CURRENT + token] = SHARPNESS**0.5
        attention.k_proj.weight[row + slow[token], stream.previous + token] = SHARPNESS**0.5
        attention.v_proj.weight[row + token, CURRENT + token] = 1.0
        attention.o_proj.weight[stream.answer + token, row + token] = 0.1
