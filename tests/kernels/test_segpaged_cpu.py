"""SegPagedAttention on the CPU against the fp64 oracle. Every case has NaN pages, stale tables, NaN outputs."""

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, HEAD_SIZES, Case, Shape, build_case, random_shape

from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.segpaged_attention import segpaged_attention
from vllm_redknot.kernels.segpaged_attention.torch_path import segpaged_attention_torch

# Half an ulp of the output, and the same again of the largest |v| (4 to 5) for weights rounded to the KV dtype.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 5e-5}


def run(case: Case, attention: Callable[..., None] = segpaged_attention) -> torch.Tensor:
    output = case.poisoned_output()
    attention(case.query, case.layout, case.batch, output, case.softmax_scale, case.soft_cap)
    return output


def check(case: Case, attention: Callable[..., None] = segpaged_attention) -> None:
    output, tokens = run(case, attention), case.batch.num_tokens
    expected = case.expected(as_dtype=torch.float64)
    error = (output[:tokens].double() - expected).abs()
    assert not error.isnan().any(), "a NaN page, a stale entry or an unwritten row reached the output"
    assert error.max().item() <= TOLERANCE[case.query.dtype]
    assert output[tokens:].isnan().all(), "padding rows were written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_random_batches_match_the_oracle_for_every_head_size_and_dtype(
    head_size: int, dtype: torch.dtype
) -> None:
    for seed in range(12):
        check(build_case(random_shape(seed, head_size, dtype), seed))


@pytest.mark.parametrize("seed", range(20))
def test_the_torch_path_matches_the_oracle(seed: int) -> None:
    check(build_case(random_shape(seed), seed), segpaged_attention_torch)


def test_sixty_four_requests_of_mixed_length_match_the_oracle() -> None:
    query_lens = [(1, 0, 7, 33)[r % 4] for r in range(64)]
    shape = Shape(
        query_lens, [r * 5 for r in range(64)], (GLOBAL_WINDOW, 30, 100), (0, 4, 0), (0, 1, 1), ratio=3
    )
    check(build_case(shape, seed=1))


@pytest.mark.parametrize("ratio", [1, 3, 4, 8])
@pytest.mark.parametrize("query_len", [1, 2, 5, 64, 130])
def test_every_gqa_ratio_matches_the_oracle(ratio: int, query_len: int) -> None:
    shape = Shape(
        [query_len], [333], (GLOBAL_WINDOW, 50), (0, 7), (0, 1), ratio=ratio, head_size=128, page_size=32
    )
    check(build_case(shape, seed=2))


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 255, 600, 601, 5000])
@pytest.mark.parametrize("sink", [0, 1, 16, 128])
def test_windows_and_sinks_are_a_set_union_at_every_overlap(window: int, sink: int) -> None:
    shape = Shape([70, 1, 200], [530, 130, 0], (window,), (sink,), (0,), ratio=2, page_size=16)
    check(build_case(shape, seed=window * 1000 + sink))


def test_a_window_beyond_the_sequence_equals_a_global_head_bit_for_bit() -> None:
    shared = {"query_lens": [150, 1], "context_lens": [400, 77], "head_groups": (0, 0), "ratio": 3}
    wide = build_case(Shape(windows=(10_000, 551), sinks=(0, 9), **shared), seed=3)
    full = build_case(Shape(windows=(GLOBAL_WINDOW,) * 2, sinks=(0, 0), **shared), seed=3)
    assert torch.equal(run(wide)[:151], run(full)[:151])


def test_a_batch_of_empty_requests_writes_nothing() -> None:
    case = build_case(Shape([0, 0], [5, 60], (GLOBAL_WINDOW,), (0,), (0,), padding_rows=3), seed=4)
    assert run(case).isnan().all()
