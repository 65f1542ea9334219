"""A small Llama whose retrieval heads are known: induction heads in the layers after a previous-token head."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from written_model import (
    CURRENT,
    Stream,
    empty_model,
    write_induction_head,
    write_previous_token_head,
)

VOCABULARY = 32
LAYERS = 4
STREAM = Stream(VOCABULARY, previous=32, answer=64, constant=96)
Place = tuple[int, int]


def write_model(folder: Path, retrieval: Collection[Place]) -> None:
    """Save the model with induction heads at `retrieval`, as (layer, head) with layer >= 1."""
    model = empty_model(STREAM, LAYERS, intermediate=8)
    layers = model.model.layers
    write_previous_token_head(layers[0], 0, STREAM, CURRENT, STREAM.previous)
    for layer, head in retrieval:
        write_induction_head(layers[layer], head, STREAM)
    model.save_pretrained(folder)
