"""SegPagedAttention: one call per layer attends all heads of all requests through per-head page lists.

Prefill (chunked, with context), decode and mixed batches are the same call. `layout.SegmentLayout` and
`batch.Batch` say what each argument holds; `reference.py` says what the result must be.
"""

import torch

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch, plan_batch

__all__ = ["Batch", "plan_batch", "segpaged_attention"]


def segpaged_attention(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float = 0.0,
) -> None:
    """Attention of every query token over the visible keys of its KV head, into `output[:num_tokens]`.

    On a CPU the C++ kernels serve it, or a plain torch path where they cannot be built; on a GPU, Triton.

    Args:
        query: [T', Hq, D] with T' >= batch.num_tokens; bf16, fp16 or fp32; rows contiguous, stride(0) free (a slice
            of the fused qkv activations). Query heads h*g .. h*g+g-1 read KV head h, g = Hq / H. Rows beyond
            `batch.num_tokens` are padding.
        layout: the layer's segments; `layout.pool` has query's dtype.
        batch: the engine step's requests, from `plan_batch`.
        output: like query, same dtype; rows beyond `batch.num_tokens` stay untouched.
        softmax_scale: multiplies q.k.
        soft_cap: 0, or c for ``c * tanh(s / c)`` on the scaled scores.

    Raises:
        ValueError: shapes, dtypes, strides or the head size are not served.
        IndexError: a visible page lies outside the pool (CPU only).
    """
    if query.device.type == "cpu":
        from vllm_redknot.kernels.segpaged_attention.cpu import segpaged_attention_cpu

        segpaged_attention_cpu(query, layout, batch, output, softmax_scale, soft_cap)
        return
    if query.device.type == "cuda":
        from vllm_redknot.kernels.segpaged_attention.triton import segpaged_attention_triton

        segpaged_attention_triton(query, layout, batch, output, softmax_scale, soft_cap)
        return
    raise ValueError(f"no SegPagedAttention for device type {query.device.type!r}; valid: 'cpu', 'cuda'")
