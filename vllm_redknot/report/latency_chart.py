"""Bars of a benchmark, stock first, each row on a scale of its own that begins at 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vllm_redknot.report.documents import BenchDocument, BenchRow, Samples
from vllm_redknot.report.numbers import with_unit

LEFT, WIDTH = 66.0, 360.0
LONGEST: Final = WIDTH - LEFT - 110
"""Pixels of the longest bar; its figure stands behind it."""
STEP: Final = 28.0
PARTS: Final = ("heads", "rows")
"""Configurations with a style of their own."""
NAME_LETTERS: Final = 8
SHORT_UNIT: Final = 8
"""Letters of a unit that has room behind its bar; a longer one stands above all bars alone."""


@dataclass(frozen=True)
class Bar:
    """One side: its style and name, pixels of its length and of the whisker from the lowest to the highest sample."""

    side: str
    name: str
    y: float
    length: float
    whisker: tuple[float, float] | None
    end: float
    text: str


@dataclass(frozen=True)
class Bars:
    """One row of the document. `times` is how many times better REDKNOT is, None where a side has nothing."""

    workload: str
    height: float
    bars: tuple[Bar, ...]
    times: float | None
    verdict: str
    tip: str


@dataclass(frozen=True)
class Group:
    """Rows of one metric."""

    metric: str
    unit: str
    better: str
    rows: tuple[Bars, ...]


def latency_charts(document: BenchDocument) -> list[Group]:
    """Groups in the document's order."""
    keys = dict.fromkeys((row.metric, row.unit, row.better) for row in document.rows)
    return [
        Group(
            metric,
            unit,
            better,
            tuple(
                _bars(row)
                for row in document.rows
                if (row.metric, row.unit, row.better) == (metric, unit, better)
            ),
        )
        for metric, unit, better in keys
    ]


def _bars(row: BenchRow) -> Bars:
    sides = [("stock", "stock", row.stock), *_beside_stock(row)]
    longest = max((abs(value) for _, _, side in sides for value in (side.median, *side.samples)), default=0.0)
    scale = LONGEST / longest if longest else 0.0
    bars = tuple(_bar(index, *side, scale, row.unit) for index, side in enumerate(sides))
    times = row.ratio if row.better == "higher" else (1 / row.ratio if row.ratio else None)
    said = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    return Bars(
        row.workload,
        2 + STEP * len(bars),
        bars,
        times,
        _verdict(row, times),
        f"{row.metric}, {row.workload}: {said}",
    )


def _beside_stock(row: BenchRow) -> list[tuple[str, str, Samples]]:
    if row.ablation is None:
        return [("redknot", "REDKNOT", row.redknot)]
    return [
        (name if name in PARTS else "redknot", name[:NAME_LETTERS], side)
        for name, side in row.ablation.items()
    ]


def _verdict(row: BenchRow, times: float | None) -> str:
    """Whether the difference is more than the spread of the samples, where there is a spread to tell by."""
    stock, ours = row.stock.samples, row.redknot.samples
    if min(len(stock), len(ours)) > 1 and min(stock) <= max(ours) and min(ours) <= max(stock):
        return "(within the spread)"
    return "better" if times is not None and times >= 1 else "(worse)"


def _bar(index: int, side: str, name: str, samples: Samples, scale: float, unit: str) -> Bar:
    low, high = min(samples.samples, default=samples.median), max(samples.samples, default=samples.median)
    length = round(max(0.0, samples.median) * scale, 1)
    whisker = None if low == high else (round(LEFT + low * scale, 1), round(LEFT + high * scale, 1))
    end = max(LEFT + length, whisker[1] if whisker else 0.0)
    return Bar(
        side,
        name,
        2 + STEP * index,
        length,
        whisker,
        end + 6,
        with_unit(samples.median, unit if len(unit) <= SHORT_UNIT else ""),
    )
