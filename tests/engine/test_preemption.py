"""Requests that lose their pages and start over give the same answer. A small model, so that a small pool is enough."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.harness import assert_same, count_preemptions, engine
from tests.engine.head_files import random_heads, write
from tests.engine.small_models import LAYERS, SHAPES, save

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preempted_requests_resume_with_the_same_tokens(prefix_caching: bool, tmp_path: Path) -> None:
    shape = SHAPES["gqa_4"]
    folder = save(shape, tmp_path)
    settings = {"heads": write(tmp_path, random_heads(LAYERS, shape.kv_heads, seed=5))}
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 512, (40 + i,), generator=generator).tolist() for i in range(8)]
    limits: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 320,
        "max_num_batched_tokens": 96,
        "enable_prefix_caching": prefix_caching,
    }
    with engine(folder, settings, **limits, kv_cache_memory_bytes=2**25) as roomy:
        preempted = count_preemptions(roomy)
        expected = roomy.complete(prompts, max_tokens=250)
        assert not preempted
    with engine(folder, settings, **limits, kv_cache_memory_bytes=1_250_000) as cramped:
        preempted = count_preemptions(cramped)
        free = cramped.free_blocks
        got = cramped.complete(prompts, max_tokens=250)
        assert preempted
        assert cramped.free_blocks == free
    assert_same(got, expected)
