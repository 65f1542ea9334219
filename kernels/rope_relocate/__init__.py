"""Relocation: one call turns the keys of a stored span to their new positions and stores K and V into pages."""

import torch

from vllm_redknot.kernels.kv_write import kv_write
from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.rope_relocate.rotation import NO_ROTATION, Rotary, Turn
from vllm_redknot.kernels.rope_relocate.torch_path import rotate_torch

__all__ = ["NO_ROTATION", "Rotary", "Turn", "rope_relocate"]


def rope_relocate(
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SegmentLayout,
    slot_mappings: torch.Tensor,
    turn: Turn,
) -> None:
    """Store row t of head h, its key turned, at slot ``slot_mappings[group[h], t]`` of the head's segment.

    The rotation is computed in fp32 and rounded once.

    Args:
        key: [T', H, D] with T' >= T, contiguous in D; the pool's dtype. Rows beyond T are padding.
        value: like key, rows contiguous.
        layout: the layer's segments, or those of some of its heads.
        slot_mappings: int64 [G, T], contiguous; page * page_size + slot in page, or negative: not stored.
        turn: the rotation of the keys, on their device.

    Raises:
        ValueError: shapes, dtypes or strides are not served.
        IndexError: a slot lies outside the pool (CPU only).
    """
    if turn.rotated > layout.head_size or turn.cos.device != key.device:
        raise ValueError(
            f"the rotation turns {turn.rotated} elements on {turn.cos.device}; valid: at most "
            f"{layout.head_size}, on {key.device}"
        )
    if key.device.type == "cuda":
        from vllm_redknot.kernels.rope_relocate.triton import rope_relocate_triton

        rope_relocate_triton(key, value, layout, slot_mappings, turn)
        return
    kv_write(rotate_torch(key, turn), value, layout, slot_mappings)
