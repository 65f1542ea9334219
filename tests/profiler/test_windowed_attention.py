"""Blocked window attention against an explicit mask."""

import pytest
import torch

from vllm_redknot.profiler.windowed import attend


@pytest.mark.parametrize("length", [1, 5, 64, 100, 257])
@pytest.mark.parametrize("window", [1, 3, 16, 64, 300, None])
@pytest.mark.parametrize("sink", [0, 1, 4, 20])
@pytest.mark.parametrize("rounded", [False, True])
def test_outputs_and_gradients_are_those_of_the_explicit_mask(
    length: int, window: int | None, sink: int, rounded: bool
) -> None:
    generator = torch.Generator().manual_seed(length)
    query, key, value = (
        torch.randn(heads, length, 16, generator=generator, requires_grad=True) for heads in (6, 2, 2)
    )
    got = attend(query, key, value, window, sink, 0.25, rounded)
    position = torch.arange(length)
    distance = position[:, None] - position[None]
    seen = (distance >= 0) & ((distance < (window or 2**30)) | (position < sink))
    scores = (query @ key.repeat_interleave(3, 0).transpose(1, 2)) * 0.25
    wanted = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value.repeat_interleave(3, 0)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    direction = torch.randn(got.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad(got, (query, key, value), direction),
        torch.autograd.grad(wanted, (query, key, value), direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
