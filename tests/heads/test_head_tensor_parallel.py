import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from vllm_redknot.heads.errors import HeadFitError
from vllm_redknot.heads.profile import HeadClass, HeadProfile
from vllm_redknot.heads.tensor_parallel import per_rank

MakeProfile = Callable[..., HeadProfile]


def test_one_rank_keeps_the_profile(profile_of: MakeProfile) -> None:
    profile = profile_of(["LG", "RL"])
    assert per_rank(profile, 1) == (profile, 0, 0)


def test_a_local_index_is_global_if_it_is_on_any_rank(profile_of: MakeProfile) -> None:
    rank = per_rank(profile_of(["LLGL", "LLLL", "GLGL"]), 2)
    assert [[cls.value for cls in row] for row in rank.profile.classes] == [
        ["global", "local"],
        ["local", "local"],
        ["global", "local"],
    ]
    assert rank.promoted == 1
    assert rank.profile.num_kv_heads == 2


def test_windows_and_sinks_are_the_largest_over_ranks(profile_of: MakeProfile) -> None:
    profile = replace(profile_of(["LLLL"]), window=((8, 8, 16, 8),), sink=((4, 0, 2, 0),))
    rank = per_rank(profile, 2)
    assert rank.profile.visibility(0, 0) == (16, 4)
    assert rank.profile.visibility(0, 1) == (8, 0)
    assert (rank.promoted, rank.widened) == (0, 2)


def test_classes_that_see_everything_but_differ_become_global(profile_of: MakeProfile) -> None:
    rank = per_rank(profile_of(["RD", "RR"]), 2)
    assert [row[0] for row in rank.profile.classes] == [HeadClass.GLOBAL, HeadClass.RETRIEVAL]
    assert rank.promoted == 0


def test_replicated_heads_share_one_local_index(profile_of: MakeProfile) -> None:
    rank = per_rank(profile_of(["LG", "LL"]), 8)
    assert rank.profile.num_kv_heads == 1
    assert [rank.profile.head_class(layer, 0) for layer in (0, 1)] == [HeadClass.GLOBAL, HeadClass.LOCAL]
    assert rank.promoted == 1


def test_heads_of_the_dense_prefix_are_not_counted_as_promoted(profile_of: MakeProfile) -> None:
    rank = per_rank(profile_of(["LG", "LG"], dense_prefix_layers=1), 2)
    assert rank.promoted == 1
    assert rank.profile.dense_prefix_layers == 1


@pytest.mark.parametrize(("heads", "tp_size"), [(3, 2), (4, 3), (2, 3), (4, 6), (4, 0), (4, -2)])
def test_a_degree_that_does_not_divide_is_refused_with_both_numbers(
    profile_of: MakeProfile, heads: int, tp_size: int
) -> None:
    with pytest.raises(
        HeadFitError, match=f"{heads} KV heads do not split over tensor-parallel size {tp_size}"
    ):
        per_rank(profile_of(["L" * heads]), tp_size)


@pytest.mark.parametrize("seed", range(20))
def test_no_head_sees_less_than_its_own_profile_says(profile_of: MakeProfile, seed: int) -> None:
    draw = random.Random(seed)
    total, tp_size = draw.choice([(8, 2), (8, 8), (4, 8), (6, 3), (1, 4)])
    profile = profile_of(["".join(draw.choices("LLLGDR", k=total)) for _ in range(5)], dense_prefix_layers=1)
    profile = replace(
        profile,
        window=tuple(tuple(old and draw.randint(1, 99) for old in row) for row in profile.window),
        sink=tuple(tuple(draw.randint(0, 9) for _ in row) for row in profile.sink),
    )
    rank = per_rank(profile, tp_size)
    promoted = 0
    for layer in profile.layer_ids:
        for head in range(total):
            own = profile.visibility(layer, head)
            # The rank of the head does not matter: all ranks have one profile.
            shared = rank.profile.visibility(layer, head % rank.profile.num_kv_heads)
            if shared.window is None:
                promoted += own.window is not None
            else:
                assert own.window is not None
                assert shared.window >= own.window
                assert shared.sink >= own.sink
    assert rank.promoted == promoted
