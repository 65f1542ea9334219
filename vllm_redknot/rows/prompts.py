"""Tells row skipping the prompts of a step, from vLLM's model runner."""

from __future__ import annotations

from typing import Any

from vllm_redknot.attention.model import find_model
from vllm_redknot.rows.requests import skips_rows


def tell_prompts(runner: Any, is_dummy: bool) -> None:
    """Announce the step whose metadata the runner is about to build.

    Args:
        runner: vLLM's `GPUModelRunner` (Model Runner V1; also of CPUs).
        is_dummy: a step without requests, as for profiling and graph capture.
    """
    model = find_model(runner.compilation_config.static_forward_context)
    if model is None or model.rows is None:
        return
    batch, recent = runner.input_batch, model.rows.schedule.recent
    prompts = batch.num_prompt_tokens[: batch.num_reqs]
    # Nothing before the last `recent` tokens is left to compute: as in every decode step.
    if is_dummy or not (batch.num_computed_tokens_cpu[: batch.num_reqs] < prompts - recent).any():
        model.rows.expect(())
        return
    params = (runner.requests[name].sampling_params for name in batch.req_ids[: batch.num_reqs])
    model.rows.expect([int(n) if skips_rows(p) else 0 for n, p in zip(prompts, params, strict=True)])
