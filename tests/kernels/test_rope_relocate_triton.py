"""The Triton relocation: interpreted in a process of its own, and compiled for GPUs that are not there."""

import pytest
import torch
from cases import Shape, build_case
from interpreted_run import run_interpreted

pytest.importorskip("triton", reason="the GPU kernels need triton")

from triton_compile import compile_launch

from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.rope_relocate.rotation import Rotary
from vllm_redknot.kernels.rope_relocate.triton import rope_relocate_launch


def check_compiles(capability: int, head_size: int, rotated: int, interleaved: bool) -> None:
    shape = Shape([6, 1], [90, 9], (GLOBAL_WINDOW, 50), (0, 4), (0, 1), 1, head_size)
    case = build_case(shape, seed=0)
    rows, slots = case.query[:6], torch.zeros((2, 6), dtype=torch.int64)
    turn = Rotary(torch.ones(rotated // 2, dtype=torch.float64), interleaved).turn(1)
    resources = compile_launch(rope_relocate_launch(rows, rows, case.layout, slots, turn), capability)
    assert resources.stack == 0
    assert resources.registers <= 128
    assert {"LDG.E.128", "STG.E.128"} <= resources.instructions, "16 bytes at a time"


def test_an_h100_moves_heads_of_128_without_spills() -> None:
    check_compiles(90, 128, 128, interleaved=False)


@pytest.mark.slow
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_size", "rotated"), [(64, 64), (128, 64), (128, 0), (256, 256), (80, 80)])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_no_relocation_spills_or_splits_its_stores(
    capability: int, head_size: int, rotated: int, interleaved: bool
) -> None:
    check_compiles(capability, head_size, rotated, interleaved)


@pytest.mark.slow
def test_the_interpreted_relocation_matches_the_oracle() -> None:
    run_interpreted("rope_relocate.py")
