"""The head map in panels that a phone can show: a mark's size and letter say what its colour says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vllm_redknot.heads.head_map import CLASS_SYMBOLS, LOCAL_SYMBOLS, ONE_LOCAL, head_map
from vllm_redknot.heads.profile import HeadProfile

MAX_CELLS: Final = 32 * 1024
"""Heads up to which a map is drawn."""
PANEL_HEADS: Final = 32
PANEL_WIDTH: Final = 300.0
LABEL: Final = 30.0
TOP: Final = 16.0
ROW: Final = 17.0
LETTERS_FROM: Final = 9.0
"""Width of a cell, in pixels, that has room for a letter."""


@dataclass(frozen=True)
class Mark:
    """All cells of one kind in a panel, as one path."""

    style: str
    path: str


@dataclass(frozen=True)
class Run:
    """Letters of one style with their horizontal centres."""

    style: str
    letters: str
    xs: str


@dataclass(frozen=True)
class Line:
    """One layer: its number, and the letters of its heads."""

    label: str
    y: float
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Panel:
    """Some layers and heads; sizes in pixels. `description` is for those who do not see it."""

    width: float
    height: float
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...]
    columns: tuple[tuple[float, str], ...]
    description: str


@dataclass(frozen=True)
class Swatch:
    """A line of the legend."""

    symbol: str
    style: str
    path: str
    meaning: str
    heads: int
    share: float


@dataclass(frozen=True)
class Map:
    """Panels in reading order, and the legend. No panels where there are more heads than MAX_CELLS."""

    panels: tuple[Panel, ...]
    legend: tuple[Swatch, ...]


def head_map_chart(profile: HeadProfile) -> Map:
    """The classes that apply, the dense prefix included."""
    found = head_map(profile)
    total = sum(entry.heads for entry in found.legend)
    legend = tuple(
        Swatch(
            entry.symbol,
            _style(entry.symbol),
            _square(8.0, 8.0, 14.0, _size(entry.symbol)),
            entry.meaning,
            entry.heads,
            entry.heads / total,
        )
        for entry in found.legend
    )
    if total > MAX_CELLS:
        return Map((), legend)
    return Map(tuple(_panels(found.layers, found.cells)), legend)


def _panels(layers: Sequence[int], cells: Sequence[str]) -> Iterator[Panel]:
    heads = len(cells[0])
    rows = 10 if heads <= 4 else 20 if heads <= 8 else 40
    rows = -(-len(layers) // -(-len(layers) // rows))
    for first in range(0, heads, PANEL_HEADS):
        last = min(first + PANEL_HEADS, heads)
        for top in range(0, len(layers), rows):
            bottom = min(top + rows, len(layers))
            yield _panel(layers[top:bottom], [row[first:last] for row in cells[top:bottom]], first)


def _panel(layers: Sequence[int], cells: Sequence[str], first: int) -> Panel:
    count = len(cells[0])
    # Two panels of eight heads stand side by side on a phone, and three of three.
    step = min(22.0 if count <= 4 else 16.5, PANEL_WIDTH / count)
    marks: dict[str, list[str]] = {}
    lines = []
    for index, (layer, row) in enumerate(zip(layers, cells, strict=True)):
        middle = TOP + ROW * (index + 0.5)
        centres = [LABEL + step * (head + 0.5) for head in range(count)]
        for centre, symbol in zip(centres, row, strict=True):
            square = _square(centre, middle, min(step, ROW) - 1.5, _size(symbol))
            marks.setdefault(symbol, []).append(square)
        runs = _runs(centres, row) if step >= LETTERS_FROM else ()
        lines.append(Line(str(layer), middle + 3.5, runs))
    every = 1 if step >= 16 else 4 if step >= 6 else 8
    columns = tuple((LABEL + step * (head + 0.5), str(first + head)) for head in range(0, count, every))
    return Panel(
        width=LABEL + step * count + 4,
        height=TOP + ROW * len(layers) + 2,
        marks=tuple(Mark(_style(symbol), "".join(paths)) for symbol, paths in sorted(marks.items())),
        lines=tuple(lines),
        columns=columns,
        description=f"layers {layers[0]} to {layers[-1]}, KV heads {first} to {first + count - 1}",
    )


def _runs(centres: Sequence[float], row: str) -> tuple[Run, ...]:
    """Letters of heads that see all, and digits of local ones; a dot is its mark and needs no letter."""
    styles = {"letter": CLASS_SYMBOLS.values(), "digit": LOCAL_SYMBOLS}
    found = []
    for style, symbols in styles.items():
        kept = [(x, symbol) for x, symbol in zip(centres, row, strict=True) if symbol in symbols]
        if kept:
            xs = " ".join(f"{x:.1f}" for x, _ in kept)
            found.append(Run(style, "".join(symbol for _, symbol in kept), xs))
    return tuple(found)


def _square(x: float, y: float, side: float, share: float) -> str:
    edge = side * share
    return f"M{x - edge / 2:.1f} {y - edge / 2:.1f}h{edge:.1f}v{edge:.1f}h-{edge:.1f}z"


def _size(symbol: str) -> float:
    """Side of the mark as a share of its cell: heads that see more are larger."""
    if symbol == ONE_LOCAL:
        return 0.3
    if symbol in LOCAL_SYMBOLS:
        return 0.3 + 0.5 * (LOCAL_SYMBOLS.index(symbol) + 1) / len(LOCAL_SYMBOLS)
    return 1.0


def _style(symbol: str) -> str:
    """A class name of the style sheet."""
    for cls, letter in CLASS_SYMBOLS.items():
        if symbol == letter:
            return f"head-{cls.value}"
    return "head-local"
