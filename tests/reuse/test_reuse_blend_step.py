"""What one step blends: which rows are furthest from the stored ones, and the plan of those that go on."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_redknot.kernels.kv_write import kv_write
from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.reuse.blend_step import BlendedRows, BlendStep, deviations, rows_at, split_rows
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.policy import Blend

HEADS, SIZE, PAGE, ROWS = 3, 64, 16, 40


def layout() -> SegmentLayout:
    """Three heads in two groups, ten pages each."""
    page = PAGE * 2 * SIZE
    return SegmentLayout(
        pool=torch.full((HEADS * 10 * page,), float("nan")),
        base=torch.arange(HEADS) * 10 * page,
        group=torch.tensor([0, 1, 0], dtype=torch.int32),
        window=torch.full((HEADS,), GLOBAL_WINDOW, dtype=torch.int32),
        sink=torch.zeros(HEADS, dtype=torch.int32),
        page_stride=page,
        token_stride=2 * SIZE,
        value_offset=SIZE,
        page_size=PAGE,
        head_size=SIZE,
    )


class Written:
    """Rows whose stored keys and values are known, and what is computed instead of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.layout = layout()
        self.slots = torch.stack([torch.randperm(10 * PAGE, generator=generator)[:ROWS] for _ in range(2)])
        stored = torch.randn(2, ROWS, HEADS, SIZE, generator=generator)
        kv_write(stored[0].contiguous(), stored[1].contiguous(), self.layout, self.slots)
        scale = torch.rand(2, ROWS, 1, 1, generator=generator)
        noise = torch.randn(2, ROWS, HEADS, SIZE, generator=generator) * scale
        self.key, self.value = stored + noise
        self.expected = noise.square().sum(dim=(0, 2, 3))
        self.step: Any = SimpleNamespace(
            slot_mappings=self.slots,
            block_tables=torch.zeros(2, 2, 4, dtype=torch.int32),
            batch=SimpleNamespace(cu_seqlens_q=torch.tensor([0, 7, ROWS], dtype=torch.int32)),
            seq_lens_cpu=torch.tensor([50, 133], dtype=torch.int32),
        )


def test_deviations_are_over_keys_and_values_of_all_heads() -> None:
    written = Written()
    found = deviations(written.key, written.value, written.layout, written.slots, 5, 31)
    torch.testing.assert_close(found, written.expected[5:31], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_rows_of_each_part_that_deviate_most_go_on_with_those_of_none(share: float) -> None:
    written = Written()
    parts = [BlendedRows(9, 20, Blend(share)), BlendedRows(20, 38, Blend(share))]
    plan = BlendStep(written.step, parts, written.layout).choose(written.key, written.value)
    assert plan is not None
    kept = [*range(9), *range(38, ROWS)]
    for start, stop, blend in parts:
        order = written.expected[start:stop].argsort(descending=True)[: blend.chosen(stop - start)]
        kept += (start + order).tolist()
    assert plan.kept.tolist() == sorted(kept)
    assert sorted(plan.kept.tolist() + plan.skipping.tolist()) == list(range(ROWS))


def test_where_all_are_chosen_there_is_no_plan() -> None:
    written = Written()
    assert (
        BlendStep(written.step, [BlendedRows(9, 20, Blend(1.0))], written.layout).choose(
            written.key, written.value
        )
        is None
    )


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_rows_know_their_request_and_where_it_ends(seed: int) -> None:
    draw = random.Random(seed)
    starts = [0, 1, 9, 9 + draw.randrange(1, 12), 30]
    lengths = [draw.randrange(30, 60) for _ in range(4)]
    skips = torch.tensor([draw.random() < 0.5 for _ in range(33)])
    kept, skipping = split_rows(skips, starts, lengths)
    rows = {}
    for spans, skipped in ((kept, False), (skipping, True)):
        for span in spans:
            for row in range(span.start, span.stop):
                assert bool(skips[row]) is skipped
                # Tokens of the request up to and including this row.
                rows[row] = span.request, span.seq_len - (span.stop - 1 - row)
    expected = {
        row: (request, lengths[request] - (starts[request + 1] - 1 - row))
        for request in range(4)
        for row in range(starts[request], starts[request + 1])
    }
    assert rows == expected


def test_tokens_are_found_in_a_step_by_their_slots_or_not_at_all() -> None:
    mapping = torch.tensor([7, 8, 40, 41, 42, 3, -1, -1])
    assert rows_at(torch.tensor([40, 41, 42]), mapping) == 2
    assert rows_at(torch.tensor([7]), mapping) == 0
    for missing in ([9], [41, 42, 43], [42, 3, -2], [3, -1, -1, 0]):
        with pytest.raises(ReuseError, match="does not compute the tokens"):
            rows_at(torch.tensor(missing), mapping)
