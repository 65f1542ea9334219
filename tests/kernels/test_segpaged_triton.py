"""The Triton attention kernels: interpreted in a process of their own, and launched from shapes alone."""

import pytest
import torch
from cases import Case, Shape, build_case
from interpreted_run import run_interpreted

from vllm_redknot.kernels.layout import GLOBAL_WINDOW

pytest.importorskip("triton", reason="the GPU kernels need triton")

from vllm_redknot.kernels.segpaged_attention.triton import attention_launches, check_layout_alignment
from vllm_redknot.kernels.segpaged_attention.triton_configs import num_splits


def on_meta(query_lens: list[int], context_lens: list[int]) -> Case:
    """A batch whose tensors have shapes and no storage: reading any value raises."""
    shape = Shape(query_lens, context_lens, (GLOBAL_WINDOW, 50), (0, 4), (0, 1), ratio=4)
    return build_case(shape, seed=0, device="meta")


def grids(case: Case) -> list[tuple[int, ...]]:
    output = torch.empty_like(case.query)
    launches = attention_launches(case.query, case.layout, case.batch, output, case.softmax_scale)
    return [launch.grid for launch in launches]


@pytest.mark.slow
def test_the_interpreted_attention_kernels_match_the_oracle() -> None:
    run_interpreted("segpaged_attention.py", "-m", "not slow")


@pytest.mark.slow
def test_the_interpreted_attention_kernels_match_the_oracle_on_fifty_more_batches() -> None:
    run_interpreted("segpaged_attention.py", "-m", "slow")


@pytest.mark.parametrize("query_lens", [[1, 1, 1], [30, 1, 4], [77]])
def test_launches_are_built_without_reading_a_value_from_the_device(query_lens: list[int]) -> None:
    assert grids(on_meta(query_lens, [600] * len(query_lens)))


def test_a_decode_grid_depends_on_the_batch_size_and_not_on_the_lengths() -> None:
    table_width = [on_meta([1, 1], [9000, lengths]) for lengths in (3, 800, 9000)]
    widths = {case.batch.block_tables.shape[2] for case in table_width}
    assert len(widths) == 1
    assert len({tuple(grids(case)) for case in table_width}) == 1


def test_decode_is_two_launches_prefill_one_and_a_mixed_batch_three() -> None:
    assert len(grids(on_meta([1, 1], [9000, 9000]))) == 2
    assert len(grids(on_meta([80], [9000]))) == 1
    assert len(grids(on_meta([80, 1], [9000, 9000]))) == 3


@pytest.mark.parametrize(
    ("requests", "heads", "context", "expected"),
    [(1, 8, 8192, 16), (8, 8, 131072, 66), (256, 8, 131072, 3), (1, 1, 100, 1), (1024, 64, 131072, 1)],
)
def test_splits_grow_with_context_and_shrink_with_the_batch(
    requests: int, heads: int, context: int, expected: int
) -> None:
    assert num_splits(requests, heads, context, multiprocessors=132) == expected


def test_a_base_that_breaks_sixteen_byte_loads_is_refused() -> None:
    layout = build_case(Shape([1], [5], (9,), (0,), (0,)), seed=0).layout
    check_layout_alignment(layout)
    layout.base[0] += 8
    with pytest.raises(ValueError, match=r"base\[0\] is \d+ elements; valid: multiples of 16"):
        check_layout_alignment(layout)


def test_mismatched_dtypes_and_shapes_are_refused() -> None:
    case = build_case(Shape([2], [5], (9,), (0,), (0,)), seed=0)
    with pytest.raises(ValueError, match=r"output torch\.float32"):
        attention_launches(case.query, case.layout, case.batch, case.query.float(), 1.0)
    with pytest.raises(ValueError, match="head size 32 over pages of head size 64"):
        attention_launches(case.query[..., :32], case.layout, case.batch, case.query, 1.0)
