"""A small Llama in which it is known how late rows may be skipped, written weight by weight.

As in `retrieval_model`, an induction head finds the token after an earlier "A", which takes two steps of all tokens: an
FFN in one layer and a previous-token head in another, one of which feeds the other. All else writes nothing, so context
tokens need the FFN up to the one layer, attention up to the other, and only K and V of the induction head's layer.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from written_model import (
    CURRENT,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    Stream,
    empty_model,
    write_induction_head,
    write_previous_token_head,
)

from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.model_shape import ModelShape

VOCABULARY = 24
LAYERS = 6
INTERMEDIATE = 32
STREAM = Stream(VOCABULARY, previous=24, answer=48, constant=96)
COPY = 72
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
        layer.mlp.gate_proj.weight[token, STREAM.constant] = 1.0
        layer.mlp.up_proj.weight[token, source + token] = 1.0
        layer.mlp.down_proj.weight[target + token, token] = 1 / 64


@torch.no_grad()
def write_layered_model(folder: Path, ffn: int, attention: int, induction: int) -> None:
    """Save the model; the numbers are layers, `induction` the last of them."""
    model = empty_model(STREAM, LAYERS, INTERMEDIATE)
    layers = model.model.layers
    if ffn < attention:
        _write_ffn(layers[ffn], CURRENT, COPY)
        write_previous_token_head(layers[attention], 0, STREAM, COPY, STREAM.previous)
    else:
        write_previous_token_head(layers[attention], 0, STREAM, CURRENT, COPY)
        _write_ffn(layers[ffn], COPY, STREAM.previous)
    write_induction_head(layers[induction], 0, STREAM)
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
