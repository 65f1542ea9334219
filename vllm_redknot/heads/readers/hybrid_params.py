"""RedKnot V3: parameters of a hybrid model; its class matrix is not in the file but drawn at random."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_redknot.heads.documents import Document
from vllm_redknot.heads.profile import MAX_POSITIONS, HeadClass, HeadProfile, ModelIdentity, Provenance
from vllm_redknot.heads.readers.random_draw import RANDOM_WARNING, drawn_positions


def matches(document: Mapping[str, Any]) -> bool:
    return "frac_global" in document and "num_full_layers" in document


def read(path: Path, values: Mapping[str, Any]) -> HeadProfile:
    """`round(frac_global * rows * heads)` places are global; the first `dense_full_layers` rows are dense."""
    document = Document(path, values)
    rows, heads = document.layers("num_full_layers"), document.heads("num_kv_heads")
    layer_ids = document.layer_ids("full_attention_layers", rows)
    fraction = document.number("frac_global", 0.0, 1.0)
    window = document.integer("window", 1, MAX_POSITIONS)
    drawn = drawn_positions(rows, heads, round(fraction * rows * heads))
    classes = tuple(
        tuple(HeadClass.GLOBAL if (row, head) in drawn else HeadClass.LOCAL for head in range(heads))
        for row in range(rows)
    )
    return HeadProfile(
        classes=classes,
        window=tuple(tuple(window if cls is HeadClass.LOCAL else None for cls in row) for row in classes),
        sink=((document.integer("sink_size", 0, MAX_POSITIONS),) * heads,) * rows,
        layer_ids=layer_ids,
        dense_prefix_layers=document.integer("dense_full_layers", 0, rows, default=0),
        identity=ModelIdentity(
            name=document.text("model"),
            model_type=document.text("model_type"),
            num_layers=document.layers(),
            num_attention_heads=document.heads("num_q_heads"),
            num_kv_heads=heads,
            head_dim=document.integer("head_dim", 1, 2**16),
        ),
        provenance=Provenance(method=document.text("method"), notes=document.text("notes")),
        source_format="RedKnot V3",
        warnings=(RANDOM_WARNING,),
    )
