"""A layer of global and local heads through the FlashInfer route, with a stand-in for FlashInfer's own kernel.

Run by tests/kernels/test_flashinfer_plan.py, in a process of its own: local heads take the interpreted Triton kernel.
"""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import interpreter_bf16

interpreter_bf16.install()

import pytest
import torch
from cases import Shape, build_case
from flashinfer_stand_in import PagedDecodeStandIn

from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.segpaged_attention.flashinfer import FlashInferDecode, route_heads


@pytest.mark.parametrize(
    "windows", [(GLOBAL_WINDOW, 37, GLOBAL_WINDOW, 300), (37, 64, 5, 5000), (GLOBAL_WINDOW,) * 4]
)
@pytest.mark.parametrize("soft_cap", [0.0, 15.0])
def test_the_route_matches_the_oracle(windows: tuple[int, ...], soft_cap: float) -> None:
    sinks = tuple(0 if window == GLOBAL_WINDOW else 6 for window in windows)
    shape = Shape(
        [1] * 5,
        [0, 15, 16, 250, 700],
        windows,
        sinks,
        (0, 1, 1, 2),
        ratio=3,
        padding_rows=2,
        query_gap=64,
        interleaved=True,
        soft_cap=soft_cap,
    )
    case = build_case(shape, seed=5)
    route = route_heads(case.layout)
    decode = FlashInferDecode([route], torch.device("cpu"), PagedDecodeStandIn)
    assert decode.serves(case.batch)
    decode.plan(case.batch, case.batch.seq_lens, case.layout, 3, case.softmax_scale, soft_cap)
    output = case.poisoned_output()
    decode.run(case.query, case.layout, route, case.batch, output, case.softmax_scale, soft_cap)
    error = (output[:5].double() - case.expected(as_dtype=torch.float64)).abs()
    assert error.max().item() <= 2e-2
    assert output[5:].isnan().all()
