"""A small Llama whose retrieval heads are known by construction: induction heads written weight by weight.

Tokens are one-hot in the residual stream. Layer 0, head 0 attends to the token before and copies it to a second block.
An induction head then compares its own token with every key's *previous* token and copies the key's token to a third
block, which the output layer reads: after "... A B ... A" it says B, however far back that was. All other heads and all
MLPs write nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 32
HEAD_DIM = 64
HEADS = 2
LAYERS = 4
HIDDEN = 2 * HEAD_DIM
CURRENT, PREVIOUS, ANSWER, CONSTANT = 0, 32, 64, 96
SHARPNESS = 60.0
ROPE_THETA = 1e9
Place = tuple[int, int]


def rotation_pairs() -> tuple[list[int], list[int]]:
    """Dimensions of a head that turn fast, and those that hardly turn over a few thousand tokens."""
    half = HEAD_DIM // 2
    fast = [*range(16), *range(half, half + 16)]
    slow = [*range(16, half), *range(half + 16, HEAD_DIM)]
    return fast, slow


def _write_previous_token_head(layer: torch.nn.Module, head: int) -> None:
    """q and k depend on the position alone: rotated so that they agree best one token apart."""
    attention = layer.self_attn
    row = head * HEAD_DIM
    half = HEAD_DIM // 2
    for pair in range(16):
        angle = torch.tensor(ROPE_THETA ** (-2 * pair / HEAD_DIM))
        # A query turned back by one step meets the key before it.
        attention.q_proj.weight[row + pair, CONSTANT] = SHARPNESS**0.5 * angle.cos()
        attention.q_proj.weight[row + pair + half, CONSTANT] = -(SHARPNESS**0.5) * angle.sin()
        attention.k_proj.weight[row + pair, CONSTANT] = SHARPNESS**0.5
    for token in range(VOCABULARY):
        attention.v_proj.weight[row + token, CURRENT + token] = 1.0
        attention.o_proj.weight[PREVIOUS + token, row + token] = 0.1


def _write_induction_head(layer: torch.nn.Module, head: int) -> None:
    attention = layer.self_attn
    row = head * HEAD_DIM
    _, slow = rotation_pairs()
    for token in range(VOCABULARY):
        attention.q_proj.weight[row + slow[token], CURRENT + token] = SHARPNESS**0.5
        attention.k_proj.weight[row + slow[token], PREVIOUS + token] = SHARPNESS**0.5
        attention.v_proj.weight[row + token, CURRENT + token] = 1.0
        attention.o_proj.weight[ANSWER + token, row + token] = 0.1


@torch.no_grad()
def write_model(folder: Path, retrieval: Collection[Place]) -> None:
    """Save the model with induction heads at `retrieval`, as (layer, head) with layer >= 1."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
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
    for token in range(VOCABULARY):
        model.model.embed_tokens.weight[token, CURRENT + token] = 1.0
        model.model.embed_tokens.weight[token, CONSTANT] = 1.0
        model.lm_head.weight[token, ANSWER + token] = 4.0
    _write_previous_token_head(model.model.layers[0], 0)
    for layer, head in retrieval:
        _write_induction_head(model.model.layers[layer], head)
    model.save_pretrained(folder)
