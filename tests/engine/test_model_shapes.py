"""Other models than SmolLM2: head ratios, head sizes, own sliding windows, soft caps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.harness import ALL_GLOBAL, Completion, engine, largest_difference
from tests.engine.head_files import random_heads, write
from tests.engine.oracle import MaskedModel
from tests.engine.small_models import LAYERS, SHAPES, save

pytestmark = pytest.mark.slow


def prompts(count: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 512, (150 + 61 * i,), generator=generator).tolist() for i in range(count)]


def run(folder: Path, redknot: dict[str, Any] | None) -> list[Completion]:
    with engine(
        folder,
        redknot,
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=512,
        max_num_batched_tokens=96,
        kv_cache_memory_bytes=2**26,
    ) as server:
        return server.complete(prompts(), max_tokens=4, prompt_logprobs=True)


def assert_close(got: Sequence[Completion], expected: Sequence[Completion]) -> None:
    for left, right in zip(got, expected, strict=True):
        assert left.token_ids == right.token_ids
        assert largest_difference(left.prompt_logprobs, right.prompt_logprobs) < 2e-4


@pytest.mark.parametrize("name", SHAPES)
def test_all_heads_global_equals_stock_on_other_shapes(name: str, tmp_path: Path) -> None:
    folder = save(SHAPES[name], tmp_path)
    assert_close(run(folder, ALL_GLOBAL), run(folder, None))


@pytest.mark.parametrize("name", ["mha", "gqa_8", "mqa", "qwen3_head_128_with_qk_norm"])
def test_random_classes_equal_explicit_masks_on_other_shapes(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    folder = save(shape, tmp_path)
    heads = random_heads(LAYERS, shape.kv_heads, seed=5)
    got = run(folder, {"heads": write(tmp_path, heads)})
    model = MaskedModel(folder, torch.float32)
    for completion, prompt in zip(got, prompts(), strict=True):
        assert largest_difference(completion.prompt_logprobs, model.prompt_logprobs(prompt, heads)) < 1e-3


def test_a_layer_with_its_own_window_keeps_it_and_ignores_head_classes(tmp_path: Path) -> None:
    shape = SHAPES["mistral_own_sliding_window"]
    folder = save(shape, tmp_path)
    narrower = write(tmp_path, [[(7, 0)] * shape.kv_heads] * LAYERS)
    assert_close(run(folder, {"heads": narrower}), run(folder, None))
