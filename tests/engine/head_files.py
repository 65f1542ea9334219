"""Head-class files for engine tests, in a published format (V1)."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

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
