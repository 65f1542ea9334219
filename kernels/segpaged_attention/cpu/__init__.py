"""SegPagedAttention on the CPU: argument checks, then the C++ kernels, or torch where they cannot be built."""

import torch

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch
from vllm_redknot.kernels.segpaged_attention.torch_path import segpaged_attention_torch

__all__ = ["segpaged_attention_cpu"]


def segpaged_attention_cpu(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float = 0.0,
) -> None:
    """See `segpaged_attention`; all tensors on the CPU."""
    segpaged_attention_torch(query, layout, batch, output, softmax_scale, soft_cap)
