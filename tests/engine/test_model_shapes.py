"""Other models than SmolLM2: head ratios, head sizes, own sliding windows, soft caps; random weights of real magnitude."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from tests.engine.harness import ALL_GLOBAL, Completion, engine, largest_difference
from tests.engine.head_files import random_heads, write
from tests.engine.oracle import MaskedModel

pytestmark = pytest.mark.slow

LAYERS = 3
BASE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Shape:
    """A small model: its config class, query heads, KV heads, head size, further keys."""

    config: type[PretrainedConfig]
    query_heads: int
    kv_heads: int
    head_dim: int
    extra: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "mha": Shape(LlamaConfig, 4, 4, 64),
    "gqa_4": Shape(LlamaConfig, 8, 2, 64),
    "gqa_8": Shape(LlamaConfig, 16, 2, 64),
    "mqa": Shape(LlamaConfig, 4, 1, 128),
    "qwen3_head_128_with_qk_norm": Shape(Qwen3Config, 8, 2, 128),
    "head_256": Shape(LlamaConfig, 2, 2, 256),
    "head_80": Shape(LlamaConfig, 4, 2, 80),
    "mistral_own_sliding_window": Shape(MistralConfig, 4, 2, 64, {"sliding_window": 50}),
    "gemma2_alternating_windows_and_soft_cap": Shape(
        Gemma2Config,
        4,
        2,
        64,
        {"sliding_window": 48, "attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 64},
    ),
}


def save(shape: Shape, folder: Path) -> Path:
    """Random weights large enough that attention matters."""
    torch.manual_seed(0)
    config = shape.config(
        **BASE,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        initializer_range=0.15,
        **shape.extra,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


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
