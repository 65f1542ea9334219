"""Sparse rows on a GPU: one Triton launch packs, one unpacks and fills the other rows with zeros."""
# Upper case marks compile-time parameters, as everywhere in Triton.
# ruff: noqa: N803
# Triton is absent from the type checker's view.
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from vllm_redknot.kernels.triton_launch import TritonLaunch

BLOCK_E = 1024
"""Columns per program: a row of 1024 two-byte elements is four 16-byte loads per thread of one warp."""


@triton.jit(do_not_specialize=["columns"])
def pack_rows_kernel(
    source: tl.tensor,
    rows: tl.tensor,
    packed: tl.tensor,
    source_stride: tl.int64,
    columns: tl.tensor,
    BLOCK_E: tl.constexpr,
) -> None:
    """Program (n, column tile): row ``rows[n]`` of `source` to row n of `packed`."""
    place = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = column < columns
    values = tl.load(source + tl.load(rows + place) * source_stride + column, mask=inside, other=0.0)
    tl.store(packed + place.to(tl.int64) * columns + column, values, mask=inside)


@triton.jit(do_not_specialize=["columns", "count"])
def unpack_rows_kernel(
    packed: tl.tensor,
    rows: tl.tensor,
    result: tl.tensor,
    packed_stride: tl.int64,
    columns: tl.tensor,
    count: tl.tensor,
    SEARCH_STEPS: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """Program (t, column tile): row t of `result`, found in the increasing `rows` by bisection, or zeros."""
    row = tl.program_id(0).to(tl.int64)
    low, high = 0, count
    for _ in tl.static_range(SEARCH_STEPS):
        middle = (low + high) // 2
        below = (middle < count) & (tl.load(rows + middle, mask=middle < count, other=0) < row)
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    found = (low < count) & (tl.load(rows + low, mask=low < count, other=-1) == row)
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = column < columns
    place = tl.where(found, low, 0).to(tl.int64)
    values = tl.load(packed + place * packed_stride + column, mask=inside & found, other=0.0)
    tl.store(result + row * columns + column, values, mask=inside)


def pack_rows_launch(source: torch.Tensor, rows: torch.Tensor, packed: torch.Tensor) -> TritonLaunch:
    """The launch of `pack_rows_triton` into `packed`; reads shapes and strides only."""
    columns = source.shape[1]
    block = min(BLOCK_E, triton.next_power_of_2(columns))
    return TritonLaunch(
        pack_rows_kernel,
        (rows.shape[0], triton.cdiv(columns, block)),
        {
            "source": source,
            "rows": rows,
            "packed": packed,
            "source_stride": source.stride(0),
            "columns": columns,
            "BLOCK_E": block,
        },
        num_warps=4,
        num_stages=1,
    )


def unpack_rows_launch(packed: torch.Tensor, rows: torch.Tensor, result: torch.Tensor) -> TritonLaunch:
    """The launch of `unpack_rows_triton` into `result`; reads shapes and strides only."""
    columns, count = packed.shape[1], rows.shape[0]
    block = min(BLOCK_E, triton.next_power_of_2(columns))
    return TritonLaunch(
        unpack_rows_kernel,
        (result.shape[0], triton.cdiv(columns, block)),
        {
            "packed": packed,
            "rows": rows,
            "result": result,
            "packed_stride": packed.stride(0),
            "columns": columns,
            "count": count,
            # A bucket of counts shares a variant; 2^16 rows are more than any step has.
            "SEARCH_STEPS": 10 if count < 2**9 else 17,
            "BLOCK_E": block,
        },
        num_warps=4,
        num_stages=1,
    )


def pack_rows_triton(source: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See `pack_rows`; a row outside the matrix is not noticed."""
    packed = torch.empty((rows.shape[0], source.shape[1]), dtype=source.dtype, device=source.device)
    pack_rows_launch(source, rows, packed).run()
    return packed


def unpack_rows_triton(packed: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """See `unpack_rows`; a row outside the matrix is dropped.

    Raises:
        ValueError: there are 2^16 rows or more.
    """
    if rows.shape[0] >= 2**16:
        raise ValueError(f"{rows.shape[0]} rows are packed; valid: at most {2**16 - 1}")
    result = torch.empty((num_rows, packed.shape[1]), dtype=packed.dtype, device=packed.device)
    unpack_rows_launch(packed, rows, result).run()
    return result
