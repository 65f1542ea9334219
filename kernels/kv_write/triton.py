"""KV write on a GPU: one Triton launch stores K and V of all head segments of a layer."""
# Upper case marks compile-time parameters, as everywhere in Triton.
# ruff: noqa: N803
# Triton is absent from the type checker's view.
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.triton_launch import TritonLaunch

BLOCK_T = 16
"""Tokens per program: 16 rows of 128 two-byte elements are two 16-byte loads of K and of V per thread."""


@triton.jit
def slot_rows(
    pool: tl.tensor,
    head_base: tl.tensor,
    head_group: tl.tensor,
    slot_mappings: tl.tensor,
    tokens: tl.tensor,
    slot_group_stride: tl.tensor,
    page_stride: tl.tensor,
    token_stride: tl.tensor,
    PAGE_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """What program (token tile, h) stores of KV head h, and where.

    Returns:
        (row, stored, target), each [BLOCK_T, 1]: the token as int64, whether its slot is one, a pointer to the slot's
        key. Bases are multiples of 16 elements, so that rows are stored 16 bytes at a time.
    """
    head = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    group = tl.load(head_group + head)
    slot = tl.load(slot_mappings + group * slot_group_stride + token, mask=token < tokens, other=-1)
    base = tl.multiple_of(tl.load(head_base + head), 16)
    target = pool + (base + (slot // PAGE_SIZE) * page_stride + (slot % PAGE_SIZE) * token_stride)[:, None]
    return token.to(tl.int64)[:, None], (slot >= 0)[:, None], target


@triton.jit(do_not_specialize=["tokens", "slot_group_stride"])
def kv_write_kernel(
    key: tl.tensor,
    value: tl.tensor,
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
    PAGE_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Program (token tile, h): BLOCK_T rows of KV head h to the slots that the head's group maps them to."""
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
    stored = live & (lane < HEAD_SIZE)[None, :]
    keys = tl.load(
        key + row * key_token_stride + head * key_head_stride + lane[None, :], mask=stored, other=0.0
    )
    values = tl.load(
        value + row * value_token_stride + head * value_head_stride + lane[None, :], mask=stored, other=0.0
    )
    tl.store(target + lane[None, :], keys.to(pool.dtype.element_ty), mask=stored)
    tl.store(target + value_offset + lane[None, :], values.to(pool.dtype.element_ty), mask=stored)


def kv_write_launch(
    key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, slot_mappings: torch.Tensor
) -> TritonLaunch:
    """The launch of `kv_write_triton`; reads shapes, strides and host integers only.

    Raises:
        ValueError: shapes or strides are not served.
    """
    heads, tokens = layout.num_kv_heads, slot_mappings.shape[1]
    for name, rows in (("key", key), ("value", value)):
        if rows.shape[1:] != (heads, layout.head_size) or rows.shape[0] < tokens or rows.stride(2) != 1:
            raise ValueError(
                f"{name} is {tuple(rows.shape)} with strides {rows.stride()}; valid: "
                f"[at least {tokens}, {heads}, {layout.head_size}], contiguous in the head size"
            )
    if slot_mappings.dtype != torch.int64 or slot_mappings.stride(1) != 1:
        raise ValueError(
            f"slot_mappings is {slot_mappings.dtype} with strides {slot_mappings.stride()}; "
            "valid: int64, contiguous rows"
        )
    return TritonLaunch(
        kv_write_kernel,
        (-(-tokens // BLOCK_T), heads),
        {
            "key": key,
            "value": value,
            "pool": layout.pool,
            "head_base": layout.base,
            "head_group": layout.group,
            "slot_mappings": slot_mappings,
            "tokens": tokens,
            "slot_group_stride": slot_mappings.stride(0),
            "key_token_stride": key.stride(0),
            "key_head_stride": key.stride(1),
            "value_token_stride": value.stride(0),
            "value_head_stride": value.stride(1),
            "page_stride": layout.page_stride,
            "token_stride": layout.token_stride,
            "value_offset": layout.value_offset,
            "HEAD_SIZE": layout.head_size,
            "BLOCK_D": triton.next_power_of_2(layout.head_size),
            "PAGE_SIZE": layout.page_size,
            "BLOCK_T": BLOCK_T,
        },
        num_warps=4,
        num_stages=1,
    )


def kv_write_triton(
    key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, slot_mappings: torch.Tensor
) -> None:
    """See `kv_write`. Capturable in a CUDA graph; a slot outside the pool is not noticed.

    Raises:
        ValueError: shapes or strides are not served.
    """
    kv_write_launch(key, value, layout, slot_mappings).run()
