import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeConfig = Callable[..., Any]


@pytest.fixture(scope="session")
def engine_config(tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """A real `VllmConfig` for REDKNOT of a model that is only a config.json: no weights, no tokenizer."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_redknot.plugin import register

    register()

    def make(
        num_layers: int = 2, num_kv_heads: int = 2, redknot: dict[str, Any] | None = None, **args: Any
    ) -> Any:
        folder: Path = tmp_path_factory.mktemp("model")
        shape = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 128 * num_kv_heads * 8,
            "intermediate_size": 256,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_kv_heads * 8,
            "num_key_value_heads": num_kv_heads,
            "head_dim": 128,
            "vocab_size": 256,
            "max_position_embeddings": 131072,
            "torch_dtype": "bfloat16",
        }
        (folder / "config.json").write_text(json.dumps(shape))
        defaults = {
            "max_model_len": 1024,
            "max_num_batched_tokens": 256,
            "block_size": 16,
            "attention_backend": "REDKNOT",
        }
        config = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            additional_config={"redknot": {"heads": "all-global", **(redknot or {})}},
            **{**defaults, **args},
        ).create_engine_config()
        # What the engine core resolves before it plans the cache.
        config.cache_config.kv_cache_layout = "LBNHC"
        return config

    return make
