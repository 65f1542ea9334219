"""The Triton kernels of sparse rows under Triton's interpreter, against the oracle.

Run by tests/kernels/test_sparse_rows_triton.py in a process of its own.
"""
# ruff: noqa: E402

import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1, in a process of its own"

import pytest
import torch

from vllm_redknot.kernels.sparse_rows.reference import pack_rows_reference, unpack_rows_reference
from vllm_redknot.kernels.sparse_rows.triton import (
    pack_rows_launch,
    pack_rows_triton,
    unpack_rows_launch,
    unpack_rows_triton,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("columns", [1, 64, 576, 1500])
@pytest.mark.parametrize("count", [0, 1, 17, 40])
def test_every_row_and_only_those_match_the_oracle_bit_for_bit(
    count: int, columns: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(count + columns)
    # A slice of a wider matrix of NaN, as a fused activation would be.
    wide = torch.full((40, columns + 5), float("nan"), dtype=dtype)
    wide[:, 5:] = torch.randn((40, columns), generator=generator).to(dtype)
    source = wide[:, 5:]
    rows = torch.randperm(40, generator=generator)[:count].sort().values
    packed = torch.full((count, columns), float("nan"), dtype=dtype)
    pack_rows_launch(source, rows, packed).run()
    assert torch.equal(packed, pack_rows_reference(source, rows))
    assert torch.equal(pack_rows_triton(source, rows), packed)
    result = torch.full((40, columns), float("nan"), dtype=dtype)
    unpack_rows_launch(packed, rows, result).run()
    assert torch.equal(result, unpack_rows_reference(packed, rows, 40))
    assert torch.equal(unpack_rows_triton(packed, rows, 40), result)


def test_long_lists_of_rows_are_searched_to_their_ends() -> None:
    for count in (511, 512, 700):
        rows = torch.arange(count) * 2 + 1
        packed = torch.arange(count, dtype=torch.float32)[:, None] + 1
        result = unpack_rows_triton(packed, rows, 2 * count + 1)
        assert torch.equal(result, unpack_rows_reference(packed, rows, 2 * count + 1))


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="65536 rows are packed"):
        unpack_rows_triton(torch.zeros(2**16, 1), torch.arange(2**16), 2**16)
