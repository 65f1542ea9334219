"""Repair policies: which tokens of a stored span are computed again where it stands now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class RepairPolicy(Protocol):
    """Decides how much of a span's start is recomputed. Recomputed tokens see everything before them."""

    def recomputed(self, position: int, length: int) -> int:
        """Tokens to recompute, 0 to `length`, of a span of `length` tokens that stands at `position` of the prompt.

        A stored span was computed alone, so at position 0 nothing is missing from it.
        """


@dataclass(frozen=True)
class NoRepair:
    """Nothing is recomputed: least work, and a moved span does not know what stands before it."""

    def recomputed(self, position: int, length: int) -> int:
        """See `RepairPolicy`."""
        del position, length
        return 0


@dataclass(frozen=True)
class Boundary:
    """The first `tokens` of every moved span: they draw the attention that a first token draws when it is alone."""

    tokens: int

    def recomputed(self, position: int, length: int) -> int:
        """See `RepairPolicy`."""
        return min(self.tokens, length) if position else 0


def repair_policy(boundary: int) -> RepairPolicy:
    """The policy for a boundary of so many tokens."""
    return Boundary(boundary) if boundary else NoRepair()
