"""Repair policies: which tokens of a stored span are computed again where it stands now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

BOUNDARY: Final = "boundary"
BLEND: Final = "blend"
POLICIES: Final = (BOUNDARY, BLEND)


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


@dataclass(frozen=True)
class Blend:
    """A share of every moved span's tokens, wherever they stand in it: those whose K and V deviate most (CacheBlend).

    Which they are is known on an early layer of the forward pass, so moved spans are not skipped: all their tokens go
    through the layers before it, the chosen ones through all layers.
    """

    share: float  # 0 to 1

    def chosen(self, num_tokens: int) -> int:
        """Tokens to recompute of so many that are chosen from at once."""
        return round(self.share * num_tokens)


def repair_policy(boundary: int) -> RepairPolicy:
    """The policy for a boundary of so many tokens."""
    return Boundary(boundary) if boundary else NoRepair()
