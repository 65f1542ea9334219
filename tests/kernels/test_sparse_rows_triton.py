"""The Triton kernels of sparse rows: interpreted in a process of their own, and compiled for each architecture."""

import pytest
import torch
from interpreted_run import run_interpreted

pytest.importorskip("triton", reason="the GPU kernels need triton")

from triton_compile import compile_launch

from vllm_redknot.kernels.sparse_rows.triton import pack_rows_launch, unpack_rows_launch


@pytest.mark.slow
def test_the_interpreted_kernels_match_the_oracle() -> None:
    run_interpreted("sparse_rows.py")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("columns", [576, 4096])
def test_no_kernel_spills_or_splits_its_loads(capability: int, columns: int) -> None:
    matrix, rows = torch.zeros(32, columns, dtype=torch.bfloat16), torch.arange(16)
    for launch in (
        pack_rows_launch(matrix, rows, matrix[:16]),
        unpack_rows_launch(matrix[:16], rows, matrix),
    ):
        resources = compile_launch(launch, capability)
        assert resources.stack == 0
        assert resources.registers <= 64
        assert {"LDG.E.128", "STG.E.128"} <= resources.instructions, "16 bytes at a time"
