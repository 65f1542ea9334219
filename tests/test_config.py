import logging
from collections.abc import Mapping
from typing import Any

import pytest

from vllm_redknot import config as config_module
from vllm_redknot.config import RedknotConfig, RedknotConfigError

NO_ENVIRONMENT: dict[str, str] = {}


def from_section(section: Any, environ: Mapping[str, str] = NO_ENVIRONMENT) -> RedknotConfig:
    return RedknotConfig.from_additional_config({"redknot": section}, environ)


@pytest.mark.parametrize(
    "additional", [None, {}, {"redknot": None}, {"redknot": {}}, {"another plugin": {"heads": 1}}]
)
def test_without_settings_every_key_has_its_default(additional: Mapping[str, Any] | None) -> None:
    config = RedknotConfig.from_additional_config(additional, NO_ENVIRONMENT)
    assert (config.heads, config.window, config.sink, config.dense_prefix_layers) == (None, None, None, None)
    assert (config.max_groups, config.duo_threshold) == (16, 0.5)
    assert (config.kernel, config.decode_kernel) == ("auto", "triton")
    assert config.cache_path.is_absolute()
    assert config.cache_path.name == "vllm-redknot"


def test_every_key_can_be_given_in_the_additional_config() -> None:
    values = {
        "heads": "profile.json",
        "window": 1024,
        "sink": 0,
        "dense_prefix_layers": 2,
        "max_groups": 1,
        "duo_threshold": 0.25,
        "kernel": "torch",
        "decode_kernel": "flashinfer",
        "reuse": "force",
        "receipt": "receipt.json",
        "store": "/var/cache/segments",
        "store_memory_gib": 1.5,
        "store_disk_gib": 2.5,
        "boundary": 8,
        "policy": "blend",
        "share": 0.25,
        "capture": "marked",
        "min_reuse": 128,
        "rows": {"ffn_from": 20, "attention_from": 24},
        "cache_dir": "/var/cache/kernels",
    }
    assert values.keys() == RedknotConfig.model_fields.keys()
    assert from_section(values).model_dump() == values


def test_an_integer_is_taken_for_a_real_number() -> None:
    assert from_section({"duo_threshold": 1}).duo_threshold == 1.0


def test_a_variable_overrides_one_key_and_leaves_the_others() -> None:
    config = from_section({"window": 512, "sink": 8}, {"REDKNOT_WINDOW": "256", "WINDOW": "3"})
    assert (config.window, config.sink) == (256, 8)


def test_every_key_can_be_given_in_the_environment() -> None:
    environ = {
        "REDKNOT_HEADS": "all-global",
        "REDKNOT_WINDOW": "7",
        "REDKNOT_SINK": "0",
        "REDKNOT_DENSE_PREFIX_LAYERS": "3",
        "REDKNOT_MAX_GROUPS": "4",
        "REDKNOT_DUO_THRESHOLD": "0.75",
        "REDKNOT_KERNEL": "torch",
        "REDKNOT_DECODE_KERNEL": "flashinfer",
        "REDKNOT_REUSE": "on",
        "REDKNOT_RECEIPT": "receipt.json",
        "REDKNOT_STORE": "/var/cache/segments",
        "REDKNOT_STORE_MEMORY_GIB": "1.5",
        "REDKNOT_STORE_DISK_GIB": "2.5",
        "REDKNOT_BOUNDARY": "8",
        "REDKNOT_POLICY": "blend",
        "REDKNOT_SHARE": "0.25",
        "REDKNOT_CAPTURE": "marked",
        "REDKNOT_MIN_REUSE": "128",
        "REDKNOT_ROWS": "off",
        "REDKNOT_CACHE_DIR": "~/kernels",
    }
    config = RedknotConfig.from_additional_config(None, environ)
    assert config.model_dump() == {
        "heads": "all-global",
        "window": 7,
        "sink": 0,
        "dense_prefix_layers": 3,
        "max_groups": 4,
        "duo_threshold": 0.75,
        "kernel": "torch",
        "decode_kernel": "flashinfer",
        "reuse": "on",
        "receipt": "receipt.json",
        "store": "/var/cache/segments",
        "store_memory_gib": 1.5,
        "store_disk_gib": 2.5,
        "boundary": 8,
        "policy": "blend",
        "share": 0.25,
        "capture": "marked",
        "min_reuse": 128,
        "rows": "off",
        "cache_dir": "~/kernels",
    }
    assert "~" not in str(config.cache_path)


