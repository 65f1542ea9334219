"""What REDKNOT does not serve is refused while the configuration is made: in one line, naming the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_redknot import support
from vllm_redknot.patches.early_checks import StartRefusedError
from vllm_redknot.plugin import register

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 256,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
ABSENT = "absent"
Start = Callable[..., VllmConfig]


@pytest.fixture
def start(model_path: Path) -> Start:
    """An engine's configuration for SmolLM2, made as `vllm serve` makes it; no engine is started."""

    # vLLM reads `attention_config={...}` before it loads plugins; its command line loads them first.
    register()

    def make(**arguments: Any) -> VllmConfig:
        defaults = {"model": str(model_path), "attention_backend": "REDKNOT", "max_model_len": 2048}
        return EngineArgs(**{**defaults, **arguments}).create_engine_config()

    return make


@pytest.fixture
def start_model(start: Start, tmp_path: Path) -> Start:
    """The same for a model that is only a config.json."""

    def make(config: dict[str, Any], **arguments: Any) -> VllmConfig:
        values = {key: value for key, value in {**LLAMA, **config}.items() if value != ABSENT}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return start(model=str(tmp_path), skip_tokenizer_init=True, max_model_len=256, **arguments)

    return make


def message(start: Callable[[], VllmConfig]) -> str:
    """Why a start is refused: one line."""
    with pytest.raises(StartRefusedError) as refused:
        start()
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("backend", ["REDKNOT", "redknot"])
def test_the_backend_is_chosen_by_name_in_any_case(start: Start, backend: str) -> None:
    assert start(attention_backend=backend).attention_config.backend is AttentionBackendEnum["REDKNOT"]


@pytest.mark.parametrize(
    "attention_config",
    [
        {"backend": "REDKNOT"},
        {"backend": "redknot"},
        {"backend_per_kind": {"full_attention": "REDKNOT"}},
        {"backend": "CPU_ATTN", "backend_per_kind": {"full_attention": "REDKNOT"}},
    ],
)
def test_the_backend_is_chosen_by_attention_config(start: Start, attention_config: dict[str, Any]) -> None:
    with pytest.raises(StartRefusedError, match=r"redknot\.window"):
        start(
            attention_backend=None,
            attention_config=attention_config,
            additional_config={"redknot": {"window": 0}},
        )
    start(attention_backend=None, attention_config=attention_config)


@pytest.mark.parametrize(
    "arguments",
    [
        {"enable_lora": True},
        {"enable_prompt_embeds": True},
        {"runner": "pooling", "convert": "embed"},
        {"data_parallel_size": 2},
        {"block_size": 16},
        {"block_size": 48},
        {"dtype": "float32"},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 2048},
        {"enable_prefix_caching": False},
        {"kv_cache_dtype": "bfloat16"},
        {"disable_hybrid_kv_cache_manager": True, "additional_config": {"redknot": {"heads": "all-global"}}},
        {
            "kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"},
            "additional_config": {"redknot": {"heads": "all-global"}},
        },
        {"pipeline_parallel_size": 2},
    ],
    ids=str,
)
def test_what_is_served_starts(start: Start, arguments: dict[str, Any]) -> None:
    assert start(**arguments).attention_config.backend is AttentionBackendEnum["REDKNOT"]


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative decoding",
            "remove --speculative-config",
        ),
        ({"prefill_context_parallel_size": 2}, "prefill context", "remove --prefill-context-parallel-size"),
        ({"kv_cache_dtype": "fp8"}, "fp8 KV", "remove --kv-cache-dtype"),
        ({"kv_cache_dtype": "float16"}, "float16 KV in a bfloat16 model", "remove --kv-cache-dtype"),
        ({"kv_cache_dtype": "bfloat16", "dtype": "float32"}, "bfloat16 KV in a float32", "--kv-cache-dtype"),
        ({"kv_sharing_fast_prefill": True}, "fast prefill", "remove --kv-sharing-fast-prefill"),
        ({"disable_hybrid_kv_cache_manager": True}, "hybrid KV-cache manager", "all-global"),
        ({"block_size": 24}, "pages of 24 tokens", "multiple of 16"),
        ({"block_size": 8}, "pages of 8 tokens", "multiple of 16"),
        (
            {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}},
            "OffloadingConnector",
            "remove --kv-transfer-config",
        ),
        (
            {
                "attention_backend": None,
                "attention_config": {"backend_per_kind": {"sliding_window": "REDKNOT"}},
            },
            "vLLM's own choice",
            "no backend_per_kind",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_feature_that_is_not_served_is_refused(
    start: Start, arguments: dict[str, Any], what: str, remedy: str
) -> None:
    text = message(lambda: start(**arguments))
    assert text.startswith("REDKNOT does not serve ")
    assert what in text
    assert remedy in text
    assert "leave out --attention-backend REDKNOT" in text


def test_features_the_platform_would_drop_are_refused_on_others(start: Start) -> None:
    vllm_config = start()
    vllm_config.parallel_config.enable_dbo = True
    vllm_config.parallel_config.decode_context_parallel_size = 2
    with pytest.raises(support.UnsupportedError) as refused:
        support.check_engine_config(vllm_config)
    assert "remove --enable-dbo" in str(refused.value)
    assert "remove --decode-context-parallel-size" in str(refused.value)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (
            {
                "model_type": "deepseek_v2",
                "architectures": ["DeepseekV2ForCausalLM"],
                "num_key_value_heads": 2,
                "kv_lora_rank": 32,
                "q_lora_rank": None,
                "qk_rope_head_dim": 16,
                "qk_nope_head_dim": 16,
                "v_head_dim": 16,
                "n_routed_experts": 2,
            },
            "MLA models",
        ),
        (
            {
                "model_type": "whisper",
                "architectures": ["WhisperForConditionalGeneration"],
                "d_model": 128,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
            },
            "encoder-decoder models",
        ),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "attention is not causal"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "models without attention"),
        (
            {
                "model_type": "gpt_oss",
                "architectures": ["GptOssForCausalLM"],
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
            },
            "learned attention sinks",
        ),
        ({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, "ALiBi"),
        (
            {
                "model_type": "falcon",
                "architectures": ["FalconForCausalLM"],
                "alibi": True,
                "head_dim": ABSENT,
            },
            "ALiBi",
        ),
        (
            {
                "model_type": "llama4_text",
                "architectures": ["Llama4ForCausalLM"],
                "attention_chunk_size": 128,
            },
            "chunked local attention",
        ),
        (
            {
                "model_type": "gemma3n_text",
                "architectures": ["Gemma3nForCausalLM"],
                "num_kv_shared_layers": 1,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "share the KV of another layer",
        ),
        ({"head_dim": 72}, "heads of size 72 (served: 64, 80"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("model_type", "llama"),
)
def test_a_model_that_is_not_served_is_refused(start_model: Start, config: dict[str, Any], what: str) -> None:
    text = message(lambda: start_model(config))
    assert what in text
    assert "leave out --attention-backend REDKNOT" in text


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 256},
        {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3ForCausalLM"],
            "sliding_window": 256,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"torch_dtype": "float16"},
        {"num_attention_heads": 16, "num_key_value_heads": 2},
    ],
    ids=lambda config: str(config)[:40],
)
def test_other_decoder_models_are_served(start_model: Start, config: dict[str, Any]) -> None:
    start_model(config)


