"""Tells vLLM which manager serves the KV-cache specs of local heads."""

from __future__ import annotations

from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from vllm_redknot.kvcache.manager import SinkWindowManager
from vllm_redknot.kvcache.spec import SinkWindowSpec


def register_spec() -> None:
    """Register `SinkWindowSpec`. Unregistered, vLLM would silently take the base class's manager, which frees sinks."""
    # Registering into an empty registry would keep vLLM's own specs out of it.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(SinkWindowSpec, SinkWindowManager, uniform_type_base_spec=SinkWindowSpec)
