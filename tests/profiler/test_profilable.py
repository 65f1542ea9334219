"""Models whose attention cannot be scored are refused by name, and nothing of a model's folder is run."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PretrainedConfig
from transformers.utils import logging

from tests.profiler.foreign_attention import FOREIGN, HEAD, TINY
from vllm_redknot.profiler.errors import ProfilerError
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.profilable import check_profilable

LLAMA = LlamaConfig(**HEAD)


def save(config: PretrainedConfig, folder: Path) -> Path:
    """A model with random weights."""
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FOREIGN)
def test_attention_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    config, said = FOREIGN[name]
    config.save_pretrained(tmp_path)
    with pytest.raises(ProfilerError) as error:
        check_profilable(tmp_path)
    assert str(error.value).startswith(f"{tmp_path} {said} `redknot profile` cannot score")


@pytest.mark.parametrize("name", ["a sliding window in every layer", "soft caps alone", "latent attention"])
def test_a_whole_model_is_refused_as_its_configuration_is(tmp_path: Path, name: str) -> None:
    config, said = FOREIGN[name]
    with pytest.raises(ProfilerError) as error:
        HookedModel(save(config, tmp_path), torch.float32)
    assert said in str(error.value)


def test_a_model_that_sees_everything_is_not_refused(tmp_path: Path) -> None:
    model = HookedModel(save(LLAMA, tmp_path), torch.float32)
    assert sorted(model.layers) == [0, 1, 2, 3]


def test_attention_that_is_not_found_in_the_model_is_an_error(tmp_path: Path) -> None:
    config = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    with pytest.raises(ProfilerError, match="GPTNeoXForCausalLM has no attention that the profiler knows"):
        HookedModel(save(GPTNeoXConfig(**config), tmp_path), torch.float32)


def test_a_damaged_weight_file_is_named_with_its_folder(tmp_path: Path) -> None:
    weights = save(LLAMA, tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ProfilerError, match=f"{tmp_path}: transformers cannot load it"):
        HookedModel(tmp_path, torch.float32)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    weights = save(LLAMA, tmp_path) / "model.safetensors"
    torch.save(AutoModelForCausalLM.from_config(LLAMA).state_dict(), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ProfilerError, match=r"model\.safetensors"):
        HookedModel(tmp_path, torch.float32)


def test_code_in_a_models_folder_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    document = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ProfilerError, match="cannot read its config"):
        check_profilable(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("damage", [{"num_attention_heads": "two"}, {"layer_types": ["no such kind"] * 4}])
def test_a_configuration_that_makes_no_sense_is_named_with_its_folder(
    tmp_path: Path, damage: dict[str, object]
) -> None:
    LLAMA.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(ProfilerError, match=f"{tmp_path}"):
        check_profilable(tmp_path)


def test_loading_draws_no_bar_and_leaves_bars_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(LLAMA, tmp_path)
    capfd.readouterr()
    logging.enable_progress_bar()
    HookedModel(tmp_path, torch.float32)
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "Loading weights" in capfd.readouterr().err
