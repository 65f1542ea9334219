"""Repair policies: which tokens of a stored span are computed again where it stands now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

BOUNDARY: Final = "boundary"
BLEND: Final = "blend"
POLICIES: Final = (BOUNDARY, BLEND)


class RepairPolicy(Protocol):
    """Decides how much of a span's start is recomputed. Recomputed tokens see everything before them."""

    def recomputed(self, position: int, offset: int, length: int) -> int:
        """Tokens to recompute, 0 to `length`, of a span of `length` tokens that stands at `position` of the prompt.

        `offset` is where it begins in its stored document, which was computed alone: its KV saw the tokens before it
        there, and none of those before it here. Only a document's beginning that begins a prompt misses nothing.
        """


@dataclass(frozen=True)
class NoRepair:
    """Nothing is recomputed: least work, and a moved span does not know what stands before it."""

    def recomputed(self, position: int, offset: int, length: int) -> int:
        """See `RepairPolicy`."""
        del position, offset, length
        return 0


@dataclass(frozen=True)
class Boundary:
    """The first `tokens` of every span that has lost or gained tokens before it.

    A moved document's first tokens draw the attention that a first token draws when it is alone. A part of a document
    that begins a prompt has no first token that does: its KV is of tokens that had others before them.
    """

    tokens: int

    def recomputed(self, position: int, offset: int, length: int) -> int:
        """See `RepairPolicy`."""
        return min(self.tokens, length) if position or offset else 0


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
