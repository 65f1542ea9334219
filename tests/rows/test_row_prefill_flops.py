"""FLOPs of a prefill with rows skipped equal a count over every layer, token and head."""

import random

import pytest

from vllm_redknot.heads.flops import attention_work
from vllm_redknot.heads.profile import HeadClass, HeadProfile
from vllm_redknot.rows.prefill_flops import DecoderSizes, PrefillWork, prefill_work, rows_skipped
from vllm_redknot.rows.schedule import RowSchedule

WIDTH, FFN, HEAD_DIM, QUERY_HEADS, KV_HEADS, LAYERS = 24, 40, 8, 6, 2, 5


def profile(rng: random.Random) -> HeadProfile:
    """Local heads of random windows and global ones."""
    shape = range(KV_HEADS)
    windows = [[rng.choice([None, rng.randint(1, 40)]) for _ in shape] for _ in range(LAYERS)]
    return HeadProfile(
        classes=tuple(
            tuple(HeadClass.GLOBAL if window is None else HeadClass.LOCAL for window in row)
            for row in windows
        ),
        window=tuple(map(tuple, windows)),
        sink=tuple(tuple(rng.randint(0, 5) if window else 0 for window in row) for row in windows),
        layer_ids=tuple(range(LAYERS)),
    )


def counted(heads: HeadProfile, context: int, rows: RowSchedule) -> tuple[PrefillWork, int, int]:
    """The work by the definition, and the rows of attention and FFN that are skipped."""
    projections = ffn = attention = attention_rows = ffn_rows = 0
    for layer in range(LAYERS):
        for token in range(context):
            start, stop = rows.skippable(context)
            skips = start <= token < stop
            projections += 2 * WIDTH * 2 * KV_HEADS * HEAD_DIM
            if skips and rows.skips_ffn(layer):
                ffn_rows += 1
            else:
                ffn += 6 * WIDTH * FFN
            if skips and rows.skips_attention(layer):
                attention_rows += 1
                continue
            projections += 2 * WIDTH * 2 * QUERY_HEADS * HEAD_DIM
            for head in range(KV_HEADS):
                window, sink = heads.visibility(layer, head)
                seen = sum(window is None or token - key < window or key < sink for key in range(token + 1))
                attention += 4 * HEAD_DIM * seen * (QUERY_HEADS // KV_HEADS)
    return PrefillWork(projections, ffn, attention), attention_rows, ffn_rows


@pytest.mark.parametrize("seed", range(12))
def test_skipped_rows_save_what_a_count_says(seed: int) -> None:
    rng = random.Random(seed)
    heads, context = profile(rng), rng.randint(1, 70)
    first = rng.randint(0, LAYERS - 1)
    rows = RowSchedule(
        ffn_from=first,
        attention_from=rng.choice([None, rng.randint(first, LAYERS - 1)]),
        sink=rng.randint(0, 6),
        recent=rng.randint(1, 30),
    )
    sizes = DecoderSizes(LAYERS, WIDTH, FFN)
    work, attention_rows, ffn_rows = counted(heads, context, rows)
    assert prefill_work(heads, QUERY_HEADS, HEAD_DIM, sizes, 1, context, rows) == work
    skipped = rows_skipped(rows, heads.layer_ids, LAYERS, context)
    assert skipped.attention == attention_rows / (LAYERS * context)
    assert skipped.ffn == ffn_rows / (LAYERS * context)


def test_what_a_sparse_ffn_computed_counts_by_its_share() -> None:
    heads, context = profile(random.Random(0)), 70
    rows = RowSchedule(ffn_from=LAYERS - 1, sink=4, recent=16)
    sizes = DecoderSizes(LAYERS, WIDTH, FFN)
    alone = prefill_work(heads, QUERY_HEADS, HEAD_DIM, sizes, 1, context, rows)
    # The late layer's share is not looked at: it computes none.
    computed = {0: 0.25, LAYERS - 1: 0.5}
    work = prefill_work(heads, QUERY_HEADS, HEAD_DIM, sizes, 1, context, rows, computed)
    assert alone.ffn - work.ffn == round(0.75 * 50 * 6 * WIDTH * FFN)
    skipped = rows_skipped(rows, heads.layer_ids, LAYERS, context, computed)
    assert skipped.ffn == pytest.approx(1.75 * 50 / (LAYERS * context))


def test_without_rows_attention_is_that_of_the_profile_and_ranks_share_the_rest() -> None:
    heads = profile(random.Random(0))
    sizes = DecoderSizes(LAYERS, WIDTH, FFN)
    work = prefill_work(heads, QUERY_HEADS, HEAD_DIM, sizes, 1, 50, None)
    assert work.attention == attention_work(heads, QUERY_HEADS, HEAD_DIM, 50).prefill
    assert work.total == work.attention + work.projections + work.ffn
    assert prefill_work(heads, QUERY_HEADS, HEAD_DIM, sizes, 2, 50, None).ffn == work.ffn // 2
