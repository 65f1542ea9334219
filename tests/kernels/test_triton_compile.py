"""Every Triton variant is compiled for sm_80, sm_90 and sm_100 (no GPU needed) and held to its resource bounds.

Why these bounds. No local memory: a spill in the key loop is traffic per key and thread. Prefill of head sizes up to
128 stays within 99 KiB of shared memory, half of what an SM of sm_90 or sm_100 has; head size 256 may take what a block
may have. The tiles for sm_80 also serve consumer parts (sm_86, sm_89, sm_120), where a block has 99 KiB at most. Decode
is bound by memory and needs many loads in flight: at most 168 registers and 54 KiB keep three blocks of 128 threads on
an SM of each architecture.
"""

import pytest
import torch
from cases import Case, Shape, build_case

from vllm_redknot.kernels.layout import GLOBAL_WINDOW

pytest.importorskip("triton", reason="the GPU kernels need triton")

from triton_compile import Resources, compile_launch

from vllm_redknot.kernels.kv_write.triton import kv_write_launch
from vllm_redknot.kernels.segpaged_attention.triton_decode import decode_launches
from vllm_redknot.kernels.segpaged_attention.triton_prefill import prefill_launch

KIB = 1024
SHARED_PER_BLOCK = {80: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB}
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
TENSOR_MEMORY_COLUMNS = 512


def case_of(head_size: int, ratio: int, page_size: int, soft_cap: float, dtype: torch.dtype) -> Case:
    shape = Shape(
        [5, 1],
        [9000, 100],
        (GLOBAL_WINDOW, 50),
        (0, 4),
        (0, 1),
        ratio,
        head_size,
        page_size,
        dtype,
        soft_cap=soft_cap,
    )
    return build_case(shape, seed=0)


def uses(resources: Resources, opcode: str) -> bool:
    return any(instruction.split(".")[0] == opcode for instruction in resources.instructions)


def check_kernels(
    capability: int,
    head_size: int,
    ratio: int,
    page_size: int = 16,
    soft_cap: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    case = case_of(head_size, ratio, page_size, soft_cap, dtype)
    arguments = (case.query, case.layout, case.batch, torch.empty_like(case.query), 0.1, soft_cap)
    prefill = compile_launch(prefill_launch(*arguments, skip_decode=True, capability=capability), capability)
    decode, reduction = (compile_launch(x, capability) for x in decode_launches(*arguments, splits=8))
    assert (prefill.stack, decode.stack, reduction.stack) == (0, 0, 0)
    assert prefill.shared <= (99 * KIB if head_size <= 128 else SHARED_PER_BLOCK[capability])
    assert prefill.tensor_memory <= TENSOR_MEMORY_COLUMNS
    assert decode.registers <= 168
    assert decode.shared <= 54 * KIB
    assert reduction.registers <= 128
    if dtype != torch.float32:
        assert uses(prefill, MATRIX_INSTRUCTION[capability])
        assert uses(decode, "HMMA")
        for resources in (prefill, decode):
            assert "LDGSTS.E.BYPASS.128" in resources.instructions, "K and V must load 16 bytes at a time"


def check_kv_write(capability: int, head_size: int) -> None:
    case = case_of(head_size, 1, 16, 0.0, torch.bfloat16)
    rows, slots = case.query[:6], torch.zeros((2, 6), dtype=torch.int64)
    resources = compile_launch(kv_write_launch(rows, rows, case.layout, slots), capability)
    assert resources.stack == 0
    assert resources.registers <= 96
    assert {"LDG.E.128", "STG.E.128"} <= resources.instructions, "16 bytes at a time"


def test_an_h100_runs_head_size_128_with_four_query_heads_without_spills() -> None:
    check_kernels(90, 128, 4)
    check_kv_write(90, 128)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1, 3, 4, 8])
@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_no_kernel_spills_or_exceeds_its_bounds(capability: int, head_size: int, ratio: int) -> None:
    check_kernels(capability, head_size, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_pages_wider_than_a_tile_and_soft_caps_stay_within_the_bounds(
    capability: int, head_size: int
) -> None:
    check_kernels(capability, head_size, 4, page_size=64)
    check_kernels(capability, head_size, 3, soft_cap=15.0)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_padded_head_sizes_and_fp32_stay_within_the_bounds(capability: int) -> None:
    check_kernels(capability, 80, 4)
    check_kernels(capability, 128, 3, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("splits", [1, 8])
def test_decode_of_a_list_of_heads_stays_within_the_bounds(splits: int) -> None:
    case = case_of(128, 4, 16, 0.0, torch.bfloat16)
    heads, output = torch.tensor([1], dtype=torch.int32), torch.empty_like(case.query)
    launches = decode_launches(case.query, case.layout, case.batch, output, 0.1, 0.0, heads, splits)
    for resources in (compile_launch(launch, 90) for launch in launches):
        assert resources.stack == 0
        assert resources.registers <= 168


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_the_kv_write_neither_spills_nor_splits_its_stores(capability: int, head_size: int) -> None:
    check_kv_write(capability, head_size)
