"""The search for late layers against trying everything."""

import itertools
import random

import pytest

from vllm_redknot.profiler.row_search import LateSearch, with_sparse_ffn
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Predictor, Probe

RECENTS = (64, 128, 256)
DEPTH = 30


def saved(schedule: RowSchedule) -> float:
    """Any measure that grows with skipping."""
    attention = DEPTH if schedule.attention_from is None else schedule.attention_from
    sparse = schedule.sparse_ffn
    extra = 0.75 * len(sparse.layers) if isinstance(sparse, Predictor) else 0.0
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


def test_predictors_are_taken_downward_until_a_layer_takes_none() -> None:
    late = RowSchedule(ffn_from=20, attention_from=24)
    probes = {layer: {share: Probe.of((layer,), share) for share in (0.25, 0.5, 0.75)} for layer in range(20)}

    def holds(schedule: RowSchedule) -> bool:
        assert isinstance(schedule.sparse_ffn, Predictor)
        return all(
            probe.threshold <= 0.5 and int(layer) >= 9 for layer, probe in schedule.sparse_ffn.probes.items()
        )

    found = with_sparse_ffn(late, probes, holds, saved)
    assert found.sparse_ffn == Predictor(
        rule="predictor", probes={str(layer): probes[layer][0.5] for layer in range(9, 20)}
    )
    assert (found.ffn_from, found.attention_from) == (20, 24)


def test_predictors_that_save_little_are_left_out() -> None:
    late = RowSchedule(ffn_from=20, attention_from=24)
    probes = {layer: {0.5: Probe.of((1.0,), 0.0)} for layer in range(15, 20)}

    def holds(schedule: RowSchedule) -> bool:
        assert isinstance(schedule.sparse_ffn, Predictor)
        return "17" not in schedule.sparse_ffn.probes

    assert with_sparse_ffn(late, probes, holds, saved) == late
    assert with_sparse_ffn(late, {}, holds, saved) == late
