"""The search for late layers against trying everything."""

import itertools
import random

import pytest

from vllm_redknot.profiler.row_search import LateSearch, with_ffn_layers, with_sparse_ffn
from vllm_redknot.rows.schedule import RelativeNorm, RowSchedule

RECENTS = (64, 128, 256)
DEPTH = 30


def saved(schedule: RowSchedule) -> float:
    """Any measure that grows with skipping."""
    attention = DEPTH if schedule.attention_from is None else schedule.attention_from
    sparse = schedule.sparse_ffn
    extra = 0.75 * len(sparse.layers) if isinstance(sparse, RelativeNorm) else 0.0
    late = 3 * (DEPTH - (schedule.ffn_from or 0)) + 2 * (DEPTH - attention)
    return (late + extra) * (1 - schedule.recent / 8192) / (5 * DEPTH)


def everything() -> list[RowSchedule]:
    made = []
    for recent, first in itertools.product(RECENTS, range(DEPTH)):
        for attention in (*range(first, DEPTH), None):
            made.append(RowSchedule(ffn_from=first, attention_from=attention, recent=recent))
    return made


@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_all_schedules_is_found_by_trying_few(seed: int) -> None:
    draw = random.Random(seed)
    # Each layer costs more the earlier it is; fewer recent tokens cost a little.
    ffn = [draw.random() * 0.8 ** (layer - 15) for layer in range(DEPTH)]
    attention = [draw.random() * draw.choice((0.5, 2.0)) * 0.8 ** (layer - 15) for layer in range(DEPTH)]
    near = {recent: draw.random() * 64 / recent for recent in RECENTS}
    near = dict(zip(RECENTS, sorted(near.values(), reverse=True), strict=True))
    budget = draw.uniform(0.2, 20)
    tried: list[RowSchedule] = []

    def costs(schedule: RowSchedule) -> float:
        first = DEPTH if schedule.attention_from is None else schedule.attention_from
        assert schedule.ffn_from is not None
        return sum(ffn[schedule.ffn_from :]) + sum(attention[first:]) + near[schedule.recent]

    def holds(schedule: RowSchedule) -> bool:
        tried.append(schedule)
        return costs(schedule) <= budget

    best = LateSearch(DEPTH, 4, RECENTS, holds, saved).best()
    held = [schedule for schedule in everything() if costs(schedule) <= budget]
    if not held:
        assert best is None
        return
    assert best is not None
    assert saved(best) == max(map(saved, held))
    assert len(tried) == len(set(map(RowSchedule.digest, tried)))
    assert len(tried) <= 60


@pytest.mark.parametrize("seed", range(6))
def test_whatever_holds_or_not_the_choice_was_tried_and_held(seed: int) -> None:
    draw = random.Random(seed)
    verdicts: dict[str, bool] = {}

    def holds(schedule: RowSchedule) -> bool:
        return verdicts.setdefault(schedule.digest(), draw.random() < 0.5)

    best = LateSearch(DEPTH, 4, RECENTS, holds, saved).best()
    assert best is None or verdicts[best.digest()]


def test_everything_may_be_skipped_where_nothing_matters() -> None:
    best = LateSearch(DEPTH, 4, RECENTS, lambda _: True, saved).best()
    assert best == RowSchedule(ffn_from=0, attention_from=0, recent=64)


@pytest.mark.parametrize("seed", range(8))
def test_where_costs_add_up_no_other_single_layers_save_more(seed: int) -> None:
    draw = random.Random(seed)
    late = RowSchedule(ffn_from=12, attention_from=14)
    costs = [draw.random() for _ in range(DEPTH)]
    budget = sum(costs[12:]) + draw.uniform(0, 3)

    def cost(schedule: RowSchedule) -> float:
        return sum(costs[layer] for layer in range(DEPTH) if schedule.skips_ffn(layer))

    def holds(schedule: RowSchedule) -> bool:
        return cost(schedule) <= budget

    found = with_ffn_layers(late, DEPTH, cost, holds)
    assert holds(found)
    most = max(
        number
        for number in range(13)
        if any(sum(costs[12:]) + sum(some) <= budget for some in itertools.combinations(costs[:12], number))
    )
    assert sum(map(found.skips_ffn, range(DEPTH))) == 18 + most
    assert (found.attention_from, found.sink, found.recent) == (14, late.sink, late.recent)


def test_single_layers_that_reach_the_late_ones_are_late() -> None:
    late = RowSchedule(ffn_from=20, attention_from=24)
    wanted = {8, 18, 19}

    def strain(schedule: RowSchedule) -> float:
        return float(any(schedule.skips_ffn(layer) for layer in set(range(20)) - wanted))

    found = with_ffn_layers(late, DEPTH, strain, lambda schedule: strain(schedule) == 0)
    assert found == RowSchedule(ffn_from=18, ffn_layers=(8,), attention_from=24)
    assert with_ffn_layers(late, DEPTH, strain, lambda _: False) == late


def test_thresholds_are_not_for_layers_without_a_network() -> None:
    schedule = RowSchedule(ffn_from=20, ffn_layers=(17, 18), attention_from=24)
    thresholds = {0.75: [0.1] * DEPTH}

    def holds(schedule: RowSchedule) -> bool:
        assert isinstance(schedule.sparse_ffn, RelativeNorm)
        return schedule.sparse_ffn.layers[0] >= 10

    found = with_sparse_ffn(schedule, DEPTH, thresholds, holds, saved)
    assert isinstance(found.sparse_ffn, RelativeNorm)
    assert found.sparse_ffn.layers == (*range(10, 17), 19)
    assert (found.ffn_from, found.ffn_layers) == (20, (17, 18))


def test_thresholds_are_taken_downward_until_a_layer_takes_none() -> None:
    late = RowSchedule(ffn_from=20, attention_from=24)
    thresholds = {share: [share * layer for layer in range(DEPTH)] for share in (0.25, 0.5, 0.75)}

    def holds(schedule: RowSchedule) -> bool:
        assert isinstance(schedule.sparse_ffn, RelativeNorm)
        return all(
            value <= 0.5 * int(layer) and int(layer) >= 9
            for layer, value in schedule.sparse_ffn.thresholds.items()
        )

    found = with_sparse_ffn(late, DEPTH, thresholds, holds, saved)
    assert found.sparse_ffn == RelativeNorm(
        rule="relative_norm", thresholds={str(layer): 0.5 * layer for layer in range(9, 20)}
    )
    assert (found.ffn_from, found.attention_from) == (20, 24)


def test_thresholds_that_save_little_are_left_out() -> None:
    late = RowSchedule(ffn_from=20, attention_from=24)
    thresholds = {0.5: [0.1] * DEPTH}
    assert with_sparse_ffn(late, DEPTH, thresholds, lambda s: "17" not in str(s.sparse_ffn), saved) == late
