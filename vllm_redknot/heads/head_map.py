"""A head profile as a grid of letters, rows layers, columns KV heads: a letter says it all, colour only repeats it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from vllm_redknot.heads.profile import HeadClass, HeadProfile, HeadVisibility

CLASS_SYMBOLS: Final = {HeadClass.GLOBAL: "G", HeadClass.DENSE: "D", HeadClass.RETRIEVAL: "R"}
ONE_LOCAL: Final = "."
LOCAL_SYMBOLS: Final = "123456789"
GAP: Final = 3
"""Blanks between two panels."""


class Entry(NamedTuple):
    """One line of the legend."""

    symbol: str
    meaning: str
    heads: int


@dataclass(frozen=True)
class HeadMap:
    """`cells[row][head]` is one character, `layers[row]` the layer's number; the legend explains every character."""

    layers: tuple[int, ...]
    cells: tuple[str, ...]
    legend: tuple[Entry, ...]

    def lines(self, width: int) -> Iterator[str]:
        """The grid in `width` columns, the layers in as many panels side by side as fit.

        Where not even one panel fits, the heads are split over several grids.
        """
        label = len(str(self.layers[-1])) + 1
        heads = len(self.cells[0])
        step = 2 if label + 2 * heads <= width else 1
        at_once = max(1, min(heads, (width - label) // step))
        for first in range(0, heads, at_once):
            if first:
                yield ""
            yield from self._grid(range(first, min(first + at_once, heads)), label, step, width)

    def _grid(self, heads: range, label: int, step: int, width: int) -> Iterator[str]:
        panel = label + step * len(heads)
        panels = max(1, min(len(self.layers), (width + GAP) // (panel + GAP)))
        rows = -(-len(self.layers) // panels)
        panels = -(-len(self.layers) // rows)
        for header in _headers(heads, step):
            yield (" " * GAP).join([" " * label + header] * panels).rstrip()
        for row in range(rows):
            places = range(row, len(self.layers), rows)
            yield (" " * GAP).join(self._row(place, heads, label, step) for place in places).rstrip()

    def _row(self, place: int, heads: range, label: int, step: int) -> str:
        cells = "".join(self.cells[place][head].rjust(step) for head in heads)
        return str(self.layers[place]).rjust(label - 1) + " " + cells


def head_map(profile: HeadProfile) -> HeadMap:
    """The grid of what applies, the dense prefix included."""
    local = sorted({seen for _, _, cls, seen in _heads(profile) if cls is HeadClass.LOCAL})
    symbol_of = _local_symbols(local)
    cells, counts = [], Counter[str]()
    for layer in profile.layer_ids:
        row = "".join(
            symbol_of[profile.visibility(layer, head)] if cls is HeadClass.LOCAL else CLASS_SYMBOLS[cls]
            for head in range(profile.num_kv_heads)
            for cls in (profile.head_class(layer, head),)
        )
        cells.append(row)
        counts.update(row)
    meanings = {symbol: f"{cls.value}: sees everything" for cls, symbol in CLASS_SYMBOLS.items()}
    for symbol in dict.fromkeys(symbol_of.values()):
        meanings[symbol] = _span([seen for seen in local if symbol_of[seen] == symbol])
    legend = tuple(Entry(symbol, text, counts[symbol]) for symbol, text in meanings.items() if counts[symbol])
    return HeadMap(profile.layer_ids, tuple(cells), legend)


def _heads(profile: HeadProfile) -> Iterator[tuple[int, int, HeadClass, HeadVisibility]]:
    for layer in profile.layer_ids:
        for head in range(profile.num_kv_heads):
            yield layer, head, profile.head_class(layer, head), profile.visibility(layer, head)


def _local_symbols(kinds: list[HeadVisibility]) -> dict[HeadVisibility, str]:
    """A dot where all local heads are alike; else digits by rising window, several kinds a digit if need be."""
    if len(kinds) == 1:
        return {kinds[0]: ONE_LOCAL}
    return {
        seen: LOCAL_SYMBOLS[index * min(len(kinds), len(LOCAL_SYMBOLS)) // len(kinds)]
        for index, seen in enumerate(kinds)
    }


def _span(kinds: list[HeadVisibility]) -> str:
    windows = sorted({seen.window for seen in kinds if seen.window is not None})
    sinks = sorted({seen.sink for seen in kinds})
    return f"local: window {_range(windows)}, sink {_range(sinks)}"


def _range(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _headers(heads: range, step: int) -> Iterator[str]:
    """Head numbers above their columns: a line of tens where there are any, a line of units."""
    if heads[-1] >= 10:
        tens = (str(head // 10) if head % 10 == 0 or head == heads[0] else "" for head in heads)
        yield "".join(text[-1:].rjust(step) for text in tens)
    yield "".join(str(head % 10).rjust(step) for head in heads)
