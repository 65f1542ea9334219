"""Keep KV of prompts that skipped rows apart in the prefix cache.

What: an engine core's block hasher is replaced by row skipping's before its first request, if its model skips rows.
Why: `cache_salt` marks a whole request; the last tokens of a prompt skip nothing, so its blocks need two marks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_redknot.patches.ledger import Patch


def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    """The hasher, then the original."""

    @functools.wraps(original)
    def preprocess_add_request(self: Any, request: Any) -> Any:
        from vllm_redknot.rows.prefix_cache import mark_blocks

        mark_blocks(self)
        return original(self, request)

    return preprocess_add_request


PATCH = Patch(
    name="row_prefix_cache",
    module="vllm.v1.engine.core",
    symbol="EngineCore.preprocess_add_request",
    parameters=("self", "request"),
    wrap=wrap,
    why="no hook marks single blocks of a request in the prefix cache",
    versions="0.32, 0.33",
    upstream="none",
    removable_when="a scheduler plugin can give blocks extra hash keys",
)
