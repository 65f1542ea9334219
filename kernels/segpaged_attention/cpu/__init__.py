"""SegPagedAttention on the CPU: argument checks, then the C++ kernels, or torch where they cannot be built."""

import ctypes

import torch

from vllm_redknot.kernels import native
from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch
from vllm_redknot.kernels.segpaged_attention.torch_path import segpaged_attention_torch

__all__ = ["HEAD_SIZES", "segpaged_attention_cpu"]

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
BAD_PAGE, BAD_LENGTH, NO_MEMORY, NO_VARIANT = 1, 2, 3, 4


def segpaged_attention_cpu(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float = 0.0,
    variant: str | None = None,
) -> None:
    """See `segpaged_attention`; all tensors on the CPU.

    Args:
        variant: instruction-set variant, one of `native.load().runnable`; by default the best this CPU runs.
    """
    _check(query, layout, batch, output, softmax_scale)
    kernels = native.load()
    if kernels is None:
        segpaged_attention_torch(query, layout, batch, output, softmax_scale, soft_cap)
        return
    args = native.SegpagedArgs(
        query.data_ptr(),
        output.data_ptr(),
        layout.pool.data_ptr(),
        layout.base.data_ptr(),
        layout.group.data_ptr(),
        layout.window.data_ptr(),
        layout.sink.data_ptr(),
        batch.block_tables.data_ptr(),
        batch.cu_seqlens_q.data_ptr(),
        batch.seq_lens.data_ptr(),
        layout.pool.numel(),
        query.stride(0),
        output.stride(0),
        layout.page_stride,
        layout.token_stride,
        layout.value_offset,
        layout.page_size,
        layout.head_size,
        query.shape[1],
        layout.base.numel(),
        batch.seq_lens.numel(),
        batch.block_tables.shape[2],
        batch.num_tokens,
        native.DTYPES[query.dtype],
        -1 if variant is None else kernels.variants.index(variant),
        torch.get_num_threads(),
        softmax_scale,
        soft_cap,
    )
    status = kernels.attention(ctypes.byref(args))
    if status:
        _fail(status, args, layout, variant)


def _check(
    query: torch.Tensor, layout: SegmentLayout, batch: Batch, output: torch.Tensor, softmax_scale: float
) -> None:
    head_size = layout.head_size
    if head_size not in HEAD_SIZES:
        raise ValueError(f"head size {head_size} is not served; valid: {', '.join(map(str, HEAD_SIZES))}")
    if query.dtype not in native.DTYPES or not query.dtype == output.dtype == layout.pool.dtype:
        raise ValueError(
            f"query, output and pool must share one of bfloat16, float16, float32, got {query.dtype}, "
            f"{output.dtype}, {layout.pool.dtype}"
        )
    heads = query.shape[1]
    if heads % layout.num_kv_heads or query.shape[2] != head_size or output.shape[1:] != query.shape[1:]:
        raise ValueError(
            f"query and output must be [tokens, a multiple of {layout.num_kv_heads}, {head_size}], got "
            f"{tuple(query.shape)} and {tuple(output.shape)}"
        )
    for name, tensor in (("query", query), ("output", output)):
        if tensor.stride(2) != 1 or tensor.stride(1) != head_size:
            raise ValueError(f"{name}'s heads must be contiguous, got strides {tensor.stride()}")
        if tensor.shape[0] < batch.num_tokens:
            raise ValueError(f"{name} has {tensor.shape[0]} rows, the batch {batch.num_tokens} tokens")
    if not softmax_scale > 0:
        raise ValueError(f"softmax_scale must be positive, got {softmax_scale}")


def _fail(status: int, args: native.SegpagedArgs, layout: SegmentLayout, variant: str | None) -> None:
    if status == BAD_PAGE:
        raise IndexError(
            f"request {args.bad_request}, KV head {args.bad_head}: page {args.bad_page} of visible position "
            f"{args.bad_position} lies outside the pool of {layout.pool.numel()} elements"
        )
    if status == BAD_LENGTH:
        raise ValueError(
            f"request {args.bad_request}: cu_seqlens_q must rise within the batch's tokens and seq_lens "
            f"({args.bad_position}) hold its query rows and fit its block table"
        )
    if status == NO_VARIANT:
        raise ValueError(f"variant {variant!r} does not run on this CPU")
    raise MemoryError("no memory for the attention kernel's scratch")
