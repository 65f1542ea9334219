"""Quality against KV bytes: one plot a metric, an assignment's mark and colour the same in all of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vllm_redknot.report.documents import CurvePoint, ProfileDocument
from vllm_redknot.report.numbers import Axis, axis, shown

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 24.0, 10.0, 40.0
MAX_SERIES: Final = 8
"""Assignments that get a mark of their own; each mark is a shape, so that colours are not needed."""
MARKS: Final = (
    "M-4.5-4.5h9v9h-9z",
    "M0-6L5.5 4.5h-11z",
    "M0-6L6 0L0 6L-6 0z",
    "M0-5A5 5 0 1 0 0 5A5 5 0 1 0 0-5z",
    "M0 6L5.5-4.5h-11z",
    "M-1.6-5.5h3.2v3.9h3.9v3.2h-3.9v3.9h-3.2v-3.9h-3.9v-3.2h3.9z",
    "M-5-5L5 5L5-5L-5 5z",
    "M-6-2.5h12v5h-12z",
)


@dataclass(frozen=True)
class Dot:
    """One assignment at one global share and window; `whisker` spans its seeds."""

    x: float
    y: float
    whisker: tuple[float, float] | None
    tip: str


@dataclass(frozen=True)
class Series:
    """One assignment: an index of a style and a mark, and lines that join the dots of one window."""

    name: str
    style: int
    mark: str
    dots: tuple[Dot, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """One metric."""

    metric: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    chosen: float | None
    description: str


@dataclass(frozen=True)
class Curve:
    """All plots, and what their marks mean. `left_out` are assignments beyond MAX_SERIES."""

    plots: tuple[Plot, ...]
    legend: tuple[Series, ...]
    left_out: tuple[str, ...]


def curve_chart(document: ProfileDocument) -> Curve:
    """Plots of every metric that any point of the curve has."""
    names = list(dict.fromkeys(point.assignment for point in document.curve))
    metrics = list(dict.fromkeys(name for point in document.curve for name in point.metrics))
    chosen = document.chosen.kv_share if document.chosen else None
    plots = [_plot(document.curve, metric, names[:MAX_SERIES], chosen) for metric in metrics]
    kept = tuple(plot for plot in plots if plot is not None)
    legend = tuple(Series(name, index, MARKS[index], (), ()) for index, name in enumerate(names[:MAX_SERIES]))
    return Curve(kept, legend if kept else (), tuple(names[MAX_SERIES:]))


def _plot(
    points: Sequence[CurvePoint], metric: str, names: Sequence[str], chosen: float | None
) -> Plot | None:
    valued = [
        (point, value)
        for point in points
        if point.assignment in names and (value := point.metrics.get(metric)) is not None
    ]
    if not valued:
        return None
    shares = [100 * point.kv_share for point, _ in valued]
    x = axis(shares, LEFT, WIDTH - RIGHT, lowest=0.0)
    y = axis([value for _, value in valued], HEIGHT - BOTTOM, TOP, lowest=0.0)
    series = tuple(
        _series(name, index, [(p, v) for p, v in valued if p.assignment == name], x, y)
        for index, name in enumerate(names)
    )
    best = max(value for _, value in valued)
    least = min(value for _, value in valued)
    within = chosen is not None and x.low <= 100 * chosen <= x.high
    return Plot(
        metric,
        x,
        y,
        series,
        x.at(100 * chosen) if chosen is not None and within else None,
        f"{metric} against the share of KV bytes kept, {len(valued)} points from {shown(least)} to {shown(best)}",
    )


def _series(name: str, style: int, points: Sequence[tuple[CurvePoint, float]], x: Axis, y: Axis) -> Series:
    by_window: dict[int | None, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point, value in points:
        by_window[point.window][point.kv_share].append(value)
    dots, lines = [], []
    for window, found in by_window.items():
        of = "" if window is None else f", window {window}"
        places = []
        for share, values in sorted(found.items()):
            median, low, high = statistics.median(values), min(values), max(values)
            seeds = "" if len(values) == 1 else f" ({shown(low)} to {shown(high)} over {len(values)} seeds)"
            at = (x.at(100 * share), y.at(median))
            places.append(f"{at[0]:.1f},{at[1]:.1f}")
            dots.append(
                Dot(
                    *at,
                    None if low == high else (y.at(low), y.at(high)),
                    f"{name}{of}: {shown(median)}{seeds} at {100 * share:.1f}% of the KV bytes",
                )
            )
        if len(places) > 1:
            lines.append(" ".join(places))
    return Series(name, style, MARKS[style], tuple(dots), tuple(lines))
