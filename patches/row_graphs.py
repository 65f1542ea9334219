"""Keep steps in which prompt tokens skip rows out of CUDA graphs.

What: before Model Runner V1 chooses how a step runs, a step in which tokens may skip is told to run without a graph.
Why: a decode graph computes every row, and also fits a prompt's chunk of one token, which is to skip.
Applied only in a process whose model skips rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_redknot.patches.ledger import Patch


def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    """The original, without a graph where tokens skip."""

    @functools.wraps(original)
    def _determine_batch_execution_and_padding(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_redknot.rows.prompts import skips_in_step

        # Only steps without requests, as for profiling and graph capture, come with this argument.
        if kwargs.get("force_uniform_decode") is None and skips_in_step(self):
            kwargs["force_eager"] = True
        return original(self, *args, **kwargs)

    return _determine_batch_execution_and_padding


PATCH = Patch(
    name="row_graphs",
    module="vllm.v1.worker.gpu_model_runner",
    symbol="GPUModelRunner._determine_batch_execution_and_padding",
    parameters=(
        "self",
        "num_tokens",
        "num_reqs",
        "num_scheduled_tokens_np",
        "max_num_scheduled_tokens",
        "use_cascade_attn",
        "allow_microbatching",
        "force_eager",
        "force_uniform_decode",
        "force_has_lora",
        "force_num_active_loras",
        "num_encoder_reqs",
    ),
    wrap=wrap,
    why="a prompt's chunk of one token looks like a decode step, and would run in its graph",
    versions="0.32, 0.33",
    upstream="none",
    removable_when="a metadata builder can refuse a graph for one step",
)
