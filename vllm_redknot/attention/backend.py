"""The REDKNOT attention backend, as vLLM's selector sees it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionType, MultipleOf
from vllm.v1.kv_cache_interface import KVCacheLayout

from vllm_redknot.kernels.layout import HEAD_SIZES
from vllm_redknot.settings import BACKEND_NAME


class RedknotBackend(AttentionBackend):
    """Head-segmented paged attention. Decoder layers, unquantised KV, head sizes the kernels are built for."""

    # K and V of every segment are written with that segment's slots, inside forward.
    forward_includes_kv_cache_update: bool = True
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        """The name users give to --attention-backend."""
        return BACKEND_NAME

    @staticmethod
    def get_impl_cls() -> type[Any]:
        """The implementation, imported when a layer is built."""
        from vllm_redknot.attention.impl import RedknotImpl

        return RedknotImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        """The metadata builder, imported when KV-cache groups are known."""
        from vllm_redknot.attention.builder import RedknotMetadataBuilder

        return RedknotMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Pages of any multiple of 16 tokens."""
        del kv_cache_spec
        return [MultipleOf(16)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Head sizes the kernels are built for."""
        return list(HEAD_SIZES)

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Segment-major layouts; with one KV head per segment the two are the same bytes."""
        return (KVCacheLayout.LBHNC, KVCacheLayout.LBNHC)

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Decoder self-attention only."""
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """A layer's own sliding window becomes the window of all its heads."""
        return True
