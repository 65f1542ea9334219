"""Configurations of small models whose attention the profiler must not score, and what its refusal says of each."""

from typing import Any

from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Llama4TextConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 4096,
}
HEAD: dict[str, Any] = {**TINY, "head_dim": 64}
LATENT: dict[str, Any] = {
    **TINY,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 4,
}
SOME_SLIDE = {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 256}

FOREIGN: dict[str, tuple[PretrainedConfig, str]] = {
    "a sliding window in every layer": (
        MistralConfig(**HEAD, sliding_window=256),
        "(mistral) has layers with a sliding window of their own (256 tokens), which",
    ),
    "a sliding window in some layers": (
        Qwen2Config(**TINY, **SOME_SLIDE),
        "(qwen2) has 1 of 4 layers with a sliding window of their own, which",
    ),
    "sliding windows by default": (
        Gemma3TextConfig(**HEAD),
        "(gemma3_text) has 4 of 4 layers with a sliding window of their own, which",
    ),
    "sliding windows and soft caps": (
        Gemma2Config(**HEAD),
        "(gemma2) has 2 of 4 layers with a sliding window of their own and soft-capped attention scores"
        " (attn_logit_softcapping 50.0), which",
    ),
    "soft caps alone": (
        Gemma2Config(**HEAD, layer_types=["full_attention"] * 4),
        "(gemma2) has soft-capped attention scores (attn_logit_softcapping 50.0), which",
    ),
    "chunked attention": (
        Llama4TextConfig(**HEAD),
        "(llama4_text) has 3 of 4 layers with chunked local attention, which",
    ),
    "latent attention": (
        DeepseekV3Config(**LATENT),
        "(deepseek_v3) has multi-head latent attention (MLA), which",
    ),
}
