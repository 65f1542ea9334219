import json
from pathlib import Path

import pytest

from tools import make_needle_profile
from vllm_redknot.heads import native
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import ModelIdentity
from vllm_redknot.heads.resolve import bundled_paths


def test_the_needle_profile_is_what_its_tool_makes_of_the_scores(shared_data: Path, tmp_path: Path) -> None:
    scores = json.loads((shared_data / "smollm2_needle_scores.json").read_text())
    native.write(make_needle_profile.make_profile(scores), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == make_needle_profile.OUTPUT.read_text()


def test_the_needle_profile_is_13_heads_and_says_that_it_is_provisional() -> None:
    profile = load_profile(make_needle_profile.OUTPUT)
    assert profile.describe() == "30 attention layers x 3 KV heads: 77 local, 13 global; window 256, sink 4"
    assert profile.provenance is not None
    assert profile.provenance.provisional
    assert profile.provenance.method
    assert profile.provenance.notes


@pytest.mark.parametrize("path", bundled_paths(), ids=lambda path: path.name)
def test_a_bundled_profile_says_which_model_it_is_for_and_how_it_was_made(path: Path) -> None:
    profile = load_profile(path)
    assert profile.source_format == "native version 1"
    assert profile.identity is not None
    stated = profile.identity.model_dump()
    assert None not in stated.values(), "it can never be matched"
    shape = ModelShape(**{key: stated[key] for key in ModelIdentity.model_fields if key != "name"})
    shape.check_fit(profile)
    assert shape.matches(profile.identity)
    assert profile.provenance is not None
    assert profile.provenance.tool


def test_the_package_finds_its_bundled_profiles() -> None:
    assert [path.name for path in bundled_paths()] == ["smollm2-135m.json"]
