"""config.json read without vLLM gives the shape that vLLM gives the plugin."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import WriteModel
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import FULL_EVERY, HEAD_SIZES, is_model_folder, read_model

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4096},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False},
    "rope in its own object": {
        "rope_theta": None,
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    },
    "no head_dim": {"head_dim": None},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "sliding_window": 512,
        "rope_theta": None,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_is_the_one_vllm_sees(write_model: WriteModel, name: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from vllm_redknot.support import model_shape

    folder = write_model(**SHAPES[name])
    model_config = EngineArgs(model=str(folder), skip_tokenizer_init=True).create_model_config()
    assert read_model(folder).shape == model_shape(model_config)


def test_the_test_model_has_the_shape_vllm_sees(model_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from vllm_redknot.support import model_shape

    model_config = EngineArgs(model=str(model_path)).create_model_config()
    assert read_model(model_path).shape == model_shape(model_config)


def test_head_sizes_are_those_of_the_kernels_which_need_torch() -> None:
    from vllm_redknot.kernels import layout

    assert layout.HEAD_SIZES == HEAD_SIZES


def test_layers_with_a_window_of_their_own_are_found(write_model: WriteModel) -> None:
    assert read_model(write_model(**SHAPES["mistral"])).sliding == dict.fromkeys(range(4), 4096)
    assert read_model(write_model(**SHAPES["gemma3"])).sliding == {0: 512, 1: 512, 3: 512}
    assert read_model(write_model(**SHAPES["qwen3"], sliding_window=4096)).sliding == {}
    later = {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 4096}
    assert read_model(write_model(**later)).sliding == {3: 4096}


@pytest.mark.parametrize("model_type", [*FULL_EVERY, "gemma3_text of pattern 3", "mistral"])
def test_windows_of_layers_are_those_transformers_fills_in(write_model: WriteModel, model_type: str) -> None:
    from transformers import AutoConfig

    name, _, pattern = model_type.partition(" of pattern ")
    changes: dict[str, Any] = {"model_type": name, "num_hidden_layers": 13, "sliding_window": 512}
    folder = write_model(**changes, sliding_window_pattern=int(pattern) if pattern else None)
    config = AutoConfig.from_pretrained(folder)
    kinds = getattr(config, "layer_types", ["sliding_attention"] * 13)
    sliding = {layer: 512 for layer, kind in enumerate(kinds) if kind == "sliding_attention"}
    assert read_model(folder).sliding == sliding
    assert 0 < len(sliding) < 13 or name == "mistral"


def test_linear_layers_have_no_head_classes(write_model: WriteModel) -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    assert read_model(write_model(layer_types=kinds)).shape.attention_layer_ids == (1, 3)
    assert read_model(write_model(full_attention_interval=4)).shape.attention_layer_ids == (3,)


def test_a_text_model_inside_another_is_the_one_that_counts(tmp_path: Path, write_model: WriteModel) -> None:
    text = json.loads((write_model() / "config.json").read_text())
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "config.json").write_text(json.dumps({"model_type": "outer", "text_config": text}))
    assert read_model(outer).shape.model_type == "llama"


def test_weights_are_counted_from_files_else_computed(write_model: WriteModel) -> None:
    folder = write_model()
    layer = 512 * 64 * (8 + 2 + 2 + 8) + 3 * 512 * 1024 + 2 * 512
    assert read_model(folder).weight_bytes == 2 * (4 * layer + 2 * 1000 * 512)
    (folder / "model-1.safetensors").write_bytes(b"x" * 100)
    assert read_model(folder).weight_bytes == 100
    (folder / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 7}, "weight_map": {}}')
    assert read_model(folder).weight_bytes == 7
    assert read_model(write_model("moe", num_local_experts=8)).weight_bytes is None


def test_a_70b_model_weighs_141_gb(write_model: WriteModel) -> None:
    llama = {
        **{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128},
    }
    assert read_model(write_model(**llama)).weight_bytes == pytest.approx(141.1e9, rel=0.001)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kv_lora_rank": 512}, "MLA"),
        ({"head_dim": 72}, "heads of size 72"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"alibi": True}, "ALiBi"),
        ({"model_type": "gpt_oss"}, "sinks"),
        ({"num_kv_shared_layers": 2}, "share the KV"),
    ],
)
def test_what_redknot_does_not_serve_is_named(
    write_model: WriteModel, changes: dict[str, Any], named: str
) -> None:
    (what,) = read_model(write_model(**changes)).refused
    assert named in what
    assert read_model(write_model("other")).refused == ()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is not JSON"),
        ("[1]", "not one JSON object"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "no model_type"),
        ('{"model_type": "llama"}', "num_hidden_layers is None"),
        ('{"model_type": "llama", "num_hidden_layers": 1e9}', "num_hidden_layers is 1000000000.0"),
        ('{"model_type": "llama", "num_hidden_layers": 99999}', "an integer from 1 to 1024"),
        ('{"model_type": "llama", "num_hidden_layers": true}', "num_hidden_layers is True"),
        ('{"model_type": 7, "num_hidden_layers": 2}', "no model_type"),
    ],
)
def test_a_broken_config_is_one_error(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CliError, match=r"config\.json") as caught:
        read_model(tmp_path)
    assert named in str(caught.value)


def test_query_heads_that_do_not_share_kv_heads_evenly_are_refused(write_model: WriteModel) -> None:
    with pytest.raises(CliError, match="num_attention_heads is 8 and num_key_value_heads 3"):
        read_model(write_model(num_key_value_heads=3))


def test_numbers_that_no_model_has_count_as_not_stated(write_model: WriteModel) -> None:
    found = read_model(write_model(max_position_embeddings=10**400, sliding_window=10**400))
    assert found.max_context is None
    assert found.sliding == {}


def test_a_folder_without_config_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert not is_model_folder(tmp_path)
    assert "config.json: no such file" in fails("plan", tmp_path)
    (tmp_path / "weights.gguf").touch()
    assert "weights.gguf is no folder" in fails("plan", tmp_path / "weights.gguf")
