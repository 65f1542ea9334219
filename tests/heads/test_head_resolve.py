import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.config import RedknotConfig, RedknotConfigError
from vllm_redknot.heads import native
from vllm_redknot.heads.errors import HeadFileError, HeadFitError
from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import HeadClass, HeadProfile, ModelIdentity
from vllm_redknot.heads.resolve import BESIDE_MODEL, resolve_heads

MakeProfile = Callable[..., HeadProfile]
WriteFile = Callable[..., Path]

TINY = ModelShape(
    num_layers=2,
    num_kv_heads=2,
    num_attention_heads=4,
    head_dim=8,
    hidden_size=32,
    vocab_size=100,
    model_type="llama",
)


def settings(**values: Any) -> RedknotConfig:
    return RedknotConfig.from_additional_config({"redknot": values}, {})


def test_a_model_nobody_profiled_is_all_global_with_a_warning_that_says_what_to_do() -> None:
    resolved = resolve_heads(settings(), TINY)
    assert resolved.profile.is_all_global
    assert len(resolved.warnings) == 1
    assert all(part in resolved.warnings[0] for part in ("--additional-config", BESIDE_MODEL, "all-global"))
    example = resolved.warnings[0].split("'")[1]
    assert RedknotConfig.from_additional_config(json.loads(example), {}).heads == "FILE"


def test_all_global_by_request_gives_no_warning(smollm2: ModelShape) -> None:
    resolved = resolve_heads(settings(heads="all-global"), smollm2)
    assert resolved.profile.is_all_global
    assert resolved.warnings == ()
    assert resolved.origin == 'heads="all-global"'


def test_a_named_file_wins_over_one_beside_the_model(
    profile_of: MakeProfile, tmp_path: Path, write_file: WriteFile, v1: dict[str, Any]
) -> None:
    native.write(profile_of(["LL", "LL"]), tmp_path / BESIDE_MODEL)
    model = replace(TINY, model_dir=tmp_path)
    beside = resolve_heads(settings(), model)
    assert beside.profile.counts() == {HeadClass.LOCAL: 4}
    assert "beside the model" in beside.origin
    named = resolve_heads(settings(heads=str(write_file(v1))), model)
    assert named.profile.counts()[HeadClass.LOCAL] == 2
    assert "the setting `heads`" in named.origin
    assert resolve_heads(settings(heads="all-global"), model).profile.is_all_global


def test_a_file_beside_the_model_wins_over_the_bundled_one(
    profile_of: MakeProfile, tmp_path: Path, smollm2: ModelShape
) -> None:
    native.write(profile_of(["GLL"] * 30), tmp_path / BESIDE_MODEL)
    resolved = resolve_heads(settings(), replace(smollm2, model_dir=tmp_path))
    assert resolved.profile.counts()[HeadClass.GLOBAL] == 30


def test_a_broken_file_beside_the_model_is_an_error_not_a_reason_to_look_on(
    tmp_path: Path, smollm2: ModelShape
) -> None:
    model = replace(smollm2, model_dir=tmp_path)
    (tmp_path / BESIDE_MODEL).write_text("{")
    with pytest.raises(HeadFileError):
        resolve_heads(settings(), model)
    (tmp_path / BESIDE_MODEL).unlink()
    (tmp_path / BESIDE_MODEL).symlink_to(tmp_path / "gone.json")
    with pytest.raises(HeadFileError, match="No such file"):
        resolve_heads(settings(), model)


def test_a_bundled_profile_is_found_by_shape_not_by_path(tmp_path: Path, smollm2: ModelShape) -> None:
    resolved = resolve_heads(settings(), replace(smollm2, model_dir=tmp_path))
    assert resolved.origin == "bundled smollm2-135m.json"
    assert resolved.profile.counts() == {HeadClass.LOCAL: 74, HeadClass.GLOBAL: 16}
    assert resolved.warnings == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        # The first SmolLM-135M differs from SmolLM2-135M in nothing else.
        ("rope_theta", 10000.0),
        ("rope_theta", None),
        ("vocab_size", 49153),
        ("hidden_size", 575),
        ("intermediate_size", None),
        ("model_type", "qwen3"),
        ("num_attention_heads", 6),
    ],
)
def test_a_bundled_profile_is_not_used_for_a_model_that_differs(
    smollm2: ModelShape, field: str, value: object
) -> None:
    changed: dict[str, Any] = {field: value}
    assert resolve_heads(settings(), replace(smollm2, **changed)).profile.is_all_global


def test_overrides_win_over_the_file(smollm2: ModelShape) -> None:
    plain = resolve_heads(settings(), smollm2).profile
    profile = resolve_heads(settings(window=1024, sink=0, dense_prefix_layers=1), smollm2).profile
    layer, head = next((row, 0) for row in range(1, 30) if plain.window[row][0] is not None)
    assert plain.visibility(layer, head) != (1024, 0)
    assert profile.visibility(layer, head) == (1024, 0)
    assert profile.head_class(0, 0) is HeadClass.DENSE
    now_dense = plain.window[0].count(None)
    assert profile.counts()[HeadClass.GLOBAL] == plain.counts()[HeadClass.GLOBAL] - now_dense == 15


