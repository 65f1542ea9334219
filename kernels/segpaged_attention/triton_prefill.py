"""Triton prefill: query tiles of any request against the visible key tiles of one KV head."""
# Upper case marks compile-time parameters, as everywhere in Triton.
# ruff: noqa: N803
# Triton is absent from the type checker's view.
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch
from vllm_redknot.kernels.segpaged_attention.triton_configs import (
    device_limits,
    padded_head_size,
    prefill_config,
)
from vllm_redknot.kernels.segpaged_attention.triton_device import (
    attend_tile,
    ceil_div,
    first_visible,
    request_of_tile,
    visible_tiles,
)
from vllm_redknot.kernels.triton_launch import TritonLaunch

LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["requests", "table_group_stride"])
def prefill_kernel(
    query: tl.tensor,
    output: tl.tensor,
    pool: tl.tensor,
    head_base: tl.tensor,
    head_group: tl.tensor,
    head_window: tl.tensor,
    head_sink: tl.tensor,
    block_tables: tl.tensor,
    cu_seqlens_q: tl.tensor,
    seq_lens: tl.tensor,
    scale: tl.tensor,
    cap: tl.tensor,
    requests: tl.tensor,
    table_group_stride: tl.int64,
    table_request_stride: tl.int64,
    query_token_stride: tl.int64,
    query_head_stride: tl.int64,
    output_token_stride: tl.int64,
    output_head_stride: tl.int64,
    page_stride: tl.int64,
    token_stride: tl.int64,
    value_offset: tl.int64,
    RATIO: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SKIP_DECODE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Program (tile, h): BLOCK_M // RATIO query tokens times the RATIO query heads of KV head h.

    With SKIP_DECODE, requests of one query token are left to the decode kernel.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // RATIO  # noqa: N806
    # The last tiles of a request see the most keys: start them first.
    request, tile = request_of_tile(
        cu_seqlens_q, requests, tl.num_programs(0) - 1 - tl.program_id(0), BLOCK_Q
    )
    head = tl.program_id(1)
    query_start = tl.load(cu_seqlens_q + request)
    query_len = tl.load(cu_seqlens_q + request + 1) - query_start
    if tile * BLOCK_Q >= query_len:
        return
    if SKIP_DECODE and query_len == 1:
        return
    context = tl.load(seq_lens + request) - query_len
    window = tl.load(head_window + head)
    sink = tl.load(head_sink + head)
    base = tl.multiple_of(tl.load(head_base + head), 16)
    table = (
        block_tables
        + tl.load(head_group + head) * table_group_stride
        + request.to(tl.int64) * table_request_stride
    )

    rows = tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_D)
    token = tile * BLOCK_Q + rows // RATIO
    used = (rows < BLOCK_Q * RATIO) & (token < query_len)
    used_lanes = used[:, None] & (lane < HEAD_SIZE)[None, :]
    row_token = (query_start + token).to(tl.int64)
    row_head = head * RATIO + rows % RATIO
    query_address = row_token * query_token_stride + row_head * query_head_stride
    q = tl.load(query + query_address[:, None] + lane[None, :], mask=used_lanes, other=0.0)

    position = context + token
    earliest = context + tile * BLOCK_Q
    last = context + tl.minimum(tile * BLOCK_Q + BLOCK_Q, query_len) - 1
    first = first_visible(earliest, window)
    sink_end, low, high = visible_tiles(first, last, sink, BLOCK_N)
    # Tiles [full_low, full_high) lie below the earliest row and in the window of the latest: no mask needed.
    full_low = tl.minimum(tl.maximum(ceil_div(first_visible(last, window), BLOCK_N), low), high)
    full_high = tl.maximum((earliest + 1) // BLOCK_N, full_low)

    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    # Finite, so that a row whose keys so far are all masked needs no special case.
    row_max = tl.full([BLOCK_M], -1.0e38, dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for key_tile in tl.range(full_low, full_high):
        acc, row_max, row_sum = attend_tile(
            q, position, acc, row_max, row_sum, key_tile, first, last, window, sink,
            pool, table, base, page_stride, token_stride, value_offset, scale, cap,
            False, SOFT_CAP, PAGE_SIZE, HEAD_SIZE, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    edge_end = sink_end + full_low - low
    for step in tl.range(0, edge_end + high - full_high):
        # Sink tiles, then the window's edge, then the diagonal.
        key_tile = tl.where(
            step < sink_end,
            step,
            tl.where(step < edge_end, step - sink_end + low, step - edge_end + full_high),
        )
        acc, row_max, row_sum = attend_tile(
            q, position, acc, row_max, row_sum, key_tile, first, last, window, sink,
            pool, table, base, page_stride, token_stride, value_offset, scale, cap,
            True, SOFT_CAP, PAGE_SIZE, HEAD_SIZE, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip

    output_address = row_token * output_token_stride + row_head * output_head_stride
    result = acc / row_sum[:, None]
    tl.store(
        output + output_address[:, None] + lane[None, :], result.to(output.dtype.element_ty), mask=used_lanes
    )


def prefill_launch(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float,
    skip_decode: bool,
    capability: int | None = None,
) -> TritonLaunch:
    """The prefill call of a batch. The grid is an upper bound from shapes; programs without a tile exit.

    Args:
        query, layout, batch, output, softmax_scale, soft_cap: see `segpaged_attention`.
        skip_decode: leave requests of one query token out.
        capability: 10 * major + minor to tile for; the query's device by default.

    Raises:
        ValueError: more query heads share a KV head than a query tile has rows.
    """
    ratio = query.shape[1] // layout.num_kv_heads
    config = prefill_config(
        layout.head_size, query.dtype, soft_cap > 0, capability or device_limits(query.device)[0]
    )
    if ratio > config.block_m:
        raise ValueError(f"{ratio} query heads share a KV head; valid: up to {config.block_m}")
    requests = batch.seq_lens.shape[0]
    tiles = batch.num_tokens // (config.block_m // ratio) + requests
    scale, cap = score_factors(softmax_scale, soft_cap)
    return TritonLaunch(
        prefill_kernel,
        (tiles if requests else 0, layout.num_kv_heads),
        {
            "query": query,
            "output": output,
            **layout_arguments(layout),
            "block_tables": batch.block_tables,
            "cu_seqlens_q": batch.cu_seqlens_q,
            "seq_lens": batch.seq_lens,
            "scale": scale,
            "cap": cap,
            "requests": requests,
            "table_group_stride": batch.block_tables.stride(0),
            "table_request_stride": batch.block_tables.stride(1),
            "query_token_stride": query.stride(0),
            "query_head_stride": query.stride(1),
            "output_token_stride": output.stride(0),
            "output_head_stride": output.stride(1),
            "RATIO": ratio,
            "HEAD_SIZE": layout.head_size,
            "BLOCK_D": padded_head_size(layout.head_size),
            "PAGE_SIZE": layout.page_size,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "SOFT_CAP": soft_cap > 0,
            "SKIP_DECODE": skip_decode,
            "PRECISION": "ieee",
        },
        config.num_warps,
        config.num_stages,
    )


def score_factors(softmax_scale: float, soft_cap: float) -> tuple[float, float]:
    """`scale` and `cap` as `attend_tile` takes them."""
    if soft_cap > 0:
        return 2 * LOG2_E * softmax_scale / soft_cap, soft_cap * LOG2_E
    return softmax_scale * LOG2_E, 0.0


def layout_arguments(layout: SegmentLayout) -> dict[str, torch.Tensor | int]:
    """Kernel arguments that say where the segments lie and what each head sees."""
    return {
        "pool": layout.pool,
        "head_base": layout.base,
        "head_group": layout.group,
        "head_window": layout.window,
        "head_sink": layout.sink,
        "page_stride": layout.page_stride,
        "token_stride": layout.token_stride,
        "value_offset": layout.value_offset,
    }
