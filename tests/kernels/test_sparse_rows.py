"""Sparse rows on the CPU against their oracle: bit-identical."""

import random

import pytest
import torch

from vllm_redknot.kernels.sparse_rows import pack_rows, unpack_rows
from vllm_redknot.kernels.sparse_rows.reference import pack_rows_reference, unpack_rows_reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def case(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix that is a slice of a wider one, all else NaN, and some of its rows."""
    rng = random.Random(seed)
    total, columns = rng.choice([1, 7, 300]), rng.choice([1, 64, 576, 1000])
    wide = torch.full((total, columns + 8), float("nan"), dtype=dtype)
    wide[:, 8:] = torch.randn(total, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    rows = sorted(rng.sample(range(total), rng.choice([0, 1, total // 2, total]) if total > 1 else seed % 2))
    return wide[:, 8:], torch.tensor(rows, dtype=torch.int64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_random_rows_equal_the_oracle(seed: int, dtype: torch.dtype) -> None:
    source, rows = case(seed, dtype)
    packed = pack_rows(source, rows)
    assert packed.is_contiguous()
    assert torch.equal(packed, pack_rows_reference(source, rows))
    assert torch.equal(
        unpack_rows(packed, rows, source.shape[0]), unpack_rows_reference(packed, rows, source.shape[0])
    )


def test_packing_and_unpacking_keeps_the_rows_and_clears_the_others() -> None:
    source, rows = torch.randn(10, 32), torch.tensor([0, 3, 9])
    result = unpack_rows(pack_rows(source, rows), rows, 10)
    assert torch.equal(result[rows], source[rows])
    assert result.sum() == result[rows].sum()


def test_rows_outside_the_matrix_are_refused() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        pack_rows(torch.zeros(3, 4), torch.tensor([3]))
    with pytest.raises((IndexError, RuntimeError)):
        unpack_rows(torch.zeros(1, 4), torch.tensor([3]), 3)


def test_arguments_of_the_wrong_shape_dtype_or_order_are_refused() -> None:
    rows = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"source is torch\.float32 \(3, 4, 5\)"):
        pack_rows(torch.zeros(3, 4, 5), rows)
    with pytest.raises(ValueError, match="contiguous rows"):
        pack_rows(torch.zeros(4, 3).T, rows)
    with pytest.raises(ValueError, match=r"rows is torch\.int32"):
        pack_rows(torch.zeros(3, 4), rows.int())
    with pytest.raises(ValueError, match="packed has 3 rows and rows names 2"):
        unpack_rows(torch.zeros(3, 4), rows, 9)