def test_a_dense_prefix_longer_than_the_model_is_refused(smollm2: ModelShape) -> None:
    with pytest.raises(RedknotConfigError, match="dense_prefix_layers is 31: give 0 to 30"):
        resolve_heads(settings(dense_prefix_layers=31), smollm2)


def test_overrides_without_local_heads_are_warned_about() -> None:
    resolved = resolve_heads(settings(heads="all-global", window=5, sink=1), TINY)
    assert resolved.warnings == ("window=5, sink=1 has no effect: no head is local",)


def test_the_warnings_of_a_file_reach_the_caller(write_file: WriteFile, v1: dict[str, Any]) -> None:
    v1["kv_head_max_distance"] = [[0, -1], [-1, 9]]
    resolved = resolve_heads(settings(heads=str(write_file({**v1, "model_type": "qwen3"}))), TINY)
    assert resolved.warnings[0] == "1 local heads state no window: they get 512"
    assert "was made for a qwen3 model, this one is llama" in resolved.warnings[1]


def test_the_duo_threshold_of_the_settings_is_used(tmp_path: Path) -> None:
    (tmp_path / "full_attention_heads.tsv").write_text("0.3\t0.1\n0.3\t0.1\n")
    (tmp_path / "config.json").write_text('{"sink_size": 4, "recent_size": 8}')
    counts = resolve_heads(settings(heads=str(tmp_path), duo_threshold=0.2), TINY).profile.counts()
    assert counts == {HeadClass.GLOBAL: 2, HeadClass.LOCAL: 2}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            ["LL"] * 3,
            {},
            "for 3 attention layers x 2 KV heads (layers 0-2); the model is llama with 2 layers",
        ),
        (["LL"], {}, "for 1 attention layers x 2 KV heads (layers 0-0); the model is llama with 2 layers"),
        (
            ["LLL"] * 2,
            {},
            "for 2 attention layers x 3 KV heads (layers 0-1); the model is llama with 2 layers",
        ),
        (["LL"] * 2, {"layer_ids": (1, 3)}, "(layers [1, 3]); the model"),
        (["LL"] * 2, {"identity": ModelIdentity(num_attention_heads=8)}, "num_attention_heads 8 (model: 4)"),
        (["LL"] * 2, {"identity": ModelIdentity(head_dim=128)}, "head_dim 128 (model: 8)"),
        (["LL"] * 2, {"identity": ModelIdentity(num_layers=4)}, "num_layers 4 (model: 2)"),
    ],
)
def test_a_profile_of_another_shape_is_refused_with_both_shapes(
    profile_of: MakeProfile, tmp_path: Path, rows: list[str], changes: dict[str, Any], message: str
) -> None:
    native.write(profile_of(rows, **changes), tmp_path / "heads.json")
    with pytest.raises(HeadFitError) as caught:
        resolve_heads(settings(heads=str(tmp_path / "heads.json")), TINY)
    assert message in str(caught.value)
    assert "2 layers x 4 query heads x 2 KV heads" in str(caught.value)


def test_a_hybrid_model_takes_rows_for_its_attention_layers(shared_data: Path) -> None:
    path = shared_data / "head_class" / "qwen3.5-35B-A3B_redknot_server.json"
    attention = (3, 7, 11, 15, 19, 23, 27, 31, 35, 39)
    model = replace(TINY, num_layers=40, attention_layer_ids=attention, model_type="qwen3_5_moe")
    resolved = resolve_heads(settings(heads=str(path)), model)
    assert resolved.profile.layer_ids == attention
    with pytest.raises(HeadFitError, match="have head classes"):
        resolve_heads(settings(heads=str(path)), replace(model, attention_layer_ids=(2, *attention[1:])))
    with pytest.raises(HeadFitError):
        resolve_heads(settings(heads=str(path)), replace(model, attention_layer_ids=None))


def test_a_hybrid_model_takes_rows_for_all_its_layers_too(profile_of: MakeProfile, tmp_path: Path) -> None:
    native.write(profile_of(["LL", "GL"]), tmp_path / "heads.json")
    model = replace(TINY, attention_layer_ids=(1,))
    profile = resolve_heads(settings(heads=str(tmp_path / "heads.json")), model).profile
    assert profile.head_class(1, 0) is HeadClass.GLOBAL
    assert resolve_heads(settings(), model).profile.layer_ids == (1,)


def test_mla_classes_are_refused_for_a_model_with_kv_heads(shared_data: Path) -> None:
    path = shared_data / "head_class" / "dsv4_safe_stride8.json"
    model = replace(TINY, num_layers=43, num_kv_heads=64, num_attention_heads=64)
    with pytest.raises(HeadFitError, match="for the logical heads of an MLA model"):
        resolve_heads(settings(heads=str(path)), model)
