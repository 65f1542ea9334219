"""Tells row skipping the prompts of a step, from vLLM's model runner."""

from __future__ import annotations

from collections.abc import Sequence
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
    if model is not None and model.rows is not None:
        model.rows.expect(() if is_dummy else _prompts(runner, model.rows.schedule.recent))


def skips_in_step(runner: Any) -> bool:
    """Whether tokens of the step that the runner has prepared may skip."""
    model = find_model(runner.compilation_config.static_forward_context)
    return model is not None and model.rows is not None and bool(_prompts(runner, model.rows.schedule.recent))


def _prompts(runner: Any, recent: int) -> Sequence[int]:
    """Tokens of each request's prompt, 0 for one that skips nothing; empty if no request has any left that may skip."""
    batch = runner.input_batch
    prompts = batch.num_prompt_tokens[: batch.num_reqs]
    left = batch.num_computed_tokens_cpu[: batch.num_reqs] < prompts - recent
    # As in every decode step.
    if not left.any():
        return ()
    params = (runner.requests[name].sampling_params for name in batch.req_ids[: batch.num_reqs])
    found = [int(n) if skips_rows(p) else 0 for n, p in zip(prompts, params, strict=True)]
    return found if any(n for n, more in zip(found, left, strict=True) if more) else ()
