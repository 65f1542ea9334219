"""CUDA graphs with row skipping: decode has them, a step in which tokens skip does not."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.config import CUDAGraphMode

from vllm_redknot.patches import row_graphs
from vllm_redknot.rows import prompts
from vllm_redknot.rows.graphs import leave_graphs_to_decode
from vllm_redknot.rows.schedule import RowSchedule

RECENT = 128


@pytest.mark.parametrize(
    ("mode", "kernel", "left"),
    [
        ("NONE", "triton", "NONE"),
        ("PIECEWISE", "triton", "NONE"),
        ("FULL", "triton", "FULL_DECODE_ONLY"),
        ("FULL_AND_PIECEWISE", "triton", "FULL_DECODE_ONLY"),
        ("FULL_DECODE_ONLY", "triton", "FULL_DECODE_ONLY"),
        ("FULL_AND_PIECEWISE", "flashinfer", "NONE"),
        ("PIECEWISE", "flashinfer", "NONE"),
    ],
)
def test_only_whole_decode_steps_are_captured(mode: str, kernel: str, left: str) -> None:
    compilation = SimpleNamespace(cudagraph_mode=CUDAGraphMode[mode])
    additional = {"redknot": {"decode_kernel": kernel}}
    leave_graphs_to_decode(SimpleNamespace(compilation_config=compilation, additional_config=additional))
    assert compilation.cudagraph_mode is CUDAGraphMode[left]


def runner(requests: list[tuple[int, int, str]]) -> Any:
    """vLLM's runner with a step of (prompt tokens, computed tokens, row skipping) prepared."""
    params = {"on": SamplingParams(), "off": SamplingParams(extra_args={"redknot_rows": "off"})}
    names = [str(number) for number in range(len(requests))]
    spare = [7]  # what is behind the step's requests says nothing
    return SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context=None),
        input_batch=SimpleNamespace(
            num_reqs=len(requests),
            req_ids=[*names, "stale"],
            num_prompt_tokens=np.array([prompt for prompt, _, _ in requests] + spare),
            num_computed_tokens_cpu=np.array([computed for _, computed, _ in requests] + spare),
        ),
        requests={
            name: SimpleNamespace(sampling_params=params[rows])
            for name, (_, _, rows) in zip(names, requests, strict=True)
        },
    )


@pytest.mark.parametrize(
    ("requests", "skips"),
    [
        # Decode; a prompt whose last tokens alone are left; a short one.
        ([(1000, 1004, "on"), (1000, 872, "on"), (90, 0, "on")], False),
        # One token of a prompt among decode steps: it would fit a decode graph.
        ([(1000, 1004, "on"), (1000, 871, "on")], True),
        ([(1000, 1004, "on"), (1000, 500, "off")], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("dummy", [None, True, False])
def test_a_step_in_which_tokens_skip_has_no_graph(
    requests: list[tuple[int, int, str]], skips: bool, dummy: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = SimpleNamespace(schedule=RowSchedule(ffn_from=1, recent=RECENT))
    monkeypatch.setattr(prompts, "find_model", lambda _: SimpleNamespace(rows=rows))
    given: dict[str, Any] = {}
    wrapped = row_graphs.wrap(lambda _runner, **kwargs: given.update(kwargs))
    wrapped(runner(requests), num_tokens=9, force_uniform_decode=dummy)
    assert given.get("force_eager", False) == (skips and dummy is None)
    assert given["num_tokens"] == 9
