"""Group planning: least bytes within the bound, by brute force; padding, promotion and dealing."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest

from vllm_redknot.kvcache.grouping import SLACK, GroupPlan, Kept, plan_groups, sizes_tried


def segments(*costs: int) -> dict[str, Kept]:
    return {f"s{index}": Kept(cost) for index, cost in enumerate(costs)}


def partitions(items: Sequence[str]) -> Iterator[list[list[str]]]:
    """All ways to split items into groups."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in partitions(rest):
        yield [[first], *smaller]
        for index in range(len(smaller)):
            yield [*smaller[:index], [first, *smaller[index]], *smaller[index + 1 :]]


def pages_of(groups: Sequence[Sequence[str]], blocks: dict[str, Kept], dense: int) -> int:
    """Pages a request takes: as many slots as the largest group, per block of any group."""
    slots = max(len(group) for group in groups)
    return slots * sum(
        min(dense, max(blocks[n].recent for n in group) + max(blocks[n].sink for n in group))
        for group in groups
    )


def check(plan: GroupPlan, blocks: dict[str, Kept], dense: int, max_groups: int) -> None:
    assert sorted(itertools.chain.from_iterable(plan.groups)) == sorted(blocks)
    assert 1 <= len(plan.groups) <= max_groups
    assert all(1 <= len(group) <= plan.slots for group in plan.groups)
    assert plan.pages_per_request == pages_of(plan.groups, blocks, dense)
    assert plan.dense_pages_per_request == dense * len(blocks)
    assert plan.padding == plan.slots * len(plan.groups) - len(blocks)


@pytest.mark.parametrize("seed", range(40))
def test_no_partition_within_the_bound_stores_less(seed: int) -> None:
    rng = random.Random(seed)
    sink = rng.randrange(3)
    costs = [rng.choice([10, 20, 100, rng.randrange(1, 101)]) for _ in range(rng.randrange(1, 8))]
    blocks = {name: Kept(max(1, kept.recent - sink), sink) for name, kept in segments(*costs).items()}
    dense, max_groups = 100, rng.randrange(1, 6)
    plan = plan_groups(blocks, dense, max_groups)
    check(plan, blocks, dense, max_groups)
    least = min(
        pages_of(groups, blocks, dense) for groups in partitions(list(blocks)) if len(groups) <= max_groups
    )
    assert plan.pages_per_request <= least * (1 + SLACK)


@pytest.mark.parametrize("seed", range(20))
def test_unequal_sinks_are_planned_at_what_the_merged_specs_keep(seed: int) -> None:
    rng = random.Random(seed)
    blocks = {f"s{i}": Kept(rng.randrange(1, 60), rng.randrange(40)) for i in range(rng.randrange(1, 30))}
    check(plan_groups(blocks, 100, 4), blocks, 100, 4)


