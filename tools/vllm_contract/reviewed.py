"""Verdicts on what changed between supported releases in the code we build on: (old, new) -> difference -> verdict."""

from __future__ import annotations

_REFUSED = "; KV reuse is refused on 0.33"
"""What lets a difference of what KV reuse alone builds on stand."""

_SCHEDULER = {
    "__init__ changed": "fields for the differences below",
    "schedule changed": "a prefill interval, loads that wait for steps in flight; a request that cannot be scheduled no"
    " longer stops those behind it. Chunks still pass _reserve_prefill_lookahead",
    "update_from_output changed": "hashes blocks up to num_in_flight_tokens itself, and enqueues resumed requests last",
    "_update_request_with_output changed": "settles placeholders for both schedulers; a stop takes the tokens behind it"
    " back from num_computed_tokens, which spans are compared with",
    "_preempt_request changed": "forgets encoder inputs too",
    "_free_request changed": "forgets encoder inputs too",
    "_get_local_prefix_cache_hit changed": "may be cut short for auxiliary outputs",
    "_handle_blocked_waiting_request changed": "says why a grammar failed; loads are still waited for alike",
    "_handle_stopped_request changed": "its caller enqueues a resumed request; such requests are not eligible",
    "_update_request_as_session changed": "keeps another end of resumed requests, which are not eligible",
    "finish_requests changed": "an asynchronous load may not have started; ours are synchronous",
    "kv_cache_manager changed": "made with num_hash_lookahead_tokens, which may hash blocks of tokens to come",
    "num_hash_lookahead_tokens new": "of speculative decoding, which is refused",
    "_drafts_unused new": "of speculative decoding, which is refused",
    "can_skip_drafts new": "of speculative decoding, which is refused",
    "_drain_deferred_loads new": "asynchronous loads; ours are synchronous",
    "defer_async_loads new": "asynchronous loads; ours are synchronous",
    "deferred_loads new": "asynchronous loads; ours are synchronous",
    "local_prefill_interval new": "prefill may pause between steps: a skip in a paused step is not reviewed",
    "last_prefill_step new": "see local_prefill_interval",
    "num_executed_steps new": "see local_prefill_interval",
    "has_request new": "not called by us",
    "grammar_compile_error_reqs changed": "structured outputs' errors; not read by us",
    "aux_output_connector changed": "auxiliary outputs cap what a connector may match: a matched span would be cut",
    "_free_encoder_inputs changed": "encoder inputs; such requests are not eligible",
    "_get_encoder_input_updates new": "encoder inputs; such requests are not eligible",
    "_pending_encoder_input_ids new": "encoder inputs; such requests are not eligible",
    "_try_schedule_encoder_inputs changed": "encoder inputs; such requests are not eligible",
    "_mamba_block_aligned_split changed": "Mamba layers, which are refused",
}

REVIEWED = {
    ("0.32", "0.33"): {
        **{
            f"{scheduler}.{difference}": verdict + _REFUSED
            for scheduler in ("Scheduler", "AsyncScheduler")
            for difference, verdict in _SCHEDULER.items()
        },
        "KVConnectorBase_V1.supports_sleep_mode new": "True by default: engines with our connector may sleep"
        + _REFUSED,
        "KVConnectorBase_V1.unregister_kv_caches new": "does nothing by default, before an engine sleeps"
        + _REFUSED,
        "KVConnectorBase_V1.restore_kv_caches new": "does nothing by default, after an engine slept"
        + _REFUSED,
        "set_forward_context changed": "makes a batch descriptor of the number of tokens without CUDA graphs too;"
        " called without one" + _REFUSED,
        "cached_tokenizer_from_config changed": "hands on the model's code_revision; asked for the engine's own"
        " tokenizer alone" + _REFUSED,
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
