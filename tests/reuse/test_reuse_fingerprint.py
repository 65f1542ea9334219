import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from store_world import FINGERPRINT

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.fingerprint import Fingerprint, canonical, config_digest, weights_digest


def checkpoint(folder: Path, change: str = "") -> str:
    """The digest of a small checkpoint of two files, changed in one respect."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(512, 512, generator=generator)
    small = torch.randn(30, generator=generator)
    if change == "all values of a large tensor":
        large += 1e-3
    if change == "the last value":
        large[-1, -1] = 7.0
    if change == "one value of a small tensor":
        small[17] = 7.0
    if change == "a type":
        large = large.to(torch.float16)
    if change == "a shape":
        large = large.view(256, 1024)
    tensors = {"renamed" if change == "a name" else "large": large, "other": large[::2].clone()}
    save_file(tensors, folder / ("b.safetensors" if change == "a file's name" else "a.safetensors"))
    save_file({"small": small}, folder / "c.safetensors")
    if change == "a file more":
        save_file({"more": small}, folder / "d.safetensors")
    if change == "another kind of file":
        (folder / "config.json").write_text("{}")
    return weights_digest(folder)


def test_equal_checkpoints_have_equal_digests_wherever_they_lie(tmp_path: Path) -> None:
    assert checkpoint(tmp_path / "a") == checkpoint(tmp_path / "b")
    assert checkpoint(tmp_path / "c", "another kind of file") == checkpoint(tmp_path / "d")


@pytest.mark.parametrize(
    "change",
    [
        "all values of a large tensor",
        "the last value",
        "one value of a small tensor",
        "a type",
        "a shape",
        "a name",
        "a file's name",
        "a file more",
    ],
)
def test_a_changed_checkpoint_has_another_digest(tmp_path: Path, change: str) -> None:
    assert checkpoint(tmp_path / "a", change) != checkpoint(tmp_path / "b")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 10) + b"{}",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 31) + b'{"a": {"data_offsets": [9, 1]}}',
    ],
)
def test_what_is_no_checkpoint_has_no_digest(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ReuseError, match=r"no \*\.safetensors"):
        weights_digest(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ReuseError, match="not a safetensors file"):
        weights_digest(tmp_path)


def test_a_config_is_told_apart_by_what_changes_kv() -> None:
    config = {"rms_norm_eps": 1e-5, "hidden_size": 64, "transformers_version": "4.57", "dtype": "bfloat16"}
    assert config_digest(config) == config_digest({**config, "transformers_version": "5", "dtype": "float32"})
    assert config_digest(config) == config_digest(dict(reversed(config.items())))
    assert config_digest(config) != config_digest({**config, "rms_norm_eps": 1e-6})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), b"x"])
def test_what_json_cannot_hold_has_no_fingerprint(value: object) -> None:
    with pytest.raises(ReuseError, match="JSON"):
        canonical({"theta": value})


def test_a_fingerprint_survives_json_and_nothing_else_passes() -> None:
    two_ranks = replace(FINGERPRINT, tp_size=2)
    document = json.loads(json.dumps(two_ranks.to_json()))
    assert Fingerprint.from_json(document) == two_ranks
    for change in ({"weights": 1}, {"tp_rank": "0"}, {"tp_rank": True}, {"more": ""}):
        with pytest.raises(TypeError):
            Fingerprint.from_json({**document, **change})
    with pytest.raises(ReuseError, match="tp_rank is 2"):
        replace(FINGERPRINT, tp_rank=2, tp_size=2)
