"""Rotation of keys in vectorised torch: what a CPU uses.

A C++ kernel would not pay: a CPU moves some 50 MB of keys and values per document, once, next to a forward pass of
its boundary tokens that reads all weights of the model.
"""

import torch

from vllm_redknot.kernels.rope_relocate.rotation import Turn

ROWS = 4096
"""Keys rotated at a time: their fp32 copies stay in a core's cache."""


def rotate_torch(key: torch.Tensor, turn: Turn) -> torch.Tensor:
    """See `rotate_reference`; the result is contiguous."""
    out = key.clone(memory_format=torch.contiguous_format)
    if turn.rotated == 0:
        return out
    for rows in torch.split(out.view(-1, key.shape[-1]), ROWS):
        _rotate_rows(rows, turn)
    return out


def _rotate_rows(rows: torch.Tensor, turn: Turn) -> None:
    """In place. rows: [N, D], a contiguous view."""
    rotated = rows[:, : turn.rotated]
    if turn.interleaved:
        first, second = rotated[:, 0::2], rotated[:, 1::2]
    else:
        first, second = rotated.chunk(2, dim=1)
    x, y = first.float(), second.float()
    # Both before either is stored: of fp32 rows, x and y are views.
    moved = (x * turn.cos).addcmul_(y, turn.sin, value=-1.0), (y * turn.cos).addcmul_(x, turn.sin)
    first.copy_(moved[0])
    second.copy_(moved[1])
