"""Every instruction-set variant this CPU runs, against the oracle, stock vLLM and the exact exponential."""

import pytest
import torch
from cases import DTYPES, HEAD_SIZES, Case, Shape, build_case, random_shape

from vllm_redknot.kernels import native
from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.segpaged_attention.cpu import segpaged_attention_cpu

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 5e-5}


def runnable() -> list[str]:
    kernels = native.load()
    assert kernels is not None, "the tests of the C++ kernels need a C++ compiler"
    return kernels.runnable


def run(case: Case, variant: str | None = None) -> torch.Tensor:
    output = case.poisoned_output()
    segpaged_attention_cpu(
        case.query, case.layout, case.batch, output, case.softmax_scale, case.soft_cap, variant
    )
    return output[: case.batch.num_tokens]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", [*HEAD_SIZES, 32, 112])
def test_all_variants_match_the_oracle(head_size: int, dtype: torch.dtype) -> None:
    for seed in range(100, 104):
        case = build_case(random_shape(seed, head_size, dtype), seed)
        expected = case.expected(as_dtype=torch.float64)
        for variant in runnable():
            error = (run(case, variant).double() - expected).abs()
            assert error.max().item() <= TOLERANCE[dtype], f"{variant}, seed {seed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_exponential_keeps_its_stated_error(dtype: torch.dtype) -> None:
    x = torch.linspace(-126, 0, 16 * 100_000)
    kernels = native.load()
    assert kernels is not None
    for variant in runnable():
        error = (kernels.exp2(variant, dtype, x).double() / x.double().exp2() - 1).abs().max().item()
        assert error < (1.2e-7 if dtype == torch.float32 else 3.1e-6), variant


def test_the_exponential_is_exactly_zero_below_its_range_and_keeps_nan() -> None:
    x = torch.tensor([-float("inf"), -1e30, -127.5, -200.0, float("nan")] + [0.0] * 11)
    kernels = native.load()
    assert kernels is not None
    for variant in runnable():
        result = kernels.exp2(variant, torch.bfloat16, x)
        assert torch.equal(result[:4], torch.zeros(4)), variant
        assert result[4].isnan(), variant
        assert torch.equal(result[5:], torch.ones(11)), variant


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_splitting_keys_over_threads_changes_only_the_rounding(threads: int) -> None:
    shape = Shape(
        [1, 1, 130], [2900, 40, 1200], (GLOBAL_WINDOW, 700), (0, 60), (0, 1), ratio=3, dtype=torch.float32
    )
    case = build_case(shape, seed=5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case)
        torch.set_num_threads(threads)
        together = run(case)
    finally:
        torch.set_num_threads(before)
    assert (alone - together).abs().max().item() < 2e-6


def test_nan_in_a_visible_key_reaches_the_queries_that_see_it() -> None:
    case = build_case(Shape([40], [100], (GLOBAL_WINDOW,), (0,), (0,), ratio=2), seed=6)
    page = int(case.batch.block_tables[0, 0, 0])
    case.layout.pool[int(case.layout.base[0]) + page * case.layout.page_stride] = float("nan")
    for variant in runnable():
        assert run(case, variant).isnan().all(), variant


def test_a_visible_page_outside_the_pool_is_refused() -> None:
    for page in (-1, 10_000, 2**31 - 1):
        case = build_case(Shape([3], [50], (GLOBAL_WINDOW,), (0,), (0,)), seed=7)
        case.batch.block_tables[0, 0, 2] = page
        with pytest.raises(IndexError, match=rf"request 0, KV head 0: page {page} of visible position 32"):
            run(case)


def test_lengths_that_contradict_each_other_are_refused() -> None:
    case = build_case(Shape([3], [50], (GLOBAL_WINDOW,), (0,), (0,)), seed=8)
    for length in (2, 10_000):
        case.batch.seq_lens[0] = length
        with pytest.raises(ValueError, match=f"request 0: .*seq_lens \\({length}\\)"):
            run(case)


def test_a_head_size_that_is_not_served_is_refused_with_the_valid_ones() -> None:
    case = build_case(Shape([3], [50], (GLOBAL_WINDOW,), (0,), (0,), head_size=48), seed=9)
    with pytest.raises(ValueError, match="head size 48 is not served; valid: 32, 64, 80, 96"):
        run(case)


def test_an_unknown_dtype_or_a_variant_this_cpu_lacks_is_refused() -> None:
    case = build_case(Shape([3], [50], (GLOBAL_WINDOW,), (0,), (0,), dtype=torch.float64), seed=10)
    with pytest.raises(ValueError, match=r"must share one of bfloat16, float16, float32, got torch\.float64"):
        run(case)
    kernels = native.load()
    assert kernels is not None
    case = build_case(Shape([3], [50], (GLOBAL_WINDOW,), (0,), (0,)), seed=10)
    for variant in set(kernels.variants) - set(kernels.runnable):
        with pytest.raises(ValueError, match=f"variant '{variant}' does not run on this CPU"):
            run(case, variant)
