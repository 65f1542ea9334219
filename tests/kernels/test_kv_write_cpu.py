"""The CPU KV write against its oracle: bit-identical pools."""

import random
from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, HEAD_SIZES

from vllm_redknot.kernels.kv_write import kv_write
from vllm_redknot.kernels.kv_write.reference import kv_write_reference
from vllm_redknot.kernels.kv_write.torch_path import kv_write_torch
from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout

PAGE, PAGES = 16, 12


def random_layout(
    rng: random.Random, heads: int, groups: int, head_size: int, dtype: torch.dtype
) -> SegmentLayout:
    """Segments one after another in a NaN pool; heads of one group lie in different slots."""
    return SegmentLayout(
        pool=torch.full((heads * PAGES * PAGE * 2 * head_size,), float("nan"), dtype=dtype),
        base=torch.tensor(rng.sample(range(heads), heads)) * (PAGES * PAGE * 2 * head_size),
        group=torch.tensor([h % groups for h in range(heads)], dtype=torch.int32),
        window=torch.full((heads,), GLOBAL_WINDOW, dtype=torch.int32),
        sink=torch.zeros(heads, dtype=torch.int32),
        page_stride=PAGE * 2 * head_size,
        token_stride=2 * head_size,
        value_offset=head_size,
        page_size=PAGE,
        head_size=head_size,
    )


def check(seed: int, head_size: int, dtype: torch.dtype, write: Callable[..., None]) -> None:
    rng = random.Random(seed)
    heads, groups, tokens, padding = rng.choice([1, 3, 8]), rng.choice([1, 2]), rng.choice([0, 1, 5, 90]), 3
    groups = min(groups, heads)
    layout = random_layout(rng, heads, groups, head_size, dtype)
    qkv = torch.randn(tokens + padding, (heads * 2 + 1) * head_size).to(dtype)
    key, value = (
        qkv[:, (1 + part * heads) * head_size :][:, : heads * head_size].unflatten(1, (heads, head_size))
        for part in (0, 1)
    )
    slots = torch.stack([torch.randperm(PAGES * PAGE)[:tokens] for _ in range(groups)])
    slots[torch.rand(slots.shape) < 0.2] = -1
    expected = layout.pool.clone()
    kv_write_reference(key, value, SegmentLayout(**{**vars(layout), "pool": expected}), slots)
    write(key, value, layout, slots)
    assert torch.equal(layout.pool.nan_to_num(9e3), expected.nan_to_num(9e3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_random_writes_equal_the_oracle(head_size: int, dtype: torch.dtype) -> None:
    for seed in range(6):
        check(seed, head_size, dtype, kv_write)


@pytest.mark.parametrize("seed", range(6))
def test_the_torch_path_equals_the_oracle(seed: int) -> None:
    check(seed, 64, torch.bfloat16, kv_write_torch)


def test_a_slot_outside_the_pool_is_refused() -> None:
    layout = random_layout(random.Random(0), 1, 1, 64, torch.float32)
    row = torch.zeros(1, 1, 64)
    for slot in (PAGES * PAGE, 2**40, 2**62):
        with pytest.raises(IndexError, match=f"KV head 0: slot {slot} lies outside the pool"):
            kv_write(row, row, layout, torch.tensor([[slot]]))


def test_arguments_of_the_wrong_shape_dtype_or_order_are_refused() -> None:
    layout = random_layout(random.Random(0), 2, 1, 64, torch.float32)
    row, slots = torch.zeros(3, 2, 64), torch.tensor([[0, 1, 2]])
    with pytest.raises(ValueError, match=r"key must be torch\.float32"):
        kv_write(row.half(), row, layout, slots)
    with pytest.raises(ValueError, match="value's rows must be contiguous"):
        kv_write(row, torch.zeros(64, 2, 3).permute(2, 1, 0), layout, slots)
    with pytest.raises(ValueError, match="slot_mappings must be contiguous int64"):
        kv_write(row, row, layout, slots.int())
