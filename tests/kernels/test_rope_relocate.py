"""Relocation on the CPU: against the oracle, and against rotating the unrotated key at the new position."""

import dataclasses
import random

import pytest
import torch
from cases import DTYPES, HEAD_SIZES

from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.kernels.rope_relocate import NO_ROTATION, Rotary, Turn, rope_relocate
from vllm_redknot.kernels.rope_relocate.reference import rope_relocate_reference, rotate_reference
from vllm_redknot.kernels.rope_relocate.torch_path import ROWS, rotate_torch

PAGE, PAGES = 16, 9
BF16_BOUND = 2.5e-3
"""Relative error of moved bf16 keys against exact ones at the new place. Rounded once, keys are 1.7e-3 off."""


def frequencies(rotated: int, theta: float = 10_000.0) -> torch.Tensor:
    return theta ** -(torch.arange(0, rotated, 2, dtype=torch.float64) / max(rotated, 1))


def at_position(key: torch.Tensor, rotary: Rotary, position: int) -> torch.Tensor:
    """The definition, in fp64: a pair as a complex number, times e^(i angle)."""
    half = rotary.inv_freq.numel()
    out = key.double().clone()
    turned = out[..., : 2 * half]
    if rotary.interleaved:
        pairs = torch.view_as_complex(turned.unflatten(-1, (half, 2)).contiguous())
    else:
        pairs = torch.complex(turned[..., :half], turned[..., half:])
    moved = torch.view_as_real(pairs * torch.polar(torch.ones(half).double(), rotary.inv_freq * position))
    out[..., : 2 * half] = moved.flatten(-2) if rotary.interleaved else moved.mT.flatten(-2)
    return out


def empty_layout(heads: int, groups: int, head_size: int, dtype: torch.dtype) -> SegmentLayout:
    """Segments one after another in a NaN pool."""
    return SegmentLayout(
        pool=torch.full((heads * PAGES * PAGE * 2 * head_size,), float("nan"), dtype=dtype),
        base=torch.arange(heads) * (PAGES * PAGE * 2 * head_size),
        group=torch.tensor([h % groups for h in range(heads)], dtype=torch.int32),
        window=torch.full((heads,), GLOBAL_WINDOW, dtype=torch.int32),
        sink=torch.zeros(heads, dtype=torch.int32),
        page_stride=PAGE * 2 * head_size,
        token_stride=2 * head_size,
        value_offset=head_size,
        page_size=PAGE,
        head_size=head_size,
    )


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moving_keys_equals_computing_them_at_the_new_position(
    dtype: torch.dtype, share: float, interleaved: bool
) -> None:
    rng = random.Random(f"{share}{interleaved}")
    for head_size in HEAD_SIZES:
        rotary = Rotary(frequencies(int(head_size * share) // 2 * 2), interleaved)
        start, end = rng.sample([0, 1, 17, 800, 5_000, 30_000, 131_000], 2)
        key = torch.randn(40, 3, head_size, dtype=torch.float64)
        before = at_position(key, rotary, start).to(dtype)
        expected = at_position(key, rotary, end)
        bound = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: BF16_BOUND}[dtype]
        for rotate in (rotate_reference, rotate_torch):
            assert relative_error(rotate(before, rotary.turn(end - start)), expected) < bound


def test_there_and_back_is_the_same_key_in_fp32() -> None:
    rotary = Rotary(frequencies(64))
    key = torch.randn(100, 64)
    back = rotate_torch(rotate_torch(key, rotary.turn(4321)), rotary.turn(-4321))
    torch.testing.assert_close(back, key, rtol=0, atol=2e-6)


def test_no_move_leaves_every_bit() -> None:
    key = torch.randn(100, 2, 64).bfloat16()
    for rotary in (Rotary(frequencies(64)), Rotary(frequencies(32), interleaved=True), NO_ROTATION):
        assert torch.equal(rotate_torch(key, rotary.turn(0)), key)
    assert torch.equal(rotate_torch(key, NO_ROTATION.turn(999)), key)


def test_the_input_keeps_its_values_and_may_be_strided() -> None:
    wide = torch.randn(ROWS + 5, 3, 64)
    copy, turn = wide.clone(), Rotary(frequencies(48)).turn(77)
    got = rotate_torch(wide[:, 1], turn)
    assert torch.equal(wide, copy)
    torch.testing.assert_close(got, rotate_reference(copy[:, 1], turn), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_random_relocations_equal_the_oracle(seed: int, dtype: torch.dtype) -> None:
    rng = random.Random(seed)
    heads, groups, tokens = rng.choice([2, 3, 8]), rng.choice([1, 2]), rng.choice([0, 1, 90])
    head_size = rng.choice(HEAD_SIZES)
    written = empty_layout(heads, groups, head_size, dtype)
    expected = dataclasses.replace(written, pool=written.pool.clone())
    key, value = (torch.randn(tokens + 2, heads, head_size).to(dtype) for _ in range(2))
    slots = torch.stack([torch.randperm(PAGES * PAGE)[:tokens] for _ in range(groups)])
    slots[torch.rand(slots.shape) < 0.2] = -1
    turn = Rotary(frequencies(rng.choice([0, 16, head_size])), rng.random() < 0.5).turn(
        rng.randrange(-99, 9_999)
    )
    rope_relocate_reference(key, value, expected, slots, turn)
    rope_relocate(key, value, written, slots, turn)
    # One unit in the last place: multiply and add may be contracted.
    step = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(written.pool, expected.pool, rtol=step, atol=step, equal_nan=True)
    assert torch.equal(written.pool.isnan(), expected.pool.isnan())


def test_a_rotation_wider_than_the_head_is_refused() -> None:
    row = torch.zeros(1, 1, 64)
    with pytest.raises(ValueError, match="turns 128 elements on cpu; valid: at most 64"):
        rope_relocate(
            row,
            row,
            empty_layout(1, 1, 64, torch.float32),
            torch.tensor([[0]]),
            Rotary(frequencies(128)).turn(1),
        )


def test_a_turn_knows_how_many_elements_it_turns() -> None:
    assert Rotary(frequencies(48)).turn(3).rotated == 48
    assert Turn(torch.ones(4), torch.zeros(4), False).to(torch.device("cpu")).rotated == 8
