"""DuoAttention: `full_attention_heads.tsv` (L x H scores) and the `config.json` beside it (the two sizes)."""

import math
from pathlib import Path
from typing import Final

from vllm_redknot.heads.documents import Document, decode, parse_object, read_bytes, shown
from vllm_redknot.heads.errors import HeadFileError
from vllm_redknot.heads.profile import MAX_POSITIONS, HeadClass, HeadProfile, ModelIdentity, Provenance

TSV_NAME: Final = "full_attention_heads.tsv"
CONFIG_NAME: Final = "config.json"


def matches(text: str) -> bool:
    """True for text that begins with a number, finite or not."""
    first = text.split(maxsplit=1)[:1]
    return bool(first) and _parsed(first[0]) is not None


def read(path: Path, text: str, threshold: float) -> HeadProfile:
    """A head with a score above `threshold` is global; others have sink `sink_size`, window `recent_size`."""
    scores = _scores(path, text)
    document = _sizes(path)
    window = document.integer("recent_size", 1, MAX_POSITIONS)
    sink = document.integer("sink_size", 0, MAX_POSITIONS)
    classes = tuple(
        tuple(HeadClass.GLOBAL if score > threshold else HeadClass.LOCAL for score in row) for row in scores
    )
    return HeadProfile(
        classes=classes,
        window=tuple(tuple(window if cls is HeadClass.LOCAL else None for cls in row) for row in classes),
        sink=((sink,) * len(scores[0]),) * len(scores),
        layer_ids=tuple(range(len(scores))),
        identity=ModelIdentity(num_layers=len(scores), num_kv_heads=len(scores[0])),
        provenance=Provenance(method="DuoAttention", parameters={"threshold": threshold}),
        source_format="DuoAttention",
    )


def _sizes(path: Path) -> Document:
    beside = path.with_name(CONFIG_NAME)
    if not beside.exists():
        remedy = f'Put the {CONFIG_NAME} of the same folder there: {{"sink_size": 64, "recent_size": 256}}.'
        raise HeadFileError(path, f"{CONFIG_NAME} beside it", "is missing", remedy)
    return Document(beside, parse_object(decode(read_bytes(beside), beside), beside))


def _scores(path: Path, text: str) -> list[list[float]]:
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        row = [_number(cell) for cell in cells]
        if None in row:
            problem = f"has {shown(cells[row.index(None)])}"
            raise HeadFileError(path, f"line {number}", problem, "Give finite numbers, one for each head.")
        if rows and len(row) != len(rows[0]):
            problem, remedy = f"has {len(row)} numbers", f"Give {len(rows[0])}, as in the first line."
            raise HeadFileError(path, f"line {number}", problem, remedy)
        rows.append([score for score in row if score is not None])
    return rows


def _number(cell: str) -> float | None:
    value = _parsed(cell)
    return value if value is not None and math.isfinite(value) else None


def _parsed(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
