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
    assert torch.equal(result[rows], packed)
    assert result.isnan().any(dim=1).sum() == 40 - count, "rows that are not named are not written"
    assert torch.equal(unpack_rows_triton(packed, rows, 40), unpack_rows_reference(packed, rows, 40))
