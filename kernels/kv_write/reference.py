"""Plain-torch oracle of the KV write: one call stores K and V of all segments of a layer."""

import torch

from vllm_redknot.kernels.layout import SegmentLayout


def kv_write_reference(
    key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, slot_mappings: torch.Tensor
) -> None:
    """Store row t of head h at slot ``slot_mappings[group[h], t]`` of the head's segment, in `layout.pool`.

    Args:
        key: [T', H, D]; rows beyond T are padding and ignored.
        value: like key.
        layout: the layer's segments.
        slot_mappings: int64 [G, T]; page * page_size + slot in page, or negative: not stored.
    """
    tokens = slot_mappings.shape[1]
    lane = torch.arange(layout.head_size, device=key.device)
    for head in range(layout.num_kv_heads):
        slots = slot_mappings[int(layout.group[head])]
        stored = slots >= 0
        slots = slots[stored]
        row = (
            layout.base[head]
            + (slots // layout.page_size) * layout.page_stride
            + (slots % layout.page_size) * layout.token_stride
        )
        index = row[:, None] + lane
        layout.pool[index] = key[:tokens, head][stored].to(layout.pool.dtype)
        layout.pool[index + layout.value_offset] = value[:tokens, head][stored].to(layout.pool.dtype)
