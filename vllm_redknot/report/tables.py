"""Rows of the tables: values with intervals, and what they say of the difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vllm_redknot.report.documents import Cell, Estimate, EvalPart
from vllm_redknot.report.numbers import shown, tokens

MAX_PAIRS: Final = 40
MAX_TEXT: Final = 300


@dataclass(frozen=True)
class Row:
    """One cell of an evaluation as text; `verdict` is "", "within noise" or "differs"."""

    what: str
    where: str
    n: str
    stock: str
    redknot: str
    difference: str
    verdict: str


def rows(cells: Iterable[Cell]) -> list[Row]:
    """All cells, in the document's order."""
    return [_row(cell) for cell in cells]


@dataclass(frozen=True)
class AblationRow:
    """One cell of all configurations; `values` are stock's and then theirs, with whether they differ from stock."""

    what: str
    where: str
    n: str
    values: tuple[tuple[str, str], ...]


def ablation(suite: str, parts: Mapping[str, EvalPart]) -> list[AblationRow]:
    """The cells of all depths that every configuration has."""
    by_place = [{_place(cell): cell for cell in part.suites.get(suite, [])} for part in parts.values()]
    found = []
    for place, first in by_place[0].items() if by_place else ():
        cells = [each[place] for each in by_place if place in each]
        if first.depth is not None or len(cells) < len(by_place):
            continue
        texts = [_row(cell) for cell in cells]
        values = (("", texts[0].stock), *((text.verdict, text.redknot) for text in texts))
        found.append(AblationRow(texts[0].what, texts[0].where, texts[0].n, values))
    return found


def _place(cell: Cell) -> tuple[str, str, int | None, float | None]:
    return cell.task, cell.metric, cell.length, cell.depth


def totals(cells: Sequence[Cell]) -> list[Row]:
    """The cells that are not of a single depth."""
    return rows(cell for cell in cells if cell.depth is None)


def _row(cell: Cell) -> Row:
    depth = "" if cell.depth is None else f", depth {cell.depth:.0%}"
    verdict = {None: "", True: "within noise", False: "differs"}[cell.within_noise]
    return Row(
        what=f"{cell.task}: {cell.metric}",
        where="" if cell.length is None else f"{tokens(cell.length)} tokens{depth}",
        n=f"{cell.n:,}",
        stock=estimate(cell.stock),
        redknot=estimate(cell.redknot),
        difference=estimate(cell.difference),
        verdict=verdict,
    )


def estimate(found: Estimate | None) -> str:
    """`0.95 [0.91, 0.99]`; a dash for nothing."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return shown(found.value)
    return f"{shown(found.value)} [{shown(found.low)}, {shown(found.high)}]"


def pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys and values of an object as short text, nested ones by their path; what is null is left out."""
    found: list[tuple[str, str]] = []
    _walk("", values, found)
    return found[:MAX_PAIRS]


def _walk(prefix: str, values: Mapping[str, Any], found: list[tuple[str, str]]) -> None:
    for key, value in values.items():
        if len(found) >= MAX_PAIRS:
            return
        name = f"{prefix}{key}"[:MAX_TEXT]
        if isinstance(value, dict):
            _walk(f"{name}.", value, found)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            found += [(f"{name} {index}", _short(item)) for index, item in enumerate(value[:MAX_PAIRS], 1)]
        elif value is not None:
            found.append((name, _short(value)))


def _short(value: Any) -> str:
    """One value as text: floats in three digits, an object as its keys and values."""
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_short(inner)}" for key, inner in [*value.items()][:MAX_PAIRS])
    elif isinstance(value, list):
        text = ", ".join(map(_short, value[:MAX_PAIRS]))
    elif isinstance(value, float):
        text = shown(value)
    else:
        text = str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
