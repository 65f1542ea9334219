"""The Triton attention kernels under Triton's interpreter, against the fp64 oracle.

Run by tests/kernels/test_segpaged_triton.py in a process of its own. Every case carries NaN in each slot that no
query of the head sees, stale block-table entries, and an output of NaN.
"""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import interpreter_bf16

interpreter_bf16.install()

import pytest
import torch
from cases import DTYPES, HEAD_SIZES, Case, Shape, build_case, random_shape

from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.segpaged_attention.triton import segpaged_attention_triton
from vllm_redknot.kernels.segpaged_attention.triton_decode import decode_launches
from vllm_redknot.kernels.segpaged_attention.triton_prefill import prefill_launch

# Half an ulp of the output plus, as weights are rounded to the KV dtype, as much again of the largest |v| (4 to 5).
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-5}

# Rows of a tile without a query divide 0 by 0 and are never stored.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")


def check(case: Case, output: torch.Tensor, rows: torch.Tensor | slice | None = None) -> None:
    """`output` must match the oracle in `rows` (default: all that count) and be NaN everywhere else."""
    rows = slice(0, case.batch.num_tokens) if rows is None else rows
    error = (output[rows].double() - case.expected(as_dtype=torch.float64)[rows]).abs()
    assert not error.isnan().any(), "a NaN page, a stale entry or an unwritten row reached the output"
    assert error.max().item() <= TOLERANCE[case.query.dtype]
    untouched = output.clone()
    untouched[rows] = float("nan")
    assert untouched.isnan().all(), "rows of no concern were written"


def attend(case: Case) -> torch.Tensor:
    output = case.poisoned_output()
    segpaged_attention_triton(case.query, case.layout, case.batch, output, case.softmax_scale, case.soft_cap)
    return output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_random_batches_match_the_oracle_for_every_head_size_and_dtype(
    head_size: int, dtype: torch.dtype
) -> None:
    # The small fp32 tiles are many interpreter steps.
    for seed in range(100, 101 if dtype == torch.float32 else 103):
        case = build_case(random_shape(seed, head_size, dtype, max_query=90, max_context=400), seed)
        check(case, attend(case))


@pytest.mark.parametrize("requests", [1, 16, 64])
def test_mixed_batches_of_many_requests_match_the_oracle(requests: int) -> None:
    query_lens = [(1, 0, 7, 33)[r % 4] for r in range(requests)]
    context_lens = [r * 3 for r in range(requests)]
    windows, sinks = (GLOBAL_WINDOW, 30, 100), (0, 4, 0)
    case = build_case(Shape(query_lens, context_lens, windows, sinks, (0, 1, 1), ratio=3), seed=1)
    check(case, attend(case))


@pytest.mark.parametrize("ratio", [1, 3, 4, 8])
@pytest.mark.parametrize("query_len", [1, 2, 43])
def test_every_gqa_ratio_matches_the_oracle(ratio: int, query_len: int) -> None:
    shape = Shape(
        [query_len], [333], (GLOBAL_WINDOW, 50), (0, 7), (0, 1), ratio=ratio, head_size=128, page_size=32
    )
    case = build_case(shape, seed=2)
    check(case, attend(case))


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 64, 255, 600, 601, 5000, GLOBAL_WINDOW])
@pytest.mark.parametrize("sink", [0, 1, 16, 128])
def test_windows_and_sinks_are_a_set_union_at_every_overlap(window: int, sink: int) -> None:
    shape = Shape([70, 1, 200], [530, 130, 0], (window,), (sink,), (0,), ratio=2, page_size=16)
    case = build_case(shape, seed=window % 10_007 * 1000 + sink)
    check(case, attend(case))


@pytest.mark.parametrize("page_size", [16, 32, 48, 64, 128])
@pytest.mark.parametrize("soft_cap", [0.0, 20.0])
def test_every_page_size_with_and_without_soft_cap(page_size: int, soft_cap: float) -> None:
    shape = Shape(
        [90, 1, 1],
        [200, 700, 0],
        (GLOBAL_WINDOW, 77),
        (0, 5),
        (0, 1),
        ratio=4,
        page_size=page_size,
        soft_cap=soft_cap,
        scale=2.0,
    )
    case = build_case(shape, seed=page_size)
    check(case, attend(case))


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 16, 40])
def test_any_number_of_splits_gives_the_same_decode(splits: int) -> None:
    windows, sinks = (GLOBAL_WINDOW, 300, 1500, 5), (0, 4, 128, 0)
    shape = Shape([1, 1, 1, 1], [9000, 0, 700, 3333], windows, sinks, (0, 1, 1, 2), ratio=3, page_size=32)
    case, output = build_case(shape, seed=splits), None
    output = case.poisoned_output()
    for launch in decode_launches(
        case.query, case.layout, case.batch, output, case.softmax_scale, 0.0, splits=splits
    ):
        launch.run()
    check(case, output)


