"""Sparse rows on a GPU: one Triton launch gathers them, one scatters them."""
# Upper case marks compile-time parameters, as everywhere in Triton.
# ruff: noqa: N803
# Triton is absent from the type checker's view.
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from vllm_redknot.kernels.triton_launch import TritonLaunch

BLOCK_E = 1024
"""Columns per program: 1024 two-byte elements are one 16-byte load for each of 128 threads."""


@triton.jit
def pack_rows_kernel(
    source: tl.tensor,
    rows: tl.tensor,
    packed: tl.tensor,
    source_stride: tl.int64,
    columns: tl.tensor,
    BLOCK_E: tl.constexpr,
) -> None:
    """Program (n, column tile): row ``rows[n]`` of `source` to row n of `packed`."""
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = column < columns
    row = tl.load(rows + place)
    values = tl.load(source + row * source_stride + column, mask=inside, other=0.0)
    tl.store(packed + place * columns + column, values, mask=inside)


@triton.jit
def unpack_rows_kernel(
    packed: tl.tensor,
    rows: tl.tensor,
    result: tl.tensor,
    packed_stride: tl.int64,
    columns: tl.tensor,
    BLOCK_E: tl.constexpr,
) -> None:
    """Program (n, column tile): row n of `packed` to row ``rows[n]`` of `result`."""
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = column < columns
    row = tl.load(rows + place)
    values = tl.load(packed + place * packed_stride + column, mask=inside, other=0.0)
    tl.store(result + row * columns + column, values, mask=inside)


def pack_rows_launch(source: torch.Tensor, rows: torch.Tensor, packed: torch.Tensor) -> TritonLaunch:
    """The launch of `pack_rows_triton` into `packed`; reads shapes and strides only."""
    return _launch(
        pack_rows_kernel,
        rows.shape[0],
        source.shape[1],
        {"source": source, "rows": rows, "packed": packed, "source_stride": source.stride(0)},
    )


def unpack_rows_launch(packed: torch.Tensor, rows: torch.Tensor, result: torch.Tensor) -> TritonLaunch:
    """The launch of `unpack_rows_triton` into `result`, whose other rows it leaves; reads shapes and strides only."""
    return _launch(
        unpack_rows_kernel,
        rows.shape[0],
        packed.shape[1],
        {"packed": packed, "rows": rows, "result": result, "packed_stride": packed.stride(0)},
    )


def _launch(kernel: object, count: int, columns: int, arguments: dict[str, object]) -> TritonLaunch:
    block = min(BLOCK_E, triton.next_power_of_2(columns))
    grid = (count, triton.cdiv(columns, block))
    return TritonLaunch(kernel, grid, {**arguments, "columns": columns, "BLOCK_E": block}, num_stages=1)


def pack_rows_triton(source: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See `pack_rows`; a row outside the matrix is not noticed."""
    packed = torch.empty((rows.shape[0], source.shape[1]), dtype=source.dtype, device=source.device)
    pack_rows_launch(source, rows, packed).run()
    return packed


def unpack_rows_triton(packed: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """See `unpack_rows`; a row outside the matrix is not noticed."""
    result = torch.zeros((num_rows, packed.shape[1]), dtype=packed.dtype, device=packed.device)
    unpack_rows_launch(packed, rows, result).run()
    return result
