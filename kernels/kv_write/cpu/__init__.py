"""KV write on the CPU: the C++ kernel, or torch where it cannot be built."""

import ctypes

import torch

from vllm_redknot.kernels import native
from vllm_redknot.kernels.kv_write.torch_path import kv_write_torch
from vllm_redknot.kernels.layout import SegmentLayout

__all__ = ["kv_write_cpu"]


def kv_write_cpu(
    key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, slot_mappings: torch.Tensor
) -> None:
    """See `kv_write`; all tensors on the CPU."""
    tokens, size = slot_mappings.shape[1], layout.head_size
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != layout.pool.dtype or tensor.shape[1:] != (layout.num_kv_heads, size):
            raise ValueError(
                f"{name} must be {layout.pool.dtype} [tokens, {layout.num_kv_heads}, {size}], got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        if tensor.stride(2) != 1 or tensor.stride(1) != size or tensor.shape[0] < tokens:
            raise ValueError(
                f"{name}'s rows must be contiguous and at least {tokens}, got shape {tuple(tensor.shape)} with "
                f"strides {tensor.stride()}"
            )
    if slot_mappings.dtype != torch.int64 or not slot_mappings.is_contiguous():
        raise ValueError(
            f"slot_mappings must be contiguous int64, got {slot_mappings.dtype} {slot_mappings.stride()}"
        )
    kernels = native.load()
    if kernels is None:
        kv_write_torch(key, value, layout, slot_mappings)
        return
    args = native.KvWriteArgs(
        key.data_ptr(),
        value.data_ptr(),
        layout.pool.data_ptr(),
        layout.base.data_ptr(),
        layout.group.data_ptr(),
        slot_mappings.data_ptr(),
        layout.pool.numel(),
        key.stride(0),
        value.stride(0),
        layout.page_stride,
        layout.token_stride,
        layout.value_offset,
        layout.page_size,
        size,
        layout.num_kv_heads,
        tokens,
        layout.pool.element_size(),
        torch.get_num_threads(),
    )
    if kernels.kv_write(ctypes.byref(args)):
        raise IndexError(
            f"KV head {args.bad_head}: slot {args.bad_slot} lies outside the pool of {layout.pool.numel()} elements"
        )
