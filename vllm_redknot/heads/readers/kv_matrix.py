"""RedKnot V1 (`kv_head_*` matrices, a row per layer) and V2 (the same, a row per full-attention layer).

Only the matrices count: `summary`, `window`, `sink_size` and the texts of such files are known to be stale.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vllm_redknot.heads.documents import Document, position_count
from vllm_redknot.heads.profile import MAX_POSITIONS, HeadClass, HeadProfile, ModelIdentity, Provenance
from vllm_redknot.heads.readers.random_draw import RANDOM_WARNING, drawn_positions

DEFAULT_WINDOW: Final = 512
DEFAULT_SINK: Final = 4
ALIASES: Final = {
    **{cls.value: cls for cls in HeadClass},
    **dict.fromkeys(("local_full", "limited", "streaming", "sink_dominant"), HeadClass.LOCAL),
}


def matches_v1(document: Mapping[str, Any]) -> bool:
    return "kv_head_classification" in document and "full_attention_layers" not in document


def matches_v2(document: Mapping[str, Any]) -> bool:
    return "kv_head_classification" in document and "full_attention_layers" in document


def read_v1(path: Path, values: Mapping[str, Any]) -> HeadProfile:
    document = Document(path, values)
    return _read(document, tuple(range(document.layers())), "RedKnot V1")


def read_v2(path: Path, values: Mapping[str, Any]) -> HeadProfile:
    """Rows stand for the layers of `full_attention_layers`; `dense_prefix_layers` counts rows, as in V1."""
    document = Document(path, values)
    return _read(document, document.layer_ids("full_attention_layers", document.layers()), "RedKnot V2")


def _read(document: Document, layer_ids: tuple[int, ...], source_format: str) -> HeadProfile:
    rows, heads = len(layer_ids), document.heads("num_kv_heads")
    names, count = f"one of {', '.join(ALIASES)}", f"an integer from -1 (none) to {MAX_POSITIONS}"
    classes = document.matrix("kv_head_classification", rows, heads, head_class, names)
    distance = document.matrix("kv_head_max_distance", rows, heads, position_count, count)
    sink = ((DEFAULT_SINK,) * heads,) * rows
    if document.values.get("kv_head_sink_size") is not None:
        wanted = f"an integer from 0 to {MAX_POSITIONS}"
        sink = document.matrix("kv_head_sink_size", rows, heads, sink_size, wanted)
    window = tuple(
        tuple(local_window(cls, given, DEFAULT_WINDOW) for cls, given in zip(*pair, strict=True))
        for pair in zip(classes, distance, strict=True)
    )
    return HeadProfile(
        classes=classes,
        window=window,
        sink=sink,
        layer_ids=layer_ids,
        dense_prefix_layers=document.integer("dense_prefix_layers", 0, rows, default=0),
        identity=ModelIdentity(
            name=document.text("hf_repo") or document.text("model"),
            model_type=document.text("model_type"),
            num_kv_heads=heads,
        ),
        provenance=Provenance(
            method=document.text("method"),
            notes=document.text("notes"),
            parameters={"retrieval_top_p": document.number("retrieval_top_p", 0.0, 1.0, default=0.9)},
        ),
        source_format=source_format,
        warnings=_warnings(classes, distance),
    )


def _warnings(
    classes: tuple[tuple[HeadClass, ...], ...], distance: tuple[tuple[int, ...], ...]
) -> tuple[str, ...]:
    warnings: list[str] = []
    shape = (len(classes), len(classes[0]))
    places = {(row, head) for row in range(shape[0]) for head in range(shape[1])}
    global_places = {(row, head) for row, head in places if classes[row][head] is HeadClass.GLOBAL}
    # Fewer than three places can coincide with the draw by chance.
    if 2 < len(global_places) < len(places) and global_places == drawn_positions(*shape, len(global_places)):
        warnings.append(RANDOM_WARNING)
    unset = sum(classes[r][h] is HeadClass.LOCAL and distance[r][h] <= 0 for r, h in places)
    if unset:
        warnings.append(f"{unset} local heads state no window: they get {DEFAULT_WINDOW}")
    return tuple(warnings)


def head_class(value: Any) -> HeadClass | None:
    return ALIASES.get(value) if isinstance(value, str) else None


def sink_size(value: Any) -> int | None:
    count = position_count(value)
    return None if count is None or count < 0 else count


def local_window(cls: HeadClass, distance: int, default: int) -> int | None:
    """The window of a head; files also put numbers beside heads that are not local, which mean nothing."""
    if cls is not HeadClass.LOCAL:
        return None
    return distance if distance > 0 else default
