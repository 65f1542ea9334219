"""The features REDKNOT does not serve, each with the option that asks for it and what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from vllm_redknot.kernels.layout import HEAD_SIZES
from vllm_redknot.plugin import vllm_version
from vllm_redknot.reuse.policy import BLEND, BOUNDARY
from vllm_redknot.reuse.setup import SCHEDULERS, is_ours
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Mass, Predictor
from vllm_redknot.settings import BACKEND_NAME, settings_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""vLLM's names of the types that K and V may have."""
PAGE_MULTIPLE = 16
"""Tokens; a page is a multiple of this."""
REUSE_VLLM = "0.32."
"""Releases whose scheduler reuse was checked against."""
OWN_CONNECTORS = "vllm_redknot."
"""Where connectors live that know which pages a local head keeps."""


class Refusal(NamedTuple):
    """One thing that is asked for and not served. `remedy` is empty where only another backend helps."""

    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


def refusals(vllm_config: Any) -> list[Refusal]:
    """What of a configuration is not served whatever the head classes are."""
    return [*_of_model(vllm_config.model_config), *_of_engine(vllm_config)]


def refusals_of_local_heads(vllm_config: Any) -> list[Refusal]:
    """What else is not served if a head is local: it needs pages of its own life span, under vLLM's own management."""
    found = []
    all_global = 'or use {"redknot": {"heads": "all-global"}}'
    if vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        found.append(
            Refusal(
                "local heads without vLLM's hybrid KV-cache manager",
                f"remove --disable-hybrid-kv-cache-manager, {all_global}",
            )
        )
    connector = vllm_config.kv_transfer_config
    if connector is not None and not (connector.kv_connector_module_path or "").startswith(OWN_CONNECTORS):
        # They take a sliding window to be all that a request keeps, and would leave its sinks unset.
        found.append(
            Refusal(
                f"local heads with the KV connector {connector.kv_connector}",
                f"remove --kv-transfer-config, {all_global}",
            )
        )
    return found


def refusals_of_reuse(vllm_config: Any, rows: RowSchedule | None) -> list[Refusal]:
    """What else is not served with KV reuse. `rows`: what prompt tokens skip, if they do."""
    found = list(_of_reuse(vllm_config))
    if rows is not None and isinstance(rows.sparse_ffn, Mass):
        # A document's KV would follow from the chunks it came in, which no fingerprint tells.
        found.append(Refusal('KV reuse with the sparse_ffn rule "mass"', 'give {"redknot": {"rows": "off"}}'))
    return found


def _of_reuse(vllm_config: Any) -> Iterator[Refusal]:
    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    if not (version := vllm_version()).startswith(REUSE_VLLM):
        yield Refusal(f"KV reuse in vLLM {version}", f"use vLLM {REUSE_VLLM}x")
    off = 'or use {"redknot": {"reuse": "off"}}'
    settings = settings_of(vllm_config)
    if settings.store is None:
        yield Refusal("KV reuse without a store", f'give {{"redknot": {{"store": "FOLDER"}}}}, {off}')
    if settings.reuse == "on" and settings.capture == "marked":
        # What the gate stored was encoded alone.
        yield Refusal(
            'KV reuse "on" with documents captured behind others', 'give {"redknot": {"capture": "first"}}'
        )
    if parallel.world_size > 1:
        yield Refusal("KV reuse with several workers", f"use one tensor and pipeline rank, {off}")
    transfer = vllm_config.kv_transfer_config
    if transfer is not None and not is_ours(transfer):
        yield Refusal("KV reuse with another KV connector", f"remove --kv-transfer-config, {off}")
    if scheduler.scheduler_cls not in (None, *SCHEDULERS.values()):
        yield Refusal("KV reuse with another scheduler", f"remove --scheduler-cls, {off}")
    if not scheduler.enable_chunked_prefill:
        yield Refusal("KV reuse without chunked prefill", f"remove --no-enable-chunked-prefill, {off}")
    if vllm_config.use_v2_model_runner:
        # It keeps positions to itself, and would not follow a request that skips tokens.
        yield Refusal("KV reuse in vLLM's second model runner", f"set VLLM_USE_V2_MODEL_RUNNER=0, {off}")
    if vllm_config.model_config.get_sliding_window() is not None:
        yield Refusal("KV reuse in models with sliding windows of their own", off.removeprefix("or "))


def refusals_of_rows(vllm_config: Any, schedule: RowSchedule) -> list[Refusal]:
    """What else is not served if prompt tokens skip rows."""
    return [
        Refusal(f"row skipping with {what}", f'{remedy}, or give {{"redknot": {{"rows": "off"}}}}')
        for what, remedy in _of_rows(vllm_config, schedule)
    ]


def _of_rows(vllm_config: Any, schedule: RowSchedule) -> Iterator[tuple[str, str]]:
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    compilation = vllm_config.compilation_config
    if vllm_config.use_v2_model_runner:
        yield "Model Runner V2", "set VLLM_USE_V2_MODEL_RUNNER=0"
    sparse = schedule.sparse_ffn
    if compilation.mode and sparse is not None and not isinstance(sparse, Predictor):
        yield f'the sparse_ffn rule "{sparse.rule}" and torch.compile', "give --enforce-eager"
    if vllm_config.lora_config is not None:
        yield "LoRA", "remove --enable-lora"
    transfer = vllm_config.kv_transfer_config
    if transfer is not None and not is_ours(transfer):
        yield "a KV connector", "remove --kv-transfer-config"
    if model.is_moe and parallel.data_parallel_size > 1:
        yield "data parallelism of experts", "remove --data-parallel-size"


