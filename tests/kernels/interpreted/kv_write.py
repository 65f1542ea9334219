"""The Triton KV write under Triton's interpreter, against the oracle.

Run by tests/kernels/test_kv_write_triton.py in a process of its own.
"""
# ruff: noqa: E402

import dataclasses
import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1, in a process of its own"

import pytest
import torch

from vllm_redknot.kernels.kv_write.reference import kv_write_reference
from vllm_redknot.kernels.kv_write.triton import kv_write_triton
from vllm_redknot.kernels.layout import SegmentLayout


def layout(
    groups: list[int], head_size: int, page_size: int, pages: int, dtype: torch.dtype
) -> SegmentLayout:
    """Segments page by page beside each other in a pool of a recognisable filler."""
    heads, page = len(groups), page_size * 2 * head_size
    return SegmentLayout(
        pool=torch.full((heads * pages * page,), -7.0, dtype=dtype),
        base=torch.arange(heads) * page,
        group=torch.tensor(groups, dtype=torch.int32),
        window=torch.full((heads,), 5, dtype=torch.int32),
        sink=torch.zeros(heads, dtype=torch.int32),
        page_stride=heads * page,
        token_stride=2 * head_size,
        value_offset=head_size,
        page_size=page_size,
        head_size=head_size,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_size", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("page_size", [16, 48, 128])
def test_every_slot_and_only_those_match_the_oracle_bit_for_bit(
    head_size: int, page_size: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(head_size + page_size)
    tokens, groups, pages = 37, [0, 2, 1, 0], 6
    written = layout(groups, head_size, page_size, pages, dtype)
    expected = dataclasses.replace(written, pool=written.pool.clone())
    slots = torch.stack([torch.randperm(pages * page_size, generator=generator)[:tokens] for _ in range(3)])
    slots[torch.rand(slots.shape, generator=generator) < 0.2] = -1
    # K and V as slices of a fused projection, with padding rows of NaN.
    fused = torch.randn((tokens + 3, 3, len(groups), head_size), generator=generator).to(dtype)
    fused[tokens:] = float("nan")
    kv_write_reference(fused[:, 1], fused[:, 2], expected, slots)
    kv_write_triton(fused[:, 1], fused[:, 2], written, slots)
    assert torch.equal(written.pool, expected.pool)
    assert (written.pool == -7.0).any()


@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 200])
def test_any_number_of_tokens_is_written(tokens: int) -> None:
    written = layout([0, 1], 64, 16, 20, torch.bfloat16)
    expected = dataclasses.replace(written, pool=written.pool.clone())
    slots = torch.stack([torch.arange(tokens), torch.arange(tokens).flip(0) + 3])
    rows = torch.randn((2, tokens, 2, 64)).bfloat16()
    kv_write_reference(rows[0], rows[1], expected, slots)
    kv_write_triton(rows[0], rows[1], written, slots)
    assert torch.equal(written.pool, expected.pool)


def test_slots_beyond_two_to_the_31_elements_do_not_wrap() -> None:
    # A pool of 2^31 + elements would need 4 GiB: a negative base stands for the pages that are not there.
    page, far = 16 * 2 * 64, 2**31 // (16 * 2 * 64) + 5
    written = dataclasses.replace(
        layout([0], 64, 16, 2, torch.bfloat16), base=torch.tensor([-far * page]), page_stride=page
    )
    rows = torch.randn((2, 3, 1, 64)).bfloat16()
    kv_write_triton(rows[0], rows[1], written, torch.tensor([[far * 16, far * 16 + 17, -1]]))
    assert torch.equal(written.pool[:64], rows[0, 0, 0])
    assert torch.equal(written.pool[64:128], rows[1, 0, 0])
    assert torch.equal(written.pool[page + 128 : page + 192], rows[0, 1, 0])


def test_tensors_of_the_wrong_shape_are_refused() -> None:
    written = layout([0], 64, 16, 2, torch.bfloat16)
    rows = torch.zeros((2, 1, 64), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"key is \(2, 1, 64\).*at least 3, 1, 64"):
        kv_write_triton(rows, rows, written, torch.zeros((1, 3), dtype=torch.int64))
    with pytest.raises(ValueError, match=r"slot_mappings is torch.int32"):
        kv_write_triton(rows, rows, written, torch.zeros((1, 2), dtype=torch.int32))
