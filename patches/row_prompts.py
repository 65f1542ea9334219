"""Tell row skipping which prompts a step computes.

What: before Model Runner V1 builds a step's attention metadata, the prompts' lengths go to row skipping.
Why: a layer must know each token's distance to its prompt's end, and `CommonAttentionMetadata` does not say.
Applied only in a process whose model skips rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_redknot.patches.ledger import Patch


def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    """The prompts' lengths, then the original."""

    @functools.wraps(original)
    def _build_attention_metadata(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_redknot.rows.prompts import tell_prompts

        # Only steps of real requests come with this argument.
        tell_prompts(self, is_dummy=kwargs.get("num_scheduled_tokens") is None)
        return original(self, *args, **kwargs)

    return _build_attention_metadata


PATCH = Patch(
    name="row_prompts",
    module="vllm.v1.worker.gpu_model_runner",
    symbol="GPUModelRunner._build_attention_metadata",
    parameters=(
        "self",
        "num_tokens",
        "num_reqs",
        "max_query_len",
        "num_tokens_padded",
        "num_reqs_padded",
        "ubatch_slices",
        "logits_indices",
        "max_num_sampled_tokens",
        "use_spec_decode",
        "for_cudagraph_capture",
        "num_scheduled_tokens",
        "slot_mappings",
    ),
    wrap=wrap,
    why="attention metadata does not say how long a request's prompt is",
    versions="0.32, 0.33",
    upstream="none",
    removable_when="CommonAttentionMetadata has prompt lengths and requests' parameters",
)
