"""What moving a key from one position to another does to it: one rotation, the same for all tokens of a segment."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Turn:
    """The rotation that a fixed difference of positions asks for. R = rotated elements of a head, 0 <= R <= D.

    Pair f of a key, (x, y), becomes ``(x cos[f] - y sin[f], y cos[f] + x sin[f])``. The pair is elements f and
    f + R/2 of the head (NeoX pairing), or 2f and 2f + 1 (`interleaved`). Elements from R on stay as they are.
    """

    cos: torch.Tensor  # fp32 [R/2]
    sin: torch.Tensor  # fp32 [R/2]
    interleaved: bool

    @property
    def rotated(self) -> int:
        """R."""
        return 2 * self.cos.numel()

    def to(self, device: torch.device) -> "Turn":
        """The same on another device."""
        return Turn(self.cos.to(device), self.sin.to(device), self.interleaved)


@dataclass(frozen=True)
class Rotary:
    """The rotary position embedding of a layer's keys; ``inv_freq`` is empty where a layer has none.

    A magnitude factor of the embedding (YaRN) is no part of it: it scales a key at every position alike.
    """

    inv_freq: torch.Tensor  # fp64 [R/2], radians per position, on the CPU
    interleaved: bool = False

    def turn(self, positions: int) -> Turn:
        """The rotation that moves keys `positions` later (negative: earlier). Angles are computed in fp64."""
        angle = self.inv_freq.double() * positions
        return Turn(angle.cos().float(), angle.sin().float(), self.interleaved)


NO_ROTATION = Rotary(torch.empty(0, dtype=torch.float64))
"""Of layers without position embedding (NoPE): their keys are the same at every position."""