@pytest.mark.parametrize("seed", range(60))
def test_sizes_left_out_of_the_search_are_never_better(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [Kept(rng.randrange(1, 60), rng.randrange(40)) for _ in range(rng.randrange(1, 6))]
    blocks = {f"s{i}": rng.choice(kinds) for i in range(rng.randrange(1, 80))}
    dense, max_groups = 70, rng.choice([1, 2, 5, 16, 100])
    order = sorted(blocks, key=lambda name: (-blocks[name].total, blocks[name]))
    tried = []
    for size in range(math.ceil(len(order) / max_groups), len(order) + 1):
        runs = [order[start : start + size] for start in range(0, len(order), size)]
        tried.append((len(runs), pages_of(runs, blocks, dense), size))
    bound = min(pages for _, pages, _ in tried) * (1 + SLACK)
    plan = plan_groups(blocks, dense, max_groups)
    found = (len(plan.groups), plan.pages_per_request, plan.slots)
    assert found == min(one for one in tried if one[1] <= bound)


def test_the_sizes_tried_grow_with_the_kinds_of_segments_not_with_their_number() -> None:
    assert len(sizes_tried([1000, 2**20], 16)) <= 2 * 2 * 16 + 1


def test_a_few_global_heads_do_not_make_all_groups_small() -> None:
    plan = plan_groups(segments(*[1000] * 5, *[20] * 251), 1000, 16)
    check(plan, segments(*[1000] * 5, *[20] * 251), 1000, 16)
    # Padding beats promotion by far: 16 local heads are promoted at most where 52 groups would need none.
    assert plan.pages_per_request <= 1.1 * 16 * (1000 + 15 * 20)


def test_promotion_or_padding_whichever_costs_less() -> None:
    # Two groups of 4: one local head is stored as long as the 3 global ones.
    promoted = plan_groups(segments(100, 100, 100, 90, 5, 5, 5, 5), 100, 2)
    assert (promoted.slots, promoted.padding, promoted.promoted) == (4, 0, 1)
    assert promoted.pages_per_request == 4 * 105
    # Groups of 3 with one slot of padding: cheaper than 2 groups of 4, which would store 2 local heads in full.
    padded = plan_groups(segments(100, 100, 100, 50, 50), 100, 2)
    assert (padded.slots, padded.padding, padded.promoted) == (3, 1, 0)
    assert padded.pages_per_request == 3 * 150


def test_equal_segments_share_one_group_without_padding() -> None:
    plan = plan_groups(segments(*[7] * 200), 100, 16)
    assert len(plan.groups) == 1
    assert (plan.slots, plan.padding, plan.promoted) == (200, 0, 0)
    assert plan.kept_share == pytest.approx(0.07)


def test_a_bound_of_one_group_stores_all_as_long_as_the_longest() -> None:
    plan = plan_groups(segments(100, 5, 5, 5), 100, 1)
    assert plan.pages_per_request == 400
    assert plan.promoted == 3
    assert plan.kept_share == 1.0


def test_fewer_groups_win_where_they_cost_next_to_nothing() -> None:
    plan = plan_groups(segments(*[1000] * 10, *[999] * 10), 1000, 16)
    assert len(plan.groups) == 1
    assert plan.pages_per_request == 20 * 1000


def test_slack_is_not_spent_without_saving_a_group() -> None:
    # Groups of 101 would waste 1% and still be two.
    blocks = segments(*[1000] * 100, *[10] * 100)
    plan = plan_groups(blocks, 1000, 16)
    assert (plan.slots, len(plan.groups), plan.padding) == (100, 2, 0)


def test_equal_groups_are_dealt_so_that_every_pipeline_stage_has_its_share() -> None:
    # 4 groups of 30 locals each; the first half of the layers is one pipeline stage.
    blocks = {f"layers.{i}": Kept(100 if i % 5 == 0 else 10) for i in range(150)}
    plan = plan_groups(blocks, 100, 16)
    assert (plan.slots, len(plan.groups), plan.padding) == (30, 5, 0)
    for group in plan.groups:
        first_stage = sum(int(name.split(".")[1]) < 75 for name in group)
        assert first_stage == 15


def test_dealing_keeps_mixed_and_short_groups_as_they_are() -> None:
    blocks = segments(100, 100, 100, 10, 10, 10, 10, 10)
    plan = plan_groups(blocks, 100, 3)
    check(plan, blocks, 100, 3)
    assert sorted(len(group) for group in plan.groups) == [2, 3, 3]


@pytest.mark.parametrize(("blocks", "bound"), [({}, 4), (segments(1), 0)])
def test_nothing_to_group_or_no_groups_is_refused(blocks: dict[str, Kept], bound: int) -> None:
    with pytest.raises(ValueError, match=f"cannot group {len(blocks)} segments into at most {bound} groups"):
        plan_groups(blocks, 100, bound)


def test_a_very_large_model_is_planned_within_the_bound() -> None:
    rng = random.Random(0)
    blocks = {f"s{i}": Kept(rng.choice([4096, 300, 200]), 1) for i in range(126 * 8)}
    check(plan_groups(blocks, 4097, 16), blocks, 4097, 16)
