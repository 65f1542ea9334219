"""Relocation on a GPU: one Triton launch turns keys and stores K and V of all head segments of a layer."""
# Upper case marks compile-time parameters, as everywhere in Triton.
# ruff: noqa: N803
# Triton is absent from the type checker's view.
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from vllm_redknot.kernels.kv_write.triton import BLOCK_T, kv_write_launch, slot_rows
from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.rope_relocate.rotation import Turn
from vllm_redknot.kernels.triton_launch import TritonLaunch


@triton.jit(do_not_specialize=["tokens", "slot_group_stride"])
def rope_relocate_kernel(
    key: tl.tensor,
    value: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    pool: tl.tensor,
    head_base: tl.tensor,
    head_group: tl.tensor,
    slot_mappings: tl.tensor,
    tokens: tl.tensor,
    slot_group_stride: tl.int64,
    key_token_stride: tl.int64,
    key_head_stride: tl.int64,
    value_token_stride: tl.int64,
    value_head_stride: tl.int64,
    page_stride: tl.int64,
    token_stride: tl.int64,
    value_offset: tl.int64,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Program (token tile, h): BLOCK_T rows of KV head h, turned, to the slots that the head's group maps them to."""
    row, live, target = slot_rows(
        pool,
        head_base,
        head_group,
        slot_mappings,
        tokens,
        slot_group_stride,
        page_stride,
        token_stride,
        PAGE_SIZE,
        BLOCK_T,
    )
    head = tl.program_id(1)
    lane = tl.arange(0, BLOCK_D)
    source = key + row * key_token_stride + head * key_head_stride

    stored = live & (lane < HEAD_SIZE)[None, :]
    values = tl.load(
        value + row * value_token_stride + head * value_head_stride + lane[None, :], mask=stored, other=0.0
    )
    tl.store(target + value_offset + lane[None, :], values.to(pool.dtype.element_ty), mask=stored)

    if 2 * HALF < HEAD_SIZE:
        rest = live & ((lane >= 2 * HALF) & (lane < HEAD_SIZE))[None, :]
        kept = tl.load(source + lane[None, :], mask=rest, other=0.0)
        tl.store(target + lane[None, :], kept.to(pool.dtype.element_ty), mask=rest)
    if HALF > 0:
        pair = tl.arange(0, BLOCK_HALF)
        turned = pair < HALF
        c = tl.load(cos + pair, mask=turned, other=1.0)[None, :]
        s = tl.load(sin + pair, mask=turned, other=0.0)[None, :]
        if INTERLEAVED:
            both = tl.arange(0, 2 * BLOCK_HALF)
            mask = live & (both < 2 * HALF)[None, :]
            keys = tl.load(source + both[None, :], mask=mask, other=0.0).to(tl.float32)
            x, y = tl.split(keys.reshape(BLOCK_T, BLOCK_HALF, 2))
            moved = tl.join(x * c - y * s, y * c + x * s).reshape(BLOCK_T, 2 * BLOCK_HALF)
            tl.store(target + both[None, :], moved.to(pool.dtype.element_ty), mask=mask)
        else:
            mask = live & turned[None, :]
            x = tl.load(source + pair[None, :], mask=mask, other=0.0).to(tl.float32)
            y = tl.load(source + HALF + pair[None, :], mask=mask, other=0.0).to(tl.float32)
            tl.store(target + pair[None, :], (x * c - y * s).to(pool.dtype.element_ty), mask=mask)
            tl.store(target + HALF + pair[None, :], (y * c + x * s).to(pool.dtype.element_ty), mask=mask)


def rope_relocate_launch(
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SegmentLayout,
    slot_mappings: torch.Tensor,
    turn: Turn,
) -> TritonLaunch:
    """The launch of `rope_relocate_triton`; reads shapes, strides and host integers only.

    Raises:
        ValueError: shapes or strides are not served.
    """
    write = kv_write_launch(key, value, layout, slot_mappings)
    half = turn.cos.numel()
    arguments = {
        **write.arguments,
        # A kernel wants a pointer even where nothing is turned.
        "cos": turn.cos if half else layout.window,
        "sin": turn.sin if half else layout.window,
        "HALF": half,
        "BLOCK_HALF": triton.next_power_of_2(max(half, 1)),
        "INTERLEAVED": turn.interleaved,
        "BLOCK_T": BLOCK_T,
    }
    return TritonLaunch(rope_relocate_kernel, write.grid, arguments, num_warps=4, num_stages=1)


def rope_relocate_triton(
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SegmentLayout,
    slot_mappings: torch.Tensor,
    turn: Turn,
) -> None:
    """See `rope_relocate`; a slot outside the pool is not noticed.

    Raises:
        ValueError: shapes or strides are not served.
    """
    rope_relocate_launch(key, value, layout, slot_mappings, turn).run()
