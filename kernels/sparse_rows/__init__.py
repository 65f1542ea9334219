"""Sparse rows: pack the rows of a matrix that are worth computing, unpack the results into zeros.

`pack_rows` gathers, `unpack_rows` scatters; together they run a row-wise function (an FFN, a projection) on some rows
of a batch. `reference.py` says what the results must be.
"""

import torch

__all__ = ["pack_rows", "unpack_rows"]


def pack_rows(source: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix, one after another.

    Args:
        source: [T, E], rows contiguous, stride(0) free; any floating type.
        rows: int64 [N], each in [0, T); on source's device.

    Returns:
        [N, E], contiguous, of source's dtype.

    Raises:
        ValueError: shapes, dtypes or strides are not served.
        IndexError: a row is not in the matrix (CPU only).
    """
    _check(source, rows, "source")
    if source.device.type == "cpu":
        return source.index_select(0, rows)
    if source.device.type == "cuda":
        from vllm_redknot.kernels.sparse_rows.triton import pack_rows_triton

        return pack_rows_triton(source, rows)
    raise ValueError(f"no sparse rows for device type {source.device.type!r}; valid: 'cpu', 'cuda'")


def unpack_rows(packed: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The matrix that has the packed rows at their places and zeros elsewhere.

    Args:
        packed: [N, E], rows contiguous, stride(0) free; any floating type.
        rows: int64 [N], no two alike, each in [0, num_rows); on packed's device.
        num_rows: T.

    Returns:
        [T, E], contiguous, of packed's dtype.

    Raises:
        ValueError: shapes, dtypes or strides are not served.
        IndexError: a row is not in the matrix (CPU only).
    """
    _check(packed, rows, "packed")
    if packed.shape[0] != rows.shape[0]:
        raise ValueError(f"packed has {packed.shape[0]} rows and rows names {rows.shape[0]}: give as many")
    if packed.device.type == "cpu":
        return packed.new_zeros(num_rows, packed.shape[1]).index_copy_(0, rows, packed)
    if packed.device.type == "cuda":
        from vllm_redknot.kernels.sparse_rows.triton import unpack_rows_triton

        return unpack_rows_triton(packed, rows, num_rows)
    raise ValueError(f"no sparse rows for device type {packed.device.type!r}; valid: 'cpu', 'cuda'")


def _check(matrix: torch.Tensor, rows: torch.Tensor, name: str) -> None:
    if matrix.dim() != 2 or not matrix.is_floating_point() or matrix.stride(1) != 1:
        raise ValueError(
            f"{name} is {matrix.dtype} {tuple(matrix.shape)} with strides {matrix.stride()}; valid: a floating "
            "[rows, columns] with contiguous rows"
        )
    if rows.dtype != torch.int64 or rows.dim() != 1 or not rows.is_contiguous():
        raise ValueError(f"rows is {rows.dtype} {tuple(rows.shape)}; valid: contiguous int64 [rows]")
