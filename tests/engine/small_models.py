"""Small models of many shapes, with random weights large enough that attention matters."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from tests.engine.head_files import Limits, random_heads

LAYERS = 3
HIDDEN = 128
BASE = {
    "hidden_size": HIDDEN,
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
    """Write a checkpoint of this shape."""
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


def random_cut() -> Callable[[int, int], list[int]]:
    """Random tokens of such a model where a test with real text cuts a stretch of it: (start, length) -> tokens."""
    generator = torch.Generator().manual_seed(1)

    def cut(start: int, length: int) -> list[int]:
        del start
        return torch.randint(0, int(BASE["vocab_size"]), (length,), generator=generator).tolist()

    return cut


def small_heads(seed: int | None) -> list[list[Limits]]:
    """Random classes of a model with two KV heads; without a seed all are global."""
    return [[None] * 2] * LAYERS if seed is None else random_heads(LAYERS, 2, seed)
