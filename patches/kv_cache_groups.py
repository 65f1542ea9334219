"""Group head segments by REDKNOT's plan.

What: `get_kv_cache_groups` plans the groups of a model whose KV-cache layers are head segments; all others go through
vLLM's own grouping.
Why: vLLM makes all groups as small as the smallest set of equal layers, so 5 global heads among 256 give 52 groups, and
it cannot trade a promoted head against padding or bound the number of groups.
Its call is also where an engine core first meets the plugin with a configuration, so the core is told of row skipping.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_redknot.patches.ledger import Patch

MODULES = ("vllm.v1.core.kv_cache_planning", "vllm.v1.core.kv_cache_utils")
"""Where vLLM keeps the function, newest first."""


def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    """The original, asked wherever the layers are not (only) head segments."""

    @functools.wraps(original)
    def get_kv_cache_groups(vllm_config: Any, kv_cache_spec: dict[str, Any]) -> Any:
        from vllm_redknot.kvcache.segment_groups import group_segments
        from vllm_redknot.rows.prefix_cache import prepare_core

        prepare_core(vllm_config)
        groups = group_segments(vllm_config, kv_cache_spec)
        return original(vllm_config, kv_cache_spec) if groups is None else groups

    return get_kv_cache_groups


def patch(has_module: Callable[[str], bool]) -> Patch:
    """The patch for a vLLM that has these modules: the function moved in 0.33."""
    return Patch(
        name="kv_cache_groups",
        module=next(module for module in MODULES if has_module(module)),
        symbol="get_kv_cache_groups",
        parameters=("vllm_config", "kv_cache_spec"),
        wrap=wrap,
        why="vLLM's group size is the smallest bucket of equal layers",
        versions="0.32 (kv_cache_utils), 0.33 (kv_cache_planning)",
        upstream="0.33 lets a platform choose a KVCacheConfigBuilder; the platform class is not ours either",
        removable_when="a plugin can register a KVCacheConfigBuilder",
    )
