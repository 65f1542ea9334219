"""Kernels against the oracle on one small random case: a chunk of prefill and a decode, a global and a local head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import torch

from vllm_redknot.kernels.kv_write import kv_write
from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.kernels.segpaged_attention import plan_batch, segpaged_attention
from vllm_redknot.kernels.segpaged_attention.batch import Batch
from vllm_redknot.kernels.segpaged_attention.cpu import segpaged_attention_cpu
from vllm_redknot.kernels.segpaged_attention.reference import segpaged_attention_reference
from vllm_redknot.kernels.segpaged_attention.torch_path import segpaged_attention_torch

TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error of an element, for values of standard deviation 1: some units in the last place of a result."""
QUERY_LENS, CONTEXT_LENS = (50, 1), (70, 130)
HEADS, RATIO, HEAD_SIZE, PAGE = 2, 3, 64, 16
WINDOW, SINK = 33, 4
Attend = Callable[[torch.Tensor, SegmentLayout, Batch, torch.Tensor, float], None]


class SelfTest(NamedTuple):
    """One kernel on one dtype. `max_error` is None where it raised, or left a value that is no number."""

    kernel: str
    dtype: str
    max_error: float | None
    tolerance: float
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Within the tolerance."""
        return self.max_error is not None and self.max_error <= self.tolerance


def run_self_test(cpu_variants: Sequence[str]) -> list[SelfTest]:
    """Every CPU variant that runs here, plain torch, and Triton where there is a GPU, on three dtypes."""
    kernels: list[tuple[str, str, Attend]] = [("plain torch", "cpu", segpaged_attention_torch)]
    kernels += [
        (f"C++ {variant}", "cpu", partial(segpaged_attention_cpu, variant=variant))
        for variant in cpu_variants
    ]
    if torch.cuda.is_available():
        kernels.append(("Triton", "cuda", segpaged_attention))
    return [_compare(name, device, attend, dtype) for name, device, attend in kernels for dtype in TOLERANCE]


def _compare(name: str, device: str, attend: Attend, dtype: torch.dtype) -> SelfTest:
    label, tolerance = str(dtype).removeprefix("torch."), TOLERANCE[dtype]
    try:
        error = _largest_error(device, attend, dtype)
    except Exception as raised:
        return SelfTest(name, label, None, tolerance, f"{type(raised).__name__}: {raised}")
    if error != error:
        return SelfTest(name, label, None, tolerance, "a result is not a number")
    return SelfTest(name, label, error, tolerance)


def _largest_error(device: str, attend: Attend, dtype: torch.dtype) -> float:
    """Store K and V with `kv_write` into pages of NaN, attend, compare with the oracle in fp64."""
    generator = torch.Generator().manual_seed(1)
    layout, tables, slots = _pages(generator, dtype, device)
    tokens = slots.shape[1]
    key, value = (
        torch.randn((tokens, HEADS, HEAD_SIZE), generator=generator).to(dtype).to(device) for _ in "kv"
    )
    kv_write(key, value, layout, slots)
    starts = torch.tensor([0, *QUERY_LENS]).cumsum(0).to(device, torch.int32)
    lengths = torch.tensor(
        [q + c for q, c in zip(QUERY_LENS, CONTEXT_LENS, strict=True)], dtype=torch.int32
    ).to(device)
    rows = sum(QUERY_LENS)
    query = torch.randn((rows, HEADS * RATIO, HEAD_SIZE), generator=generator).to(dtype).to(device)
    batch = plan_batch(tables, starts, lengths, rows, max(QUERY_LENS), int(lengths.max()))
    output = torch.full_like(query, float("nan"))
    attend(query, layout, batch, output, HEAD_SIZE**-0.5)
    expected = segpaged_attention_reference(query.double(), layout, tables, starts, lengths, HEAD_SIZE**-0.5)
    return float((output.double() - expected).abs().max())


def _pages(
    generator: torch.Generator, dtype: torch.dtype, device: str
) -> tuple[SegmentLayout, torch.Tensor, torch.Tensor]:
    """Scattered pages: the layout, block tables [heads, requests, pages], slots [heads, tokens], a group a head."""
    lengths = [q + c for q, c in zip(QUERY_LENS, CONTEXT_LENS, strict=True)]
    per_request = [-(-length // PAGE) for length in lengths]
    num_pages = HEADS * sum(per_request)
    pages = torch.randperm(num_pages, generator=generator, dtype=torch.int32)
    tables = torch.full((HEADS, len(lengths), max(per_request)), -1, dtype=torch.int32)
    slots = torch.empty((HEADS, sum(lengths)), dtype=torch.int64)
    taken = 0
    for head in range(HEADS):
        column = 0
        for request, (length, count) in enumerate(zip(lengths, per_request, strict=True)):
            tables[head, request, :count] = pages[taken : taken + count]
            position = torch.arange(length)
            slots[head, column : column + length] = (
                tables[head, request][position // PAGE].long() * PAGE + position % PAGE
            )
            taken, column = taken + count, column + length
    page_elements = PAGE * 2 * HEAD_SIZE
    layout = SegmentLayout(
        pool=torch.full((HEADS * num_pages * page_elements,), float("nan"), dtype=dtype, device=device),
        base=torch.arange(HEADS, device=device) * num_pages * page_elements,
        group=torch.arange(HEADS, dtype=torch.int32, device=device),
        window=torch.tensor([GLOBAL_WINDOW, WINDOW], dtype=torch.int32, device=device),
        sink=torch.tensor([0, SINK], dtype=torch.int32, device=device),
        page_stride=page_elements,
        token_stride=2 * HEAD_SIZE,
        value_offset=HEAD_SIZE,
        page_size=PAGE,
        head_size=HEAD_SIZE,
    )
    return layout, tables.to(device), slots.to(device)
