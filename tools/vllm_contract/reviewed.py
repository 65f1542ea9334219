"""Verdicts on what changed between supported releases in the code we build on: (old, new) -> difference -> verdict."""

from __future__ import annotations

REVIEWED = {
    ("0.32", "0.33"): {
        "AttentionBackend.supports_kv_cache_update_bypass new": "False by default: forward gets K and V, as it needs",
        "AttentionImpl.set_interleaved_v_cache new": "called by a ROCm fusion pass only; the default does nothing",
        "SlidingWindowManager.cache_blocks changed": "counts hashed tokens too; its use of our block mask is as it was",
        "SlidingWindowManager.pop_blocks_for_free changed": "drops leading null blocks; ours have sinks before theirs,"
        " and the block pool skips nulls in the middle",
        "SlidingWindowSpec.is_draft new": "not compared; False without speculative decoding, which is refused",
        "SlidingWindowSpec.num_retained_tokens new": "GPU workers null table entries below it, sinks included:"
        " SinkWindowSpec overrides it so that none is nulled",
        "BlockPool.touch changed": "skips null blocks; we touch sinks only",
        "get_kv_cache_groups changed": "moved; no longer marks draft layers. Called through a KVCacheConfigBuilder:"
        " a model with a grouping of its own bypasses it, and is refused",
        "CpuPlatform.get_attn_backend_cls changed": "checks the KV dtype of its own backend; still ignores the choice",
        "SingleTypeKVCacheManager.cache_blocks changed": "counts hashed tokens too, and adds EAGLE's boundary to ours",
        "GPUModelRunner._build_attention_metadata changed": "multimodal ranges moved out; real steps alone still come"
        " with num_scheduled_tokens",
        "UnquantizedLinearMethod.process_weights_after_loading changed": "pads weights on ROCm; the CPU's packing,"
        " which we call, is as it was",
        "UnquantizedLinearMethod.dequantize_weight changed": "not called by us",
        "CpuPlatform.check_and_update_config changed": "sets the default block size later; a given one is checked",
    },
}