def test_scratch_of_unused_splits_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape([1, 1], [4000, 700], (GLOBAL_WINDOW, 40), (0, 4), (0, 1), ratio=2)
    case = build_case(shape, seed=11)
    monkeypatch.setattr(torch, "empty", lambda *size, **kw: torch.full(*size, float("nan"), **kw))
    output = case.poisoned_output()
    for launch in decode_launches(
        case.query, case.layout, case.batch, output, case.softmax_scale, 0.0, splits=20
    ):
        launch.run()
    check(case, output)


@pytest.mark.parametrize("heads", [[0], [2, 1], [3]])
def test_decode_of_some_heads_leaves_the_other_heads_alone(heads: list[int]) -> None:
    shape = Shape([1, 1], [2000, 60], (GLOBAL_WINDOW, 300, 9, 64), (0, 4, 0, 8), (0, 1, 1, 2), ratio=4)
    case = build_case(shape, seed=12)
    output = case.poisoned_output()
    index = torch.tensor(heads, dtype=torch.int32)
    for launch in decode_launches(
        case.query, case.layout, case.batch, output, case.softmax_scale, 0.0, index, splits=6
    ):
        launch.run()
    served = torch.zeros(16, dtype=torch.bool)
    for head in heads:
        served[head * 4 : head * 4 + 4] = True
    error = (output[:, served].double() - case.expected(as_dtype=torch.float64)[:, served]).abs()
    assert error.max().item() <= TOLERANCE[case.query.dtype]
    assert output[:, ~served].isnan().all()


def test_prefill_and_decode_share_a_mixed_batch_without_overlap() -> None:
    shape = Shape([5, 1, 0, 1, 90], [100, 900, 30, 0, 10], (GLOBAL_WINDOW, 50), (0, 4), (0, 1), ratio=2)
    case = build_case(shape, seed=13)
    lengths = case.batch.cu_seqlens_q.diff()
    single = torch.repeat_interleave(lengths == 1, lengths)
    prefill, decode = case.poisoned_output(), case.poisoned_output()
    arguments = (case.query, case.layout, case.batch)
    prefill_launch(*arguments, prefill, case.softmax_scale, 0.0, skip_decode=True).run()
    for launch in decode_launches(*arguments, decode, case.softmax_scale, 0.0):
        launch.run()
    check(case, prefill, ~single)
    check(case, decode, single)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_the_tiles_of_every_architecture_match_the_oracle(capability: int, head_size: int) -> None:
    shape = Shape(
        [140, 33],
        [500, 0],
        (GLOBAL_WINDOW, 130),
        (0, 20),
        (0, 1),
        ratio=3,
        head_size=head_size,
        page_size=32,
    )
    case = build_case(shape, seed=14)
    output = case.poisoned_output()
    arguments = (case.query, case.layout, case.batch, output, case.softmax_scale, 0.0)
    prefill_launch(*arguments, skip_decode=False, capability=capability).run()
    check(case, output)


def test_padded_requests_of_a_captured_batch_are_skipped() -> None:
    case = build_case(
        Shape([1, 1, 0, 0], [800, 40, 5, 5], (GLOBAL_WINDOW, 50), (0, 4), (0, 1), padding_rows=2), 15
    )
    case.batch.seq_lens[2:] = 0
    case.batch.block_tables[:, 2:] = 2**31 - 1
    check(case, attend(case))


def test_a_batch_of_empty_requests_writes_nothing() -> None:
    case = build_case(Shape([0, 0], [5, 60], (GLOBAL_WINDOW,), (0,), (0,), padding_rows=3), seed=4)
    assert attend(case).isnan().all()


@pytest.mark.slow
def test_fifty_random_batches_match_the_oracle() -> None:
    for seed in range(1000, 1050):
        case = build_case(random_shape(seed, max_requests=12, max_context=1500), seed)
        check(case, attend(case))
