"""Means with bootstrap intervals, of two paired samples and of their difference.

Percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Cases are resampled, a case's two values together. With
few cases intervals are too narrow, and a sample of equal values has one of no width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
ENOUGH = 6
"""Cases for a verdict: fewer all fall on one side of zero by chance more often than one time in twenty."""


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As `redknot eval` writes it."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True)
class Comparison:
    """n pairs, or n values of `redknot` alone, where there is nothing to compare."""

    n: int
    stock: Estimate | None
    redknot: Estimate
    difference: Estimate | None

    @property
    def within_noise(self) -> bool | None:
        """Whether the difference's interval holds zero. None without a difference, and below `ENOUGH` cases."""
        if self.difference is None or self.n < ENOUGH:
            return None
        return self.difference.low <= 0 <= self.difference.high


def compare(stock: Sequence[float] | None, redknot: Sequence[float], seed: int, name: str) -> Comparison:
    """Means, intervals and the paired difference redknot - stock. The same seed and name draw the same resamples.

    Raises:
        ValueError: No cases, or other than one stock value per case.
    """
    if not redknot or (stock is not None and len(stock) != len(redknot)):
        raise ValueError(f"{len(redknot)} values of REDKNOT and {len(stock or ())} of stock")
    ours = np.asarray(redknot, dtype=np.float64)
    theirs = None if stock is None else np.asarray(stock, dtype=np.float64)
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chosen = draw.integers(len(ours), size=(RESAMPLES, len(ours)))

    def estimate(values: np.ndarray) -> Estimate:
        means = values[chosen].mean(axis=1)
        low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Estimate(float(values.mean()), float(low), float(high))

    return Comparison(
        n=len(ours),
        stock=None if theirs is None else estimate(theirs),
        redknot=estimate(ours),
        difference=None if theirs is None else estimate(ours - theirs),
    )
