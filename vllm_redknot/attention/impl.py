"""The REDKNOT implementation of one attention layer: splits it into head segments, then calls the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionImpl, AttentionType

from vllm_redknot.attention.model import SegmentedModel, find_model
from vllm_redknot.attention.segments import add_segments
from vllm_redknot.attention.step import Step
from vllm_redknot.heads.profile import HeadVisibility
from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.rows.plan import RowPass
from vllm_redknot.support import UnsupportedError


class RedknotImpl(AttentionImpl[Step]):
    """Attention of one layer over its heads' segments."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        refused = {
            "ALiBi": alibi_slopes is not None,
            "learned attention sinks": sinks is not None,
            "cross-layer KV sharing": kv_sharing_target_layer_name is not None,
            f"{attn_type} attention": attn_type != AttentionType.DECODER,
        }
        if found := [what for what, present in refused.items() if present]:
            raise UnsupportedError(
                f"REDKNOT does not serve {', '.join(found)}: choose another --attention-backend"
            )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.sliding_window = sliding_window
        self.kv_cache_dtype = kv_cache_dtype
        self.logits_soft_cap = float(logits_soft_cap or 0.0)
        vllm_config = get_current_vllm_config()
        self._context: dict[str, Any] = vllm_config.compilation_config.static_forward_context
        self.model: SegmentedModel = find_model(self._context) or SegmentedModel(vllm_config)
        self.names: list[str] = []
        self.visibilities: list[HeadVisibility] = []
        self._layout: SegmentLayout | None = None
        self.row_pass: RowPass | None = None
        # The layer's modules where row skipping hides them from torch.compile.
        self.row_attention: Callable[..., Any] | None = None
        self.row_ffn: Callable[..., Any] | None = None

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Split the layer into head segments; vLLM collects KV-cache specs after this."""
        del act_dtype
        if self.names:
            return
        layer_name = next(
            name for name, layer in self._context.items() if getattr(layer, "impl", None) is self
        )
        layer = self._context[layer_name]
        if type(layer) is not Attention:
            # Its class narrows what a token sees (chunks, prefixes, pooling) by means that segments do not have.
            raise UnsupportedError(f"REDKNOT does not serve {type(layer).__name__} layers ({layer_name})")
        if layer.head_size_v != self.head_size:
            raise UnsupportedError(
                f"REDKNOT needs keys and values of one size; {layer_name} has {self.head_size} and {layer.head_size_v}"
            )
        self.visibilities = self.model.visibilities(layer_name, self.num_kv_heads, self.sliding_window)
        self.names = add_segments(self._context, layer_name, self.visibilities, self.model)
        self.model.layers.append(self)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Step | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Store K and V of the step's tokens, then attend.

        Args:
            layer: the `Attention` layer; unused.
            query: [T', Hq, D].
            key: [T', H, D].
            value: like key.
            kv_cache: the layer's own segment (KV head 0), [num_pages, 1, page_size, 2 * D]; empty while profiling.
            attn_metadata: the current step; None while profiling.
            output: [T', Hq, D], written in place.
            output_scale: not supported.
            output_block_scale: not supported.
        """
        del layer
        if output_scale is not None or output_block_scale is not None:
            raise UnsupportedError("REDKNOT does not serve fused output quantisation")
        if attn_metadata is None:
            return output.zero_()
        layout = self._layout
        if (
            layout is None
            or layout.pool.untyped_storage().data_ptr() != kv_cache.untyped_storage().data_ptr()
        ):
            self.model.bind_layers()
            layout = self._layout
            assert layout is not None
        # Row skipping runs a late layer twice, on some rows of the step each time.
        step, attends = self.row_pass or RowPass(attn_metadata, attends=True)
        kernels = self.model.kernels
        kernels.write(key, value, layout, step)
        if attends:
            kernels.attend(query, layout, step, output, self.scale, self.logits_soft_cap)
        return output

    def bind(self) -> SegmentLayout:
        """Find out where vLLM has put the layer's segments."""
        caches = [self._context[name].kv_cache for name in self.names]
        kv_cache = caches[0]
        device, size = kv_cache.device, self.head_size
        assert all(cache.stride() == kv_cache.stride() for cache in caches), "segments share one page format"
        pool = torch.empty(0, dtype=kv_cache.dtype, device=device).set_(kv_cache.untyped_storage())
        windows = [GLOBAL_WINDOW if seen.window is None else seen.window for seen in self.visibilities]
        self._layout = SegmentLayout(
            pool=pool,
            base=torch.tensor([cache.storage_offset() for cache in caches], dtype=torch.int64, device=device),
            group=_int32([self.model.group_of(name) for name in self.names], device),
            window=_int32(windows, device),
            sink=_int32([seen.sink for seen in self.visibilities], device),
            page_stride=kv_cache.stride(0),
            token_stride=kv_cache.stride(2),
            value_offset=size,
            page_size=kv_cache.shape[2],
            head_size=size,
        )
        return self._layout


def _int32(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
