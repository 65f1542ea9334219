"""Needle grids: length across, depth down, stock beside REDKNOT; the number is in the cell, shade repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from vllm_redknot.report.documents import Cell
from vllm_redknot.report.numbers import shown, tokens

COLUMN, ROW, LEFT, TOP = 32.0, 24.0, 38.0, 18.0
MAX_SIDE: Final = 64
"""Lengths and depths that are drawn."""
LIKELIHOODS: Final = frozenset({"nll", "kl"})
SIDES: Final[tuple[tuple[Literal["stock", "redknot"], str], ...]] = (
    ("stock", "stock"),
    ("redknot", "REDKNOT"),
)


@dataclass(frozen=True)
class Square:
    """One cell: pixels of its corner, its shade 0 to 1, its text."""

    x: float
    y: float
    shade: float
    text: str
    tip: str


@dataclass(frozen=True)
class Grid:
    """One side of one task; the last row is over all depths where the document has it."""

    title: str
    width: float
    height: float
    columns: tuple[tuple[float, str], ...]
    rows: tuple[tuple[float, str], ...]
    squares: tuple[Square, ...]
    description: str


@dataclass(frozen=True)
class Needles:
    """One task and metric."""

    task: str
    metric: str
    grids: tuple[Grid, ...]


def needle_charts(cells: Sequence[Cell]) -> list[Needles]:
    """A pair of grids a task that has depths, of metrics that are shares."""
    found = []
    for task, metric in dict.fromkeys((cell.task, cell.metric) for cell in cells):
        own = [
            cell for cell in cells if (cell.task, cell.metric) == (task, metric) and cell.length is not None
        ]
        if any(cell.depth is not None for cell in own) and _are_shares(metric, own):
            found.append(Needles(task, metric, tuple(_grid(own, side, title) for side, title in SIDES)))
    return found


def _are_shares(metric: str, cells: Sequence[Cell]) -> bool:
    """Whether every value is a share of cases. An NLL below 1 only looks like one."""
    values = [side.value for cell in cells for side in (cell.stock, cell.redknot) if side is not None]
    return metric not in LIKELIHOODS and all(0 <= value <= 1 for value in values)


def _grid(cells: Sequence[Cell], side: Literal["stock", "redknot"], title: str) -> Grid:
    lengths = sorted({cell.length for cell in cells if cell.length is not None})[:MAX_SIDE]
    depths: list[float | None] = list(
        sorted({cell.depth for cell in cells if cell.depth is not None})[:MAX_SIDE]
    )
    if any(cell.depth is None for cell in cells):
        depths.append(None)
    squares = []
    for cell in cells:
        estimate = getattr(cell, side)
        if estimate is None or cell.length not in lengths or cell.depth not in depths:
            continue
        interval = (
            ""
            if estimate.low is None or estimate.high is None
            else f", {shown(estimate.low)} to {shown(estimate.high)}"
        )
        where = "all depths" if cell.depth is None else f"depth {cell.depth:.0%}"
        squares.append(
            Square(
                LEFT + COLUMN * lengths.index(cell.length),
                TOP + ROW * depths.index(cell.depth),
                round(estimate.value, 3),
                f"{100 * estimate.value:.0f}",
                f"{title}, {tokens(cell.length)} tokens, {where}: {shown(estimate.value)}{interval}, n {cell.n}",
            )
        )
    return Grid(
        title=title,
        width=LEFT + COLUMN * len(lengths),
        height=TOP + ROW * len(depths),
        columns=tuple((LEFT + COLUMN * (i + 0.5), tokens(length)) for i, length in enumerate(lengths)),
        rows=tuple(
            (TOP + ROW * (i + 0.5) + 4, "all" if depth is None else f"{depth:.0%}")
            for i, depth in enumerate(depths)
        ),
        squares=tuple(squares),
        description=f"{title}: {len(lengths)} lengths by {len(depths)} depths",
    )
