"""KV write on the CPU: the C++ kernel, or the torch path where it cannot be built."""

import torch

from vllm_redknot.kernels.kv_write.torch_path import kv_write_torch
from vllm_redknot.kernels.layout import SegmentLayout

__all__ = ["kv_write_cpu"]


def kv_write_cpu(
    key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, slot_mappings: torch.Tensor
) -> None:
    """See `kv_write`; all tensors on the CPU."""
    kv_write_torch(key, value, layout, slot_mappings)
