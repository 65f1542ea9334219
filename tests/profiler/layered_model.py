"""A small Llama in which it is known how late rows may be skipped, written weight by weight.

As in `retrieval_model`, an induction head finds the token after an earlier "A", which takes two steps of all tokens: an
FFN in one layer and a previous-token head in another, one of which feeds the other. All else writes nothing, so context
tokens need the FFN up to the one layer, attention up to the other, and only K and V of the induction head's layer.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from retrieval_model import HEAD_DIM, HEADS, ROPE_THETA, SHARPNESS, rotation_pairs
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.model_shape import ModelShape

VOCABULARY = 24
LAYERS = 6
HIDDEN = 128
INTERMEDIATE = 32
CURRENT, PREVIOUS, ANSWER, COPY, CONSTANT = 0, 24, 48, 72, 96
SHAPE = ModelShape(
    num_layers=LAYERS,
    num_kv_heads=HEADS,
    num_attention_heads=HEADS,
    head_dim=HEAD_DIM,
    hidden_size=HIDDEN,
    vocab_size=VOCABULARY,
    model_type="llama",
    intermediate_size=INTERMEDIATE,
)


def _write_ffn(layer: torch.nn.Module, source: int, target: int) -> None:
    """What is in the one block is added to the other."""
    for token in range(VOCABULARY):
        layer.mlp.gate_proj.weight[token, CONSTANT] = 1.0
        layer.mlp.up_proj.weight[token, source + token] = 1.0
        layer.mlp.down_proj.weight[target + token, token] = 1 / 64


def _write_previous_token_head(layer: torch.nn.Module, source: int, target: int) -> None:
    attention = layer.self_attn
    half = HEAD_DIM // 2
    for pair in range(16):
        angle = torch.tensor(ROPE_THETA ** (-2 * pair / HEAD_DIM))
        attention.q_proj.weight[pair, CONSTANT] = SHARPNESS**0.5 * angle.cos()
        attention.q_proj.weight[pair + half, CONSTANT] = -(SHARPNESS**0.5) * angle.sin()
        attention.k_proj.weight[pair, CONSTANT] = SHARPNESS**0.5
    for token in range(VOCABULARY):
        attention.v_proj.weight[token, source + token] = 1.0
        attention.o_proj.weight[target + token, token] = 0.1


def _write_induction_head(layer: torch.nn.Module) -> None:
    attention = layer.self_attn
    _, slow = rotation_pairs()
    for token in range(VOCABULARY):
        attention.q_proj.weight[slow[token], CURRENT + token] = SHARPNESS**0.5
        attention.k_proj.weight[slow[token], PREVIOUS + token] = SHARPNESS**0.5
        attention.v_proj.weight[token, CURRENT + token] = 1.0
        attention.o_proj.weight[ANSWER + token, token] = 0.1


@torch.no_grad()
def write_layered_model(folder: Path, ffn: int, attention: int, induction: int) -> None:
    """Save the model; the numbers are layers, `induction` the last of them."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
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
    layers = model.model.layers
    if ffn < attention:
        _write_ffn(layers[ffn], CURRENT, COPY)
        _write_previous_token_head(layers[attention], COPY, PREVIOUS)
    else:
        _write_previous_token_head(layers[attention], CURRENT, COPY)
        _write_ffn(layers[ffn], COPY, PREVIOUS)
    _write_induction_head(layers[induction])
    model.save_pretrained(folder)


def cases(number: int, length: int = 260) -> list[Case]:
    """So many needles, a pair A B far from the end with A asked for, and as many texts."""
    made = []
    for seed in range(number):
        draw = random.Random(seed)
        tokens = [draw.randrange(VOCABULARY - 2) for _ in range(length)]
        at = draw.randrange(20, 100)
        tokens[at : at + 2] = [VOCABULARY - 1, draw.randrange(VOCABULARY - 2)]
        made.append(Case("needle", (*tokens, VOCABULARY - 1), (tokens[at + 1],), (at, at + 2)))
        made.append(Case("essays", tuple(tokens[:-20]), tuple(tokens[-20:]), (0, 0)))
    return made
