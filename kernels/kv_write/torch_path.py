"""KV write in plain torch, one indexed copy for all heads: what a CPU without a C++ compiler gets."""

import torch

from vllm_redknot.kernels.layout import SegmentLayout


def kv_write_torch(
    key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, slot_mappings: torch.Tensor
) -> None:
    """See `kv_write`."""
    tokens = slot_mappings.shape[1]
    slots = slot_mappings[layout.group.long()].T  # [T, H]
    token, head = (slots >= 0).nonzero(as_tuple=True)
    slot = slots[token, head]
    row = (
        layout.base[head]
        + (slot // layout.page_size) * layout.page_stride
        + (slot % layout.page_size) * layout.token_stride
    )
    index = row[:, None] + torch.arange(layout.head_size)
    layout.pool[index] = key[:tokens][token, head].to(layout.pool.dtype)
    layout.pool[index + layout.value_offset] = value[:tokens][token, head].to(layout.pool.dtype)