def test_a_model_with_two_kinds_of_layers_needs_redknot_for_both(start_model: Start) -> None:
    gemma = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": 256,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    both = {"backend_per_kind": {"full_attention": "REDKNOT", "sliding_window": "REDKNOT"}}
    start_model(gemma, attention_backend=None, attention_config=both)
    one = {"backend_per_kind": {"full_attention": "REDKNOT", "sliding_window": "CPU_ATTN"}}
    assert "CPU_ATTN" in message(lambda: start_model(gemma, attention_backend=None, attention_config=one))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"windw": 3}, ("redknot.windw", "did you mean window")),
        ({"window": "3"}, ("redknot.window", "'3' (str)", "an integer >= 1")),
        ({"window": 0}, ("redknot.window", "an integer >= 1")),
        ({"dense_prefix_layers": 31}, ("redknot.dense_prefix_layers", "31", "0 to 30")),
        ({"heads": "/no/such/file.json"}, ("/no/such/file.json", "No such file")),
        ("heads.json", ("additional_config['redknot']", "give an object")),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named_with_the_valid_choice(
    start: Start, settings: Any, parts: tuple[str, ...]
) -> None:
    text = message(lambda: start(additional_config={"redknot": settings}))
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ("heads.json", "line 1")),
        ("[]", ("heads.json",)),
        ('{"head_types": [["local", "global"]]}', ("heads.json",)),
    ],
)
def test_a_bad_head_file_is_named(start: Start, tmp_path: Path, content: str, parts: tuple[str, ...]) -> None:
    file = tmp_path / "heads.json"
    file.write_text(content)
    text = message(lambda: start(additional_config={"redknot": {"heads": str(file)}}))
    assert [part for part in parts if part not in text] == []


def test_a_head_file_of_another_shape_is_refused_with_both_shapes(
    start_model: Start, repo_root: Path
) -> None:
    bundled = next((repo_root / "vllm_redknot" / "heads" / "bundled").glob("*.json"))
    text = message(lambda: start_model({}, additional_config={"redknot": {"heads": str(bundled)}}))
    assert "30 attention layers x 3 KV heads" in text
    assert "2 layers" in text


def test_heads_that_do_not_split_over_the_ranks_are_refused(start_model: Start) -> None:
    config = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 384}
    text = message(lambda: start_model(config, tensor_parallel_size=2))
    assert "3 KV heads do not split over tensor-parallel size 2" in text


def test_a_wrong_variable_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDKNOT_WINDOW", "many")
    assert "REDKNOT_WINDOW='many': give an integer >= 1" in message(start)


def test_settings_without_the_backend_are_warned_about(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(support.logger, "warning_once", lambda text, *_: warned.append(text))
    start(attention_backend=None, additional_config={"redknot": {"windw": 3}})
    [line] = warned
    assert "Add --attention-backend REDKNOT" in line


def test_a_stock_configuration_is_neither_checked_nor_warned_about(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDKNOT_WINDOW", "many")
    monkeypatch.setattr(support, "resolve_model_heads", lambda _: pytest.fail("heads were looked for"))
    monkeypatch.setattr(support.logger, "warning_once", lambda text, *_: pytest.fail(text))
    assert start(attention_backend=None).attention_config.backend is None
    start(attention_backend="CPU_ATTN", block_size=24, kv_cache_dtype="fp8")
