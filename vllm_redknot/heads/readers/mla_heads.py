"""RedKnot V4: classes of the logical heads of an MLA (DeepSeek) model, which share one latent KV head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vllm_redknot.heads.documents import Document, position_count
from vllm_redknot.heads.profile import MAX_POSITIONS, HeadClass, HeadKind, HeadProfile, ModelIdentity
from vllm_redknot.heads.readers.kv_matrix import local_window

FORMAT: Final = "redknot_deepseek_v4_mla_head_config_v1"
CLASSES: Final = {cls.value: cls for cls in (HeadClass.LOCAL, HeadClass.GLOBAL, HeadClass.DENSE)}


def matches(document: Mapping[str, Any]) -> bool:
    return document.get("format") == FORMAT


def read(path: Path, values: Mapping[str, Any]) -> HeadProfile:
    """[L][Hq] classes of `HeadKind.MLA`. A window or sink <= 0 means the file's default."""
    document = Document(path, values)
    rows, heads = document.layers(), document.heads("num_attention_heads")
    document.integer("physical_kv_heads", 1, 1)
    default_window = document.integer("local_default_window", 1, MAX_POSITIONS)
    default_sink = document.integer("default_sink_size", 0, MAX_POSITIONS)
    classes = document.matrix("mla_head_classification", rows, heads, _class, f"one of {', '.join(CLASSES)}")
    count = f"an integer from -1 (none) to {MAX_POSITIONS}"
    distance = document.matrix("mla_head_max_distance", rows, heads, position_count, count)
    sink = ((default_sink,) * heads,) * rows
    if document.values.get("mla_head_sink_size") is not None:
        given = document.matrix("mla_head_sink_size", rows, heads, position_count, count)
        sink = tuple(tuple(entry if entry > 0 else default_sink for entry in row) for row in given)
    window = tuple(
        tuple(local_window(cls, given, default_window) for cls, given in zip(*pair, strict=True))
        for pair in zip(classes, distance, strict=True)
    )
    return HeadProfile(
        classes=classes,
        window=window,
        sink=sink,
        layer_ids=tuple(range(rows)),
        dense_prefix_layers=document.integer("dense_prefix_layers", 0, rows, default=0),
        kind=HeadKind.MLA,
        identity=ModelIdentity(num_layers=rows, num_attention_heads=heads, num_kv_heads=1),
        source_format="RedKnot V4",
    )


def _class(value: Any) -> HeadClass | None:
    return CLASSES.get(value) if isinstance(value, str) else None
