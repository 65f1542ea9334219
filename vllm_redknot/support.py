"""What REDKNOT can serve: the checks that run as soon as an engine's configuration is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from vllm_redknot.config import SECTION
from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.resolve import ResolvedHeads, resolve_heads
from vllm_redknot.settings import is_requested, settings_of

logger = init_logger("vllm.redknot")

LINEAR_KINDS = frozenset({"linear_attention", "mamba", "recurrent", "conv"})
"""Values of a config's `layer_types` that have no KV heads."""


class UnsupportedError(ValueError):
    """The engine's configuration asks for something REDKNOT does not serve."""


def check_engine_config(vllm_config: Any) -> None:
    """Refuse what cannot be served, before any process is started. Does nothing unless REDKNOT is asked for.

    Raises:
        UnsupportedError: A feature REDKNOT does not serve.
        RedknotConfigError: A wrong setting.
        HeadFileError, HeadFitError: A head file that cannot be read or does not fit the model.
    """
    if vllm_config.model_config is None:
        return
    if not is_requested(vllm_config):
        additional = vllm_config.additional_config
        if isinstance(additional, dict) and SECTION in additional:
            logger.warning_once(
                "REDKNOT: additional_config has settings for REDKNOT, but it is not the attention backend: they have no"
                " effect. Add --attention-backend REDKNOT."
            )
        return
    if refused := unsupported_features(vllm_config):
        raise UnsupportedError(
            f"REDKNOT does not serve {'; '.join(refused)}. Choose another --attention-backend."
        )
    resolve_model_heads(vllm_config)


def unsupported_features(vllm_config: Any) -> list[str]:
    """What of the configuration REDKNOT does not serve, each with the option that asks for it."""
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    found = {
        "MLA models": vllm_config.model_config.use_mla,
        "encoder-decoder models": vllm_config.model_config.is_encoder_decoder,
        "models without attention": vllm_config.model_config.is_attention_free,
        "speculative decoding (--speculative-config)": vllm_config.speculative_config is not None,
        "decode context parallelism (--decode-context-parallel-size)": parallel.decode_context_parallel_size
        > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "micro-batching (--enable-dbo, --ubatch-size)": parallel.use_ubatching,
        f"quantised KV (--kv-cache-dtype {cache.cache_dtype})": cache.cache_dtype
        not in ("auto", "bfloat16", "float16", "float32"),
        "KV-sharing fast prefill (--kv-sharing-fast-prefill)": cache.kv_sharing_fast_prefill,
    }
    return [what for what, present in found.items() if present]


def resolve_model_heads(vllm_config: Any) -> ResolvedHeads:
    """The head classes for the configured model."""
    return resolve_heads(settings_of(vllm_config), model_shape(vllm_config.model_config))


def model_shape(model_config: Any) -> ModelShape:
    """The shape of a model that vLLM has recognised."""
    text = model_config.hf_text_config
    folder = Path(model_config.model)
    kinds = getattr(text, "layer_types", None)
    attention = None
    if isinstance(kinds, (list, tuple)) and LINEAR_KINDS.intersection(kinds):
        attention = tuple(index for index, kind in enumerate(kinds) if kind not in LINEAR_KINDS)
    rope = getattr(text, "rope_parameters", None)
    theta = rope.get("rope_theta") if isinstance(rope, dict) else getattr(text, "rope_theta", None)
    return ModelShape(
        num_layers=text.num_hidden_layers,
        num_kv_heads=model_config.get_total_num_kv_heads(),
        num_attention_heads=text.num_attention_heads,
        head_dim=model_config.get_head_size(),
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        model_type=text.model_type,
        model_dir=folder if folder.is_dir() else None,
        attention_layer_ids=attention,
        intermediate_size=getattr(text, "intermediate_size", None),
        rope_theta=None if theta is None else float(theta),
    )
