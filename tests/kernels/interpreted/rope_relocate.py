"""The Triton relocation under Triton's interpreter, against the oracle.

Run by tests/kernels/test_rope_relocate_triton.py in a process of its own.
"""
# ruff: noqa: E402

import dataclasses
import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1, in a process of its own"

import interpreter_bf16
import pytest
import torch
from kv_write import layout

from vllm_redknot.kernels.rope_relocate.reference import rope_relocate_reference
from vllm_redknot.kernels.rope_relocate.rotation import Rotary
from vllm_redknot.kernels.rope_relocate.triton import rope_relocate_triton

interpreter_bf16.install()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("head_size", "rotated"),
    [(64, 64), (64, 0), (80, 80), (96, 24), (128, 64), (128, 128), (192, 96), (256, 256)],
)
def test_turned_keys_and_values_match_the_oracle_bit_for_bit(
    head_size: int, rotated: int, interleaved: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(head_size + rotated)
    tokens, groups, pages, page_size = 37, [0, 2, 1, 0], 6, 16
    written = layout(groups, head_size, page_size, pages, dtype)
    expected = dataclasses.replace(written, pool=written.pool.clone())
    slots = torch.stack([torch.randperm(pages * page_size, generator=generator)[:tokens] for _ in range(3)])
    slots[torch.rand(slots.shape, generator=generator) < 0.2] = -1
    rows = torch.randn((tokens + 3, 2, len(groups), head_size), generator=generator).to(dtype)
    rows[tokens:] = float("nan")
    inv_freq = 10_000.0 ** -(torch.arange(0, rotated, 2, dtype=torch.float64) / max(rotated, 1))
    turn = Rotary(inv_freq, interleaved).turn(1234)
    rope_relocate_reference(rows[:, 0], rows[:, 1], expected, slots, turn)
    rope_relocate_triton(rows[:, 0], rows[:, 1], written, slots, turn)
    assert torch.equal(written.pool, expected.pool)
    assert (written.pool == -7.0).any()


@pytest.mark.parametrize("tokens", [0, 1, 16, 200])
def test_any_number_of_tokens_is_moved(tokens: int) -> None:
    written = layout([0, 1], 64, 16, 20, torch.float32)
    expected = dataclasses.replace(written, pool=written.pool.clone())
    slots = torch.stack([torch.arange(tokens), torch.arange(tokens).flip(0) + 3])
    rows = torch.randn((2, tokens, 2, 64))
    turn = Rotary(torch.tensor([0.5, 0.01], dtype=torch.float64)).turn(-7)
    rope_relocate_reference(rows[0], rows[1], expected, slots, turn)
    rope_relocate_triton(rows[0], rows[1], written, slots, turn)
    assert torch.equal(written.pool, expected.pool)
