"""Head-class files for engine tests, in a published format (V1), or with a schedule of rows in the native one."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_redknot.heads import native
from vllm_redknot.heads.formats import load_profile

Limits = tuple[int, int] | None
"""(window, sink) of a local head, None for a global one."""


def random_heads(layers: int, heads: int, seed: int, global_share: float = 0.3) -> list[list[Limits]]:
    """Classes, windows and sinks drawn at random; windows start and end anywhere in a page."""
    draw = random.Random(seed)

    def head() -> Limits:
        if draw.random() < global_share:
            return None
        return draw.choice([1, 7, 32, 100, 257]), draw.choice([0, 1, 5, 40])

    return [[head() for _ in range(heads)] for _ in range(layers)]


def write(folder: Path, heads: Sequence[Sequence[Limits]]) -> str:
    """The path of a file that states these heads."""
    path = folder / "heads.json"
    document = {
        "num_layers": len(heads),
        "num_kv_heads": len(heads[0]),
        "kv_head_classification": [["global" if h is None else "local" for h in row] for row in heads],
        "kv_head_max_distance": [[-1 if h is None else h[0] for h in row] for row in heads],
        "kv_head_sink_size": [[0 if h is None else h[1] for h in row] for row in heads],
    }
    path.write_text(json.dumps(document))
    return str(path)


def with_rows(path: Path | str, rows: dict[str, Any], folder: Path) -> str:
    """The path of a file in `folder` that states the heads of another and this schedule of rows."""
    changed = folder / "heads-and-rows.json"
    native.write(replace(load_profile(Path(path)), sections={"rows": rows}), changed)
    return str(changed)
