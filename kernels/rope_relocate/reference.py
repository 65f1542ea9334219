"""Plain-torch oracle of the relocation: rotate keys, then store K and V of all segments of a layer."""

import torch

from vllm_redknot.kernels.kv_write.reference import kv_write_reference
from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.rope_relocate.rotation import Turn


def rotate_reference(key: torch.Tensor, turn: Turn) -> torch.Tensor:
    """Turn every key by the same rotation, in fp32, and round once to the key's dtype.

    Args:
        key: [..., D], D >= R.
        turn: see `Turn`.
    """
    out = key.clone()
    half = turn.cos.numel()
    for pair in range(half):
        first, second = (2 * pair, 2 * pair + 1) if turn.interleaved else (pair, pair + half)
        x, y = key[..., first].float(), key[..., second].float()
        out[..., first] = (x * turn.cos[pair] - y * turn.sin[pair]).to(key.dtype)
        out[..., second] = (y * turn.cos[pair] + x * turn.sin[pair]).to(key.dtype)
    return out


def rope_relocate_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SegmentLayout,
    slot_mappings: torch.Tensor,
    turn: Turn,
) -> None:
    """Store the turned row t of head h at slot ``slot_mappings[group[h], t]`` of the head's segment.

    Args:
        key: [T', H, D]; rows beyond T are ignored.
        value: like key; stored as it is.
        layout: the layer's segments.
        slot_mappings: int64 [G, T]; page * page_size + slot in page, or negative: not stored.
        turn: the rotation of the keys.
    """
    kv_write_reference(rotate_reference(key, turn), value, layout, slot_mappings)