def test_an_empty_variable_counts_as_unset() -> None:
    assert from_section({"window": 512}, {"REDKNOT_WINDOW": ""}).window == 512


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("heads", 3),
        ("policy", "cacheblend"),
        ("share", 1.5),
        ("share", -0.1),
        ("share", "0.1"),
        ("heads", ""),
        ("window", "256"),
        ("window", True),
        ("window", 256.0),
        ("window", 0),
        ("window", 2**31),
        ("window", float("nan")),
        ("sink", -1),
        ("sink", False),
        ("dense_prefix_layers", -1),
        ("dense_prefix_layers", [1]),
        ("max_groups", 0),
        ("max_groups", None),
        ("duo_threshold", "0.5"),
        ("duo_threshold", True),
        ("duo_threshold", 1.5),
        ("duo_threshold", float("nan")),
        ("kernel", "cuda"),
        ("kernel", None),
        ("decode_kernel", "Triton"),
        ("rows", "on"),
        ("rows", {"ffn_frm": 20}),
        ("cache_dir", ""),
        ("cache_dir", None),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_valid_choice(key: str, value: object) -> None:
    with pytest.raises(RedknotConfigError) as caught:
        from_section({key: value})
    assert f"redknot.{key} is {value!r} ({type(value).__name__}): give " in str(caught.value)
    assert str(RedknotConfig.model_fields[key].description) in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("REDKNOT_WINDOW", "many"),
        ("REDKNOT_WINDOW", "0"),
        ("REDKNOT_WINDOW", "2.5"),
        ("REDKNOT_DUO_THRESHOLD", "nan"),
        ("REDKNOT_DUO_THRESHOLD", "inf"),
        ("REDKNOT_KERNEL", "fast"),
        ("REDKNOT_MAX_GROUPS", "-3"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_own_name(variable: str, text: str) -> None:
    with pytest.raises(RedknotConfigError) as caught:
        RedknotConfig.from_additional_config(None, {variable: text})
    assert f"{variable}={text!r}: give " in str(caught.value)


def test_a_wrong_value_is_refused_although_a_variable_overrides_it() -> None:
    with pytest.raises(RedknotConfigError, match=r"redknot\.window"):
        from_section({"window": "256"}, {"REDKNOT_WINDOW": "256"})


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(RedknotConfigError) as caught:
        from_section({"window": 0, "sink": -1, "windw": 5})
    assert all(part in str(caught.value) for part in ("redknot.window", "redknot.sink", "redknot.windw"))


def test_an_unknown_key_is_refused_with_the_nearest_valid_one() -> None:
    with pytest.raises(RedknotConfigError, match=r"redknot\.windw is no setting: did you mean window"):
        from_section({"windw": 256})


def test_an_unknown_key_near_to_none_is_refused_with_all_valid_ones() -> None:
    with pytest.raises(RedknotConfigError) as caught:
        from_section({"qqqq": 1})
    assert all(key in str(caught.value) for key in RedknotConfig.model_fields)


@pytest.mark.parametrize("section", [[], "heads.json", 5, True])
def test_a_section_that_is_no_object_is_refused(section: object) -> None:
    with pytest.raises(RedknotConfigError, match="give an object of settings"):
        from_section(section)


def test_a_long_value_is_cut_in_the_error() -> None:
    with pytest.raises(RedknotConfigError) as caught:
        from_section({"kernel": "x" * 100_000})
    assert len(str(caught.value)) < 300


def test_an_unknown_variable_is_warned_about_once_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    config_module._warn_unknown_variable.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            config = RedknotConfig.from_additional_config(None, {"REDKNOT_WINDOWS": "5", "REDKNOTTED": "1"})
    assert config.window is None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "REDKNOT_WINDOWS is set but is no setting" in messages[0]
    assert "REDKNOT_WINDOW " in messages[0]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/var/cache"}, "/var/cache/vllm-redknot"),
        ({"XDG_CACHE_HOME": "relative"}, "~/.cache/vllm-redknot"),
        ({}, "~/.cache/vllm-redknot"),
    ],
)
def test_the_cache_folder_follows_the_xdg_standard(environ: dict[str, str], expected: str) -> None:
    assert RedknotConfig.from_additional_config(None, environ).cache_dir == expected


def test_a_config_cannot_be_changed() -> None:
    config = from_section({})
    with pytest.raises(ValueError, match="frozen"):
        config.window = 3
