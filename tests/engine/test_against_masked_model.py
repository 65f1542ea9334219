"""The engine against an independent model with explicit per-head masks, on real weights."""

from pathlib import Path

import pytest
import torch

from tests.engine.conftest import Cut
from tests.engine.harness import engine, largest_difference
from tests.engine.head_files import random_heads, write
from tests.engine.oracle import MaskedModel

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("seed", "chunk"), [(0, 64), (1, 512), (2, 2048)])
def test_logprobs_equal_those_of_explicit_masks_in_fp32(
    seed: int, chunk: int, model_path: Path, cut: Cut, tmp_path: Path
) -> None:
    heads = random_heads(30, 3, seed)
    # The second prompt ends in the middle of a page.
    prompts = [cut(0, 500), cut(500, 467)]
    model = MaskedModel(model_path, torch.float32)
    expected = [model.prompt_logprobs(prompt, heads) for prompt in prompts]
    dense = model.prompt_logprobs(prompts[0], [[None] * 3] * 30)
    settings = {"heads": write(tmp_path, heads)}
    with engine(model_path, settings, dtype="float32", max_num_batched_tokens=chunk) as ours:
        got = ours.complete(prompts, max_tokens=1, prompt_logprobs=True)
    for completion, logprobs in zip(got, expected, strict=True):
        assert largest_difference(completion.prompt_logprobs, logprobs) < 1e-3
    # The masks matter: without them the same model says something else.
    assert largest_difference(expected[0], dense) > 0.1
