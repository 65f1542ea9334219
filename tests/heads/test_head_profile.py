from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vllm_redknot.heads.errors import HeadProfileError
from vllm_redknot.heads.profile import (
    EVERYTHING,
    MAX_POSITIONS,
    HeadClass,
    HeadProfile,
    HeadVisibility,
    all_global,
)

MakeProfile = Callable[..., HeadProfile]


def test_only_local_heads_have_a_window_and_a_sink(profile_of: MakeProfile) -> None:
    profile = profile_of(["LGDR"], window=7, sink=2)
    assert profile.visibility(0, 0) == HeadVisibility(window=7, sink=2)
    assert [profile.visibility(0, head) for head in (1, 2, 3)] == [EVERYTHING] * 3
    assert EVERYTHING == (None, 0)


def test_rows_are_found_by_model_layer(profile_of: MakeProfile) -> None:
    profile = profile_of(["LG", "GL"], layer_ids=(3, 7))
    assert profile.head_class(3, 0) is HeadClass.LOCAL
    assert profile.head_class(7, 0) is HeadClass.GLOBAL


def test_the_dense_prefix_counts_rows_not_model_layers(profile_of: MakeProfile) -> None:
    profile = profile_of(["LL", "LL", "LL"], layer_ids=(3, 7, 11), dense_prefix_layers=2)
    assert [profile.head_class(layer, 0) for layer in (3, 7, 11)] == [
        HeadClass.DENSE,
        HeadClass.DENSE,
        HeadClass.LOCAL,
    ]
    assert profile.visibility(7, 1) == EVERYTHING
    assert profile.counts() == {HeadClass.DENSE: 4, HeadClass.LOCAL: 2}


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (4, 0), (3, 2), (3, -1)])
def test_an_unknown_head_is_an_error_not_a_guess(profile_of: MakeProfile, layer: int, head: int) -> None:
    with pytest.raises(HeadProfileError, match=f"no head {head} of layer {layer} "):
        profile_of(["LG"], layer_ids=(3,)).visibility(layer, head)


def test_overrides_reach_local_heads_only(profile_of: MakeProfile) -> None:
    before = profile_of(["LG", "RL"], window=64, sink=4)
    after = before.with_overrides(window=16, sink=0)
    assert after.window == ((16, None), (None, 16))
    assert after.sink == ((0, 4), (4, 0))
    assert after.visibility(1, 1) == HeadVisibility(16, 0)
    assert before.with_overrides() == before


def test_a_dense_prefix_override_replaces_the_files(profile_of: MakeProfile) -> None:
    before = profile_of(["LL", "LL"], dense_prefix_layers=1)
    assert before.with_overrides(dense_prefix_layers=0).is_all_global is False
    assert before.with_overrides(dense_prefix_layers=2).is_all_global is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": ((0, None),)}, "a local head has window 0"),
        ({"window": ((None, None),)}, "a local head has window None"),
        ({"window": ((MAX_POSITIONS + 1, None),)}, "a local head has window"),
        ({"window": ((4, 4),)}, "a global head has window 4"),
        ({"sink": ((-1, 0),)}, "sink is -1"),
        ({"sink": ((0,),)}, "sink is not a matrix of 1 layers x 2 heads"),
        ({"classes": ()}, "0 layers x 0 heads"),
        ({"classes": ((),)}, "1 layers x 0 heads"),
        ({"layer_ids": (0, 1)}, "must be 1 increasing"),
        ({"layer_ids": (-1,)}, "must be 1 increasing"),
        ({"dense_prefix_layers": 2}, "give 0 to 1"),
        ({"dense_prefix_layers": -1}, "give 0 to 1"),
    ],
)
def test_an_inconsistent_profile_cannot_be_made(
    profile_of: MakeProfile, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HeadProfileError, match=message):
        replace(profile_of(["LG"]), **changes)


def test_layer_numbers_must_increase(profile_of: MakeProfile) -> None:
    with pytest.raises(HeadProfileError, match="increasing"):
        profile_of(["LG", "LG"], layer_ids=(5, 5))


def test_a_fingerprint_depends_on_what_heads_see_and_on_nothing_else(profile_of: MakeProfile) -> None:
    profile = profile_of(["LG", "LL"])
    assert profile.fingerprint() == profile_of(["LR", "LL"], source_format="another").fingerprint()
    others = [
        profile_of(["GL", "LL"]),
        profile_of(["LG", "LL"], window=65),
        profile_of(["LG", "LL"], sink=5),
        profile_of(["LG", "LL"], dense_prefix_layers=1),
        profile_of(["LG", "LL"], layer_ids=(0, 2)),
    ]
    assert len({profile.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_a_profile_describes_itself_in_one_line(profile_of: MakeProfile) -> None:
    assert profile_of(["LG", "RL"]).describe() == (
        "2 attention layers x 2 KV heads: 2 local, 1 global, 1 retrieval; window 64, sink 4"
    )
    mixed = replace(profile_of(["LL"]), window=((8, 64),), sink=((0, 4),))
    assert "window 8 to 64, sink 0 to 4" in mixed.describe()
    assert "window" not in all_global((0, 1), 2).describe()


def test_the_all_global_profile_shows_every_head_everything() -> None:
    profile = all_global((2, 5), 3)
    assert profile.is_all_global
    assert {profile.visibility(layer, head) for layer in (2, 5) for head in range(3)} == {EVERYTHING}