def _of_model(model_config: Any) -> Iterator[Refusal]:
    if model_config.use_mla:
        yield Refusal("MLA models")
    if model_config.is_encoder_decoder:
        yield Refusal("encoder-decoder models")
    if model_config.is_attention_free:
        yield Refusal("models without attention")
        return
    if model_config.attn_type == "encoder_only":
        yield Refusal("models whose attention is not causal")
    if model_config.is_mm_prefix_lm:
        yield Refusal("models that attend to image tokens in both directions")
    if model_config.attention_chunk_size is not None:
        yield Refusal("chunked local attention")
    if model_config.rswa_window is not None:
        yield Refusal("reference sliding-window attention")
    # New in vLLM 0.33: a model may own the grouping of its KV-cache layers.
    if getattr(model_config, "supports_kv_cache_grouping", False):
        yield Refusal("models with a KV-cache grouping of their own")
    yield from (Refusal(what) for what in _special_attention(model_config.hf_text_config))
    if not model_config.use_mla and (size := model_config.get_head_size()) not in HEAD_SIZES:
        yield Refusal(f"heads of size {size} (served: {', '.join(map(str, HEAD_SIZES))})")
    if model_config.dtype not in DTYPES.values():
        yield Refusal(f"{model_config.dtype}", f"give --dtype {' or '.join(DTYPES)}")


def _special_attention(text: Any) -> Iterator[str]:
    """What a model's layers are known to need. Other models' layers are checked when they are built."""
    if text.model_type == "gpt_oss":
        yield "learned attention sinks"
    alibi = getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) == "alibi"
    if alibi or text.model_type == "bloom":
        yield "ALiBi"
    if getattr(text, "num_kv_shared_layers", 0):
        yield "layers that share the KV of another layer"


def _of_engine(vllm_config: Any) -> Iterator[Refusal]:
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    if vllm_config.speculative_config is not None:
        yield Refusal("speculative decoding", "remove --speculative-config")
    if parallel.decode_context_parallel_size > 1:
        yield Refusal("decode context parallelism", "remove --decode-context-parallel-size")
    if parallel.prefill_context_parallel_size > 1:
        yield Refusal("prefill context parallelism", "remove --prefill-context-parallel-size")
    if parallel.use_ubatching:
        yield Refusal("micro-batching", "remove --enable-dbo and --ubatch-size")
    if cache.kv_sharing_fast_prefill:
        yield Refusal("KV-sharing fast prefill", "remove --kv-sharing-fast-prefill")
    if cache.user_specified_block_size and cache.block_size % PAGE_MULTIPLE:
        yield Refusal(
            f"pages of {cache.block_size} tokens", f"give --block-size a multiple of {PAGE_MULTIPLE}"
        )
    if cache.cache_dtype != "auto" and DTYPES.get(cache.cache_dtype) != vllm_config.model_config.dtype:
        yield Refusal(
            f"{cache.cache_dtype} KV in a {str(vllm_config.model_config.dtype).removeprefix('torch.')} model",
            "remove --kv-cache-dtype",
        )
    if vllm_config.attention_config.use_non_causal:
        yield Refusal("attention to later tokens", "remove use_non_causal from --attention-config")
    if mixed := _mixed_backends(vllm_config):
        yield Refusal(
            f"a model that also uses {mixed} ({BACKEND_NAME} must serve all its KV heads)",
            f"give --attention-backend {BACKEND_NAME} and no backend_per_kind",
        )


def _mixed_backends(vllm_config: Any) -> str:
    """The other backends that the model's decoder layers would get, if any."""
    attention = vllm_config.attention_config
    kinds = ["full_attention"]
    if vllm_config.model_config.get_sliding_window() is not None:
        kinds.append("sliding_window")
    chosen = [attention.backend_per_kind.get(kind, attention.backend) for kind in kinds]
    names = [getattr(backend, "name", "vLLM's own choice") for backend in chosen]
    return " and ".join(dict.fromkeys(name for name in names if name != BACKEND_NAME))


def refusals_of_blend(vllm_config: Any, skips_rows: bool) -> list[Refusal]:
    """What else is not served with KV reuse where the server's policy is blend."""
    if settings_of(vllm_config).policy != BLEND:
        return []
    return [
        Refusal(
            f"KV reuse by blend with {what}", f'{remedy}, or give {{"redknot": {{"policy": "{BOUNDARY}"}}}}'
        )
        for what, remedy in _of_blend(vllm_config, skips_rows)
    ]


def _of_blend(vllm_config: Any, skips_rows: bool) -> Iterator[tuple[str, str]]:
    compilation = vllm_config.compilation_config
    if compilation.mode or getattr(compilation.cudagraph_mode, "value", 0):
        # Which rows a layer computes depends on what a layer before it found.
        yield "torch.compile or CUDA graphs", "give --enforce-eager"
    if skips_rows:
        yield "row skipping", 'give {"redknot": {"rows": "off"}}'
    if vllm_config.lora_config is not None:
        yield "LoRA", "remove --enable-lora"
