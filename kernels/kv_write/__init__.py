"""KV write: one call stores K and V of all head segments of a layer into their pages."""

import torch

from vllm_redknot.kernels.layout import SegmentLayout

__all__ = ["kv_write"]


def kv_write(
    key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, slot_mappings: torch.Tensor
) -> None:
    """Store row t of head h at slot ``slot_mappings[group[h], t]`` of the head's segment, in `layout.pool`.

    Args:
        key: [T', H, D] with T' >= T, rows contiguous, stride(0) free; the pool's dtype. Rows beyond T
            are padding.
        value: like key.
        layout: the layer's segments.
        slot_mappings: int64 [G, T], contiguous; page * page_size + slot in page, or negative: not stored.

    Raises:
        ValueError: shapes, dtypes or strides are not served.
        IndexError: a slot lies outside the pool (CPU only).
    """
    if key.device.type == "cpu":
        from vllm_redknot.kernels.kv_write.cpu import kv_write_cpu

        kv_write_cpu(key, value, layout, slot_mappings)
        return
    if key.device.type == "cuda":
        from vllm_redknot.kernels.kv_write.triton import kv_write_triton

        kv_write_triton(key, value, layout, slot_mappings)
        return
    raise ValueError(f"no KV write for device type {key.device.type!r}; valid: 'cpu', 'cuda'")
