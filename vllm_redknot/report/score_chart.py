"""Scores of (layer, KV head) as a grid of marks whose size is the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vllm_redknot.report.documents import ProfileDocument
from vllm_redknot.report.numbers import shown

MAX_CELLS: Final = 16 * 1024
LABEL, TOP, WIDTH, HEIGHT = 30.0, 6.0, 350.0, 150.0
LEAST: Final = 0.06
"""Side of the smallest mark, as a share of its cell: nothing is still a mark."""


@dataclass(frozen=True)
class ScoreMap:
    """One score, layers across and KV heads down."""

    name: str
    path: str
    width: float
    height: float
    columns: tuple[tuple[float, str], ...]
    rows: tuple[tuple[float, str], ...]
    description: str


def score_charts(document: ProfileDocument) -> list[ScoreMap]:
    """A map a score; none where there are more than MAX_CELLS heads."""
    layers, heads = document.shape
    if layers * heads > MAX_CELLS:
        return []
    return [_map(name, matrix) for name, matrix in document.scores.items()]


def _map(name: str, matrix: list[list[float | None]]) -> ScoreMap:
    layers, heads = len(matrix), len(matrix[0])
    values = [value for row in matrix for value in row if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    across = (WIDTH - LABEL) / layers
    down = min(across if heads * across >= 40 else 14.0, max(3.0, HEIGHT / heads))
    squares = []
    for layer, row in enumerate(matrix):
        for head, value in enumerate(row):
            if value is None:
                continue
            # An area, not a side, is what the eye compares.
            share = max(LEAST, ((value - low) / (high - low)) ** 0.5 if high > low else 1.0)
            width, height = share * across, share * down
            x, y = LABEL + across * (layer + 0.5) - width / 2, TOP + down * (head + 0.5) - height / 2
            squares.append(f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z")
    every_layer, every_head = max(1, -(-layers // 10)), max(1, -(-heads // 8))
    return ScoreMap(
        name=name,
        path="".join(squares),
        width=WIDTH,
        height=TOP + down * heads + 18,
        columns=tuple((LABEL + across * (i + 0.5), str(i)) for i in range(0, layers, every_layer)),
        rows=tuple((TOP + down * (i + 0.5) + 4, str(i)) for i in range(0, heads, every_head)),
        description=f"{name} of {layers} layers by {heads} KV heads, {shown(low)} to {shown(high)}",
    )
