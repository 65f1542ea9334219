"""Triton decode: split-KV attention of one-token requests, then a reduction over the splits.

Grids come from shapes alone and scratch is allocated from shapes, so both launches can be captured in a CUDA graph:
a replay with other lengths, or with padded requests (no query row), only changes which programs exit at once.
"""
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
    SPLIT_KEYS,
    decode_config,
    device_limits,
    num_splits,
    padded_head_size,
)
from vllm_redknot.kernels.segpaged_attention.triton_device import (
    attend_tile,
    first_visible,
    split_of_tiles,
    visible_tiles,
)
from vllm_redknot.kernels.segpaged_attention.triton_prefill import layout_arguments, score_factors
from vllm_redknot.kernels.triton_launch import TritonLaunch


@triton.jit(do_not_specialize=["splits", "table_group_stride"])
def decode_kernel(
    query: tl.tensor,
    output: tl.tensor,
    partial: tl.tensor,
    partial_lse: tl.tensor,
    pool: tl.tensor,
    head_index: tl.tensor,
    head_base: tl.tensor,
    head_group: tl.tensor,
    head_window: tl.tensor,
    head_sink: tl.tensor,
    block_tables: tl.tensor,
    cu_seqlens_q: tl.tensor,
    seq_lens: tl.tensor,
    scale: tl.tensor,
    cap: tl.tensor,
    splits: tl.tensor,
    table_group_stride: tl.int64,
    table_request_stride: tl.int64,
    query_token_stride: tl.int64,
    query_head_stride: tl.int64,
    output_token_stride: tl.int64,
    output_head_stride: tl.int64,
    page_stride: tl.int64,
    token_stride: tl.int64,
    value_offset: tl.int64,
    QUERY_HEADS: tl.constexpr,
    RATIO: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Program (split, h, request): one share of the key tiles that the request's query sees in KV head h.

    A head that needs a single split writes its output; others write normalised partials [R, Hq, splits, D] and
    their base-2 log-sum-exp [R, Hq, splits].
    """
    split = tl.program_id(0)
    request = tl.program_id(2)
    query_start = tl.load(cu_seqlens_q + request)
    query_len = tl.load(cu_seqlens_q + request + 1) - query_start
    length = tl.load(seq_lens + request)
    if (query_len != 1) | (length < 1):
        return
    head = tl.program_id(1)
    if head_index is not None:
        head = tl.load(head_index + head)
    window = tl.load(head_window + head)
    sink = tl.load(head_sink + head)
    last = length - 1
    first = first_visible(last, window)
    sink_end, low, high = visible_tiles(first, last, sink, BLOCK_N)
    tiles = sink_end + high - low
    per_split, used_splits = split_of_tiles(tiles, splits, MIN_TILES)
    if split >= used_splits:
        return
    base = tl.multiple_of(tl.load(head_base + head), 16)
    table = (
        block_tables
        + tl.load(head_group + head) * table_group_stride
        + request.to(tl.int64) * table_request_stride
    )

    rows = tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_D)
    used_lanes = (rows < RATIO)[:, None] & (lane < HEAD_SIZE)[None, :]
    row_head = head * RATIO + rows
    query_address = query_start.to(tl.int64) * query_token_stride + row_head * query_head_stride
    q = tl.load(query + query_address[:, None] + lane[None, :], mask=used_lanes, other=0.0)
    position = tl.zeros([BLOCK_M], dtype=tl.int32) + last

    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], -1.0e38, dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for step in tl.range(split * per_split, tl.minimum(split * per_split + per_split, tiles)):
        key_tile = tl.where(step < sink_end, step, step - sink_end + low)
        acc, row_max, row_sum = attend_tile(
            q, position, acc, row_max, row_sum, key_tile, first, last, window, sink,
            pool, table, base, page_stride, token_stride, value_offset, scale, cap,
            True, SOFT_CAP, PAGE_SIZE, HEAD_SIZE, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip

    result = acc / row_sum[:, None]
    # Nested: the condition outside is known to the compiler, the one inside is not.
    if SPLIT:  # noqa: SIM102
        if used_splits > 1:
            entry = (request.to(tl.int64) * QUERY_HEADS + row_head) * splits + split
            tl.store(partial + entry[:, None] * HEAD_SIZE + lane[None, :], result, mask=used_lanes)
            tl.store(partial_lse + entry, row_max + tl.log2(row_sum), mask=rows < RATIO)
            return
    output_address = query_start.to(tl.int64) * output_token_stride + row_head * output_head_stride
    tl.store(
        output + output_address[:, None] + lane[None, :], result.to(output.dtype.element_ty), mask=used_lanes
    )


@triton.jit(do_not_specialize=["splits"])
def reduce_kernel(
    output: tl.tensor,
    partial: tl.tensor,
    partial_lse: tl.tensor,
    head_index: tl.tensor,
    head_window: tl.tensor,
    head_sink: tl.tensor,
    cu_seqlens_q: tl.tensor,
    seq_lens: tl.tensor,
    splits: tl.tensor,
    output_token_stride: tl.int64,
    output_head_stride: tl.int64,
    QUERY_HEADS: tl.constexpr,
    RATIO: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:
    """Program (query head of the launch, request): weigh the partials of its splits by their log-sum-exp."""
    request = tl.program_id(1)
    query_start = tl.load(cu_seqlens_q + request)
    query_len = tl.load(cu_seqlens_q + request + 1) - query_start
    length = tl.load(seq_lens + request)
    if (query_len != 1) | (length < 1):
        return
    head = tl.program_id(0) // RATIO
    if head_index is not None:
        head = tl.load(head_index + head)
    query_head = head * RATIO + tl.program_id(0) % RATIO
    last = length - 1
    first = first_visible(last, tl.load(head_window + head))
    sink_end, low, high = visible_tiles(first, last, tl.load(head_sink + head), BLOCK_N)
    _, used_splits = split_of_tiles(sink_end + high - low, splits, MIN_TILES)
    if used_splits == 1:
        return

    lane = tl.arange(0, BLOCK_D)
    entry = (request.to(tl.int64) * QUERY_HEADS + query_head) * splits
    acc = tl.zeros([BLOCK_D], dtype=tl.float32)
    maximum = tl.max(tl.full([BLOCK_S], -1.0e38, dtype=tl.float32), 0)
    total = tl.sum(tl.zeros([BLOCK_S], dtype=tl.float32), 0)
    for start in tl.range(0, used_splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        valid = split < used_splits
        lse = tl.load(partial_lse + entry + split, mask=valid, other=float("-inf"))
        rows = tl.load(
            partial + (entry + split)[:, None] * HEAD_SIZE + lane[None, :],
            mask=valid[:, None] & (lane < HEAD_SIZE)[None, :],
            other=0.0,
        )
        new_max = tl.maximum(maximum, tl.max(lse, 0))
        weights = tl.exp2(lse - new_max)
        decay = tl.exp2(maximum - new_max)
        acc = acc * decay + tl.sum(weights[:, None] * rows, 0)
        total = total * decay + tl.sum(weights, 0)
        maximum = new_max
    address = query_start.to(tl.int64) * output_token_stride + query_head * output_head_stride
    tl.store(output + address + lane, (acc / total).to(output.dtype.element_ty), mask=lane < HEAD_SIZE)


def decode_launches(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float,
    heads: torch.Tensor | None = None,
    splits: int | None = None,
) -> list[TritonLaunch]:
    """The decode call of a batch, and the reduction where there is more than one split.

    Requests with another number of query tokens than one are left alone. Output rows are written in place.

    Args:
        query, layout, batch, output, softmax_scale, soft_cap: see `segpaged_attention`.
        heads: int32 [N], the KV heads to serve; None for all.
        splits: KV splits at most; by default from the batch's static sizes.
    """
    requests, kv_heads = batch.seq_lens.shape[0], layout.num_kv_heads
    query_heads = query.shape[1]
    ratio = query_heads // kv_heads
    launched = kv_heads if heads is None else heads.shape[0]
    config = decode_config(layout.head_size, ratio, query.dtype)
    if splits is None:
        max_context = batch.block_tables.shape[2] * layout.page_size
        splits = num_splits(requests, launched, max_context, device_limits(query.device)[1])
    scratch = (requests, query_heads, splits) if splits > 1 else (0,)
    scale, cap = score_factors(softmax_scale, soft_cap)
    shared = {
        "output": output,
        "partial": torch.empty((*scratch, layout.head_size), dtype=torch.float32, device=query.device),
        "partial_lse": torch.empty(scratch, dtype=torch.float32, device=query.device),
        "head_index": heads,
        "head_window": layout.window,
        "head_sink": layout.sink,
        "cu_seqlens_q": batch.cu_seqlens_q,
        "seq_lens": batch.seq_lens,
        "splits": splits,
        "output_token_stride": output.stride(0),
        "output_head_stride": output.stride(1),
        "QUERY_HEADS": query_heads,
        "RATIO": ratio,
        "HEAD_SIZE": layout.head_size,
        "BLOCK_D": padded_head_size(layout.head_size),
        "BLOCK_N": config.block_n,
        "MIN_TILES": SPLIT_KEYS // config.block_n,
    }
    decode = TritonLaunch(
        decode_kernel,
        (splits, launched, requests),
        {
            **shared,
            **layout_arguments(layout),
            "query": query,
            "block_tables": batch.block_tables,
            "scale": scale,
            "cap": cap,
            "table_group_stride": batch.block_tables.stride(0),
            "table_request_stride": batch.block_tables.stride(1),
            "query_token_stride": query.stride(0),
            "query_head_stride": query.stride(1),
            "PAGE_SIZE": layout.page_size,
            "BLOCK_M": config.block_m,
            "SOFT_CAP": soft_cap > 0,
            "SPLIT": splits > 1,
            "PRECISION": "ieee",
        },
        config.num_warps,
        config.num_stages,
    )
    if splits == 1:
        return [decode]
    return [decode, TritonLaunch(reduce_kernel, (launched * ratio, requests), {**shared, "BLOCK_S": 16})]
