"""vLLM's metadata builder for one KV-cache group of head segments."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)

from vllm_redknot.attention.model import find_model
from vllm_redknot.attention.step import Step
from vllm_redknot.settings import settings_of


class RedknotMetadataBuilder(AttentionMetadataBuilder[Step]):
    """Enters its group's tables into the step that all groups share."""

    # The decode kernels' grids depend on shapes only; prefill is not captured.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        model = find_model(vllm_config.compilation_config.static_forward_context)
        assert model is not None, "a builder is made for layers that the loader has segmented"
        model.check_ready()
        self._tables = model.tables
        self._group = model.bind_group(layer_names)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """FlashInfer plans on the host before each step, outside of any graph."""
        if settings_of(vllm_config).decode_kernel == "flashinfer":
            return AttentionCGSupport.NEVER
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Step:
        """The current step, with this group's block table and slot mapping entered."""
        del common_prefix_len, fast_build
        return self._tables.add(self._group, common_attn_metadata, self.kv_cache_spec.block_size)
