"""SegPagedAttention on a GPU, in Triton.

A batch of one-token requests is the decode kernel and its reduction; any other batch is the prefill kernel, and
where it may hold one-token requests beside longer ones, decode as well: each kernel takes the requests of its kind
and its programs for the others exit at once. Nothing reads a length on the host.
"""

import torch

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch
from vllm_redknot.kernels.segpaged_attention.triton_decode import decode_launches
from vllm_redknot.kernels.segpaged_attention.triton_prefill import prefill_launch
from vllm_redknot.kernels.triton_launch import TritonLaunch

ALIGNMENT = 16
"""Elements. Kernels load K and V 16 bytes at a time: every base and stride of a layout must be a multiple."""


def check_layout_alignment(layout: SegmentLayout) -> None:
    """Check once, when a layout is made, what the kernels take for granted. Waits for the GPU.

    Raises:
        ValueError: a base or a stride is not a multiple of 16 elements.
    """
    strides = {
        "page_stride": layout.page_stride,
        "token_stride": layout.token_stride,
        "value_offset": layout.value_offset,
        "head_size": layout.head_size,
        **{f"base[{h}]": offset for h, offset in enumerate(layout.base.tolist())},
    }
    for name, value in strides.items():
        if value % ALIGNMENT:
            raise ValueError(f"{name} is {value} elements; valid: multiples of {ALIGNMENT}")


def attention_launches(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float = 0.0,
) -> list[TritonLaunch]:
    """The launches of one `segpaged_attention` call, in order. Reads shapes and host integers only."""
    _check(query, layout, output)
    if batch.max_query_len <= 1:
        return decode_launches(query, layout, batch, output, softmax_scale, soft_cap)
    # A single request of several tokens has no one-token request beside it.
    mixed = batch.seq_lens.shape[0] > 1
    prefill = prefill_launch(query, layout, batch, output, softmax_scale, soft_cap, skip_decode=mixed)
    if not mixed:
        return [prefill]
    return [prefill, *decode_launches(query, layout, batch, output, softmax_scale, soft_cap)]


def segpaged_attention_triton(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float = 0.0,
) -> None:
    """See `segpaged_attention`. Capturable in a CUDA graph; a layout must pass `check_layout_alignment`.

    Raises:
        ValueError: shapes, dtypes or strides are not served.
    """
    for launch in attention_launches(query, layout, batch, output, softmax_scale, soft_cap):
        launch.run()


def _check(query: torch.Tensor, layout: SegmentLayout, output: torch.Tensor) -> None:
    heads, kv_heads = query.shape[1], layout.num_kv_heads
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads over {kv_heads} KV heads; valid: a multiple of the KV heads")
    if query.shape[2] != layout.head_size or not 16 <= layout.head_size <= 256 or layout.head_size % 16:
        raise ValueError(
            f"head size {query.shape[2]} over pages of head size {layout.head_size}; valid: equal, "
            "a multiple of 16 from 16 to 256"
        )
    if query.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"query is {query.dtype}; valid: bfloat16, float16, float32")
    if layout.pool.dtype != query.dtype or output.dtype != query.dtype:
        raise ValueError(
            f"query is {query.dtype}, the pool {layout.pool.dtype}, output {output.dtype}; valid: all alike"
        )
    if query.stride(2) != 1 or output.stride(2) != 1 or output.shape != query.shape:
        raise ValueError(
            f"query {tuple(query.shape)} with strides {query.stride()} and output {tuple(output.shape)} with "
            f"strides {output.stride()}; valid: equal shapes, contiguous in the head size"
        )
