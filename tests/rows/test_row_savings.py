"""Savings by the formula against counting row by row and pair by pair."""

import pytest

from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import HeadClass, HeadProfile, all_global
from vllm_redknot.rows.savings import PrefillSavings
from vllm_redknot.rows.schedule import RowSchedule

LAYERS, CONTEXT = 5, 70
SHAPE = ModelShape(
    num_layers=LAYERS,
    num_kv_heads=2,
    num_attention_heads=6,
    head_dim=64,
    hidden_size=320,
    vocab_size=1000,
    model_type="llama",
    intermediate_size=800,
)
MIXED = HeadProfile(
    classes=((HeadClass.GLOBAL, HeadClass.LOCAL),) * LAYERS,
    window=((None, 9),) * LAYERS,
    sink=((0, 3),) * LAYERS,
    layer_ids=tuple(range(LAYERS)),
)
SCHEDULES = (
    RowSchedule(ffn_from=2, attention_from=3, sink=4, recent=20),
    RowSchedule(ffn_from=1, sink=0, recent=1),
    RowSchedule(ffn_from=0, attention_from=0, sink=2, recent=5),
    RowSchedule(ffn_from=1, attention_from=1, sink=4, recent=100),
)


def counted(heads: HeadProfile, schedule: RowSchedule | None) -> float:
    """FLOPs of the prompt, by going over every row, head and key."""
    total = 0
    for layer in range(LAYERS):
        for token in range(CONTEXT):
            low, high = schedule.skippable(CONTEXT) if schedule else (0, 0)
            skips = low <= token < high
            total += 2 * 320 * (2 * 2) * 64
            if not (skips and schedule is not None and schedule.skips_attention(layer)):
                total += 2 * 320 * 6 * 64 * 2
                for head in range(2):
                    seen = heads.visibility(layer, head)
                    keys = [
                        key
                        for key in range(token + 1)
                        if seen.window is None or token - key < seen.window or key < seen.sink
                    ]
                    total += 4 * 64 * 3 * len(keys)
            if not (skips and schedule is not None and schedule.skips_ffn(layer)):
                total += 6 * 320 * 800
    return total


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_flops_are_those_counted_one_by_one(schedule: RowSchedule) -> None:
    saved = PrefillSavings(SHAPE, MIXED, CONTEXT).saved(schedule)
    left, alone = counted(MIXED, schedule), counted(MIXED, None)
    dense = counted(all_global(tuple(range(LAYERS)), 2), None)
    assert saved.flops == pytest.approx(1 - left / alone)
    assert saved.flops_of_dense == pytest.approx(1 - left / dense)


def test_rows_are_tokens_times_layers() -> None:
    saved = PrefillSavings(SHAPE, MIXED, CONTEXT).saved(SCHEDULES[0])
    skipping = CONTEXT - 4 - 20
    assert saved.attention_rows == pytest.approx(2 * skipping / (LAYERS * CONTEXT))
    assert saved.ffn_rows == pytest.approx(3 * skipping / (LAYERS * CONTEXT))


def test_sparse_layers_save_the_share_that_they_do_not_compute() -> None:
    sparse = {"rule": "relative_norm", "thresholds": {"0": 0.1, "1": 0.2}}
    schedule = RowSchedule.parse({"sparse_ffn": sparse, "sink": 4, "recent": 20})
    saved = PrefillSavings(SHAPE, MIXED, CONTEXT).saved(schedule, {0: 0.25, 1: 0.5})
    skipping = CONTEXT - 4 - 20
    assert saved.ffn_rows == pytest.approx((0.75 + 0.5) * skipping / (LAYERS * CONTEXT))
    assert saved.attention_rows == 0
    alone = counted(MIXED, None)
    assert saved.flops == pytest.approx(1.25 * skipping * 6 * 320 * 800 / alone)


def test_a_prompt_too_short_to_skip_saves_nothing() -> None:
    saved = PrefillSavings(SHAPE, MIXED, CONTEXT).saved(SCHEDULES[3])
    assert (saved.flops, saved.ffn_rows, saved.attention_rows) == (0, 0, 0)
