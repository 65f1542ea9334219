"""Numbers as the page shows them, and axes with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass


def shown(value: float | None) -> str:
    """Three significant digits; a dash for nothing."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def tick(value: float) -> str:
    """A round value without needless zeros."""
    return f"{value:g}"


def with_unit(value: float, unit: str) -> str:
    """Three digits and the unit; bytes in binary multiples."""
    if unit != "bytes":
        return f"{shown(value)} {unit}".rstrip()
    for name in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {name}"
        value /= 1024
    return f"{value:,.4g} TiB"


def tokens(count: int | None) -> str:
    """`8K` where that is exact, else the number."""
    if count is None:
        return "-"
    return f"{count // 1024}K" if count >= 1024 and count % 1024 == 0 else f"{count:,}"


@dataclass(frozen=True)
class Axis:
    """Values `low` to `high` along pixels `start` to `end`, which may run backwards."""

    low: float
    high: float
    start: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Round values within the axis."""
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [round(index * self.step, 12) for index in range(first, last + 1)]


def axis(values: list[float], start: float, end: float, lowest: float | None = None, most: int = 5) -> Axis:
    """An axis over all values that begins and ends at a tick; `lowest` is a value it has to reach down to."""
    low = min([*values, *([] if lowest is None else [lowest])])
    high = max(values)
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / most)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end, step)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
